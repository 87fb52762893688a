"""The benchmark at tiny size: its results are complete, its ratios follow from its times, bad input is refused."""

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import jsonschema
import numpy as np
import pytest

from benchmarks import cases, machine, measure, plots, report, run, start, stream_work, targets, watch
from benchmarks.process import Settings, WorkerProcess
from mlx_parity.compare import BUDGET
from parity_tests.speech_support import SYSTEM, WORDS
from port.fast import FORMS
from port.files.voices import Voice, save_voice

pytestmark = pytest.mark.meta
SCHEMA = json.loads((Path(run.__file__).parent / "schema.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One case with every kind of variant, measured twice on one thread without the system's BLAS."""
    folder = tmp_path_factory.mktemp("benchmark")
    words = ["--only", "flow.dit.*", "--repeats", "2", "--threads", "1", "--blas", "none", "--out", str(folder)]
    code = run.main(words)
    return code, folder, json.loads((folder / run.FILE).read_text("utf-8"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Workers of the flow, one thread each."""
    settings = Settings("tiny", 0, None, 1, None, None, tmp_path_factory.mktemp("logs"), 60.0, 64)
    made = measure.Bench(settings, ["torch", "port"])
    yield made
    made.close()


def dit(*variants, **changes):
    found = next(case for case in cases.all_cases("tiny") if case.kind == "dit")
    return cases.Case(**{**vars(found), "variants": variants or found.variants, "warm": False, **changes})


def test_what_is_written_is_complete(measured):
    code, folder, result = measured
    jsonschema.validate(result, SCHEMA)
    assert code == 0
    (case,) = result["cases"]
    assert list(case["variants"]) == [
        "torch",
        "port",
        *(f"port.no_{form}" for form in cases.FORMS_OF["flow"]),
        "port.plain",
        "port.separate",
    ]
    assert all(len(row["seconds"]) == 2 for row in case["variants"].values())
    for row in case["variants"].values():
        assert row["side"] == "torch" or row["check"]["ratio"] <= BUDGET
    page = (folder / "benchmark.md").read_text("utf-8")
    assert case["name"] in page and "ratios.svg" in page
    assert (folder / "ratios.svg").stat().st_size > 1000 and (folder / "paths.svg").exists()


def test_ratios_follow_from_the_times(measured):
    (case,) = measured[2]["cases"]
    for name, found in case["ratios"].items():
        top, _, base = name.partition("/")
        turns = [
            a / b for a, b in zip(case["variants"][top]["seconds"], case["variants"][base]["seconds"], strict=True)
        ]
        assert found["low"] == min(turns) and found["high"] == max(turns)
        assert found["low"] <= found["median"] <= found["high"]


def test_tables_make_the_counts_smaller(measured):
    """At 64 channels and 2 blocks the modulation's linears are known: 2 x (64 + 1) x 384 + (64 + 1) x 128 floats."""
    (case,) = measured[2]["cases"]
    fast, plain = (case["counts"][name] for name in ("port", "port.no_tables"))
    assert plain["weight_bytes"] - fast["weight_bytes"] > 4 * (2 * 65 * 384 + 65 * 128) * 0.9
    assert fast["matmul_flops"] < plain["matmul_flops"] and fast["primitives"] < plain["primitives"]


def test_without_a_fast_blas_it_says_that_mlx_means_nothing(measured):
    blas = measured[2]["blas"]
    if not blas["meaningless"]:
        pytest.skip("MLX's own matrix products are fast here")
    assert "mean nothing" in blas["sentence"] and "--blas" in blas["sentence"]
    assert blas["sentence"] in (measured[1] / "benchmark.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("mlx", "preloaded", "remedy"),
    [(4.8e9, None, "--blas PATH"), (45e9, "libopenblas.so.0", "OPENBLAS_CORETYPE"), (183e9, "libopenblas.so.0", None)],
    ids=["the wheel's", "an old kernel", "fast"],
)
def test_a_slow_blas_is_found_by_measured_speeds(mlx, preloaded, remedy):
    about = {
        "port": {"device": "cpu", "matrix_flops": mlx, "blas_kernel": "Zen"},
        "torch": {"device": "cpu", "matrix_flops": 197e9},
    }
    found = report.describe_blas(about, preloaded)
    assert found["meaningless"] is ("mean nothing" in found["sentence"]) is bool(remedy)
    assert remedy is None or remedy in found["sentence"]
    assert found["kernel"] == "Zen" and ("kernel Zen;" in found["sentence"]) is bool(preloaded)


def test_a_wrong_result_is_refused_and_not_timed(bench, monkeypatch):
    read = measure.arrays

    def wrong(path):
        scale = 1.001 if path.stem == "variant" else 1.0
        return {name: scale * value for name, value in read(path).items()}

    monkeypatch.setattr(measure, "arrays", wrong)
    row = bench.measure(dit(cases.TORCH, cases.PORT), 1)["variants"]["port"]
    assert row["status"] == "refused" and "wrong result" in row["message"] and row["seconds"] == []


def test_another_port_that_differs_is_timed_and_marked(bench, monkeypatch):
    monkeypatch.setattr(bench, "sides", ["torch", "port", "other"])
    monkeypatch.setattr(
        bench, "worker", lambda side, parts, own=bench.worker: own(side.replace("other", "port"), parts)
    )
    monkeypatch.setattr(measure, "worst", lambda found: found[0].__class__("FAIL", "9x", ratio_rms=9.0, ratio_max=9.0))
    row = bench.measure(dit(cases.TORCH, cases.Variant("other", "other")), 1)["variants"]["other"]
    assert row["status"] == "differs" and "not the original's" in row["message"] and len(row["seconds"]) == 1


def test_a_worker_that_dies_marks_its_row_and_the_next_case_runs(bench):
    case = dit(cases.TORCH, cases.PORT)
    worker = bench.worker("port", case.parts)
    worker.process.kill()
    with pytest.raises(measure.WorkerError, match="port: the worker ended with -9"):
        worker.ask("about")
    assert bench.measure(case, 1)["variants"]["port"]["status"] == "measured"
    broken = bench.measure(dit(cases.TORCH, cases.Variant("port", "port", {"guidance": "no"})), 1)
    assert broken["variants"]["port"]["status"] == "failed" and "guidance" in broken["variants"]["port"]["message"]
    assert broken["variants"]["torch"]["status"] == "measured"


def test_a_baked_model_has_a_worker_of_its_own_and_less_memory(bench):
    (case,) = (case for case in cases.all_cases("tiny") if case.name == "flow.ten_steps")
    rows = bench.measure(cases.Case(**{**vars(case), "variants": (cases.PORT, cases.BAKED_TABLES)}), 1)["variants"]
    assert [row["status"] for row in rows.values()] == ["measured", "measured"]
    assert rows["port.baked"]["peak_bytes"] < rows["port"]["peak_bytes"]


def test_an_answer_that_does_not_come_in_time(bench):
    settings = Settings(**{**vars(bench.settings), "timeout_s": 0.0})
    with pytest.raises(measure.WorkerError, match="within 0 s"):
        WorkerProcess("port", ("hift",), settings)


def test_resume_keeps_what_is_there_and_refuses_another_run(measured, capsys):
    _, folder, result = measured
    words = ["--only", "flow.dit.*", "--repeats", "2", "--threads", "1", "--blas", "none", "--out", str(folder)]
    assert run.main([*words, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == result["cases"]
    assert run.main(["--only", "llm.prefill", *words[2:], "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"][:-1] == result["cases"], "a case that was not asked for is kept"
    assert run.main([*words, "--seed", "1", "--resume"]) == 2
    assert "another run (options)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nothing"], "no case has this name"),
        (["--against", "them"], "--against them: not known"),
        (["--dtype", "float8"], "--dtype float8"),
        (["--quantize", "3"], "--quantize 3"),
    ],
)
def test_a_wrong_argument_is_one_line(words, message, capsys):
    assert run.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_another_port_runs_in_the_environment_of_its_audit(monkeypatch):
    asked = Namespace(against="mlx_audio_plus", plus_python=None)
    monkeypatch.setattr(run, "environment", lambda folder, pins: folder / pins.stem)
    assert run._sides(asked) == ["port", "mlx_audio_plus"]
    assert asked.plus_python.endswith("build/audit-mlx_audio_plus/mlx_audio_plus.requirements")
    asked.plus_python = None
    monkeypatch.setattr(run, "environment", Mock(side_effect=run.CannotInstall("no network")))
    with pytest.raises(machine.BenchmarkError, match="no network"):
        run._sides(asked)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is preloaded elsewhere")
def test_a_blas_that_is_not_there():
    with pytest.raises(machine.BenchmarkError, match="no such file"):
        machine.find_blas("/nowhere/libopenblas.so.0")
    assert machine.find_blas("none") is None


@pytest.mark.skipif(machine.find_blas() is None, reason="no OpenBLAS to put before MLX's own")
def test_the_kernel_of_a_preloaded_blas_is_named(tmp_path, monkeypatch):
    """The library itself names the kernel that it is forced to take; without a library there is no kernel."""
    monkeypatch.setenv(machine.FORCED_KERNEL, "Prescott")
    found = []
    for blas in (machine.find_blas(), None):
        worker = WorkerProcess("port", (), Settings("tiny", 0, None, 1, blas, None, tmp_path, 60.0, 64))
        found.append(worker.ask("about")["blas_kernel"])
        worker.close()
    assert found == ["Prescott, by OPENBLAS_CORETYPE", machine.OWN_KERNEL]


def test_every_fast_form_is_measured():
    """All but the one for reduced precision, without which a model computes in another precision."""
    names = {variant.name for case in cases.all_cases("full") for variant in case.variants}
    assert {f"port.no_{form}" for form in FORMS} - names == {"port.no_own_dtype"}


def test_targets_are_judged_by_their_limits():
    def ratio(value):
        return {"median": value, "low": value, "high": value}

    def case(ratios):
        return {"ratios": ratios, "variants": {}, "counts": {}}

    good = {"flow.dit.250": case({"port/torch": ratio(1.0), "mlx_audio_plus/port": ratio(1.5)})}
    bad = {"flow.dit.250": case({"port/torch": ratio(1.01), "mlx_audio_plus/port": ratio(1.49)})}
    for found, status in ((good, "met"), (bad, "missed"), ({}, "not measured")):
        rows = {target.what: target.status for target in targets.judge(found)}
        assert rows["DiT step, 250 frames, against torch"] == status
        assert rows["DiT step, 250 frames, mlx-audio-plus against the port"] == status


@pytest.mark.parametrize(("kind", "share"), [("decode", "50 %"), ("prefill", "25 %")])
def test_decoding_is_limited_by_memory_and_a_prefill_by_arithmetic(kind, share):
    """Two tokens in 1 s: decoding reads 4 of 8 bytes, one pass over both computes 3 of 12 operations."""
    row = {"side": "port", "status": "measured", "message": "", "seconds": [1.0], "median": 1.0, "check": None}
    counts = {"port": {"matmul_flops": 3, "weight_bytes": 2}}
    case = {"kind": kind, "size": {"tokens": 2}, "counts": counts, "variants": {"port": row}, "ratios": {}}
    ((*_, found, _, _, _),) = report.table(case | {"matrix_flops": {"port": 12.0}, "memory_bytes": {"port": 8.0}})
    assert found == share


def test_cost_is_drawn_against_the_length(tmp_path):
    def case(length):
        row = {"seconds": [3.0 * length], "median": 3.0 * length}
        return {"kind": "stream", "audio_seconds": length, "variants": {"port": row, "port.offline": row}}

    assert not plots._lengths([case(5)], tmp_path / "one.svg")
    assert plots._lengths([case(60), case(5)], tmp_path / "two.svg") and (tmp_path / "two.svg").stat().st_size > 1000


def test_the_cold_start_is_split_by_part(parity, tmp_path, capsys):
    """A voice given by its embedding, so no recording is read."""
    config = parity.models.config
    folder = Path(shutil.copytree(parity.models.folder, tmp_path / "model"))
    save_voice(folder, "bare", Voice(np.ones((1, config.flow.spk_embed_dim), np.float32)), config)
    words = ["--repeats", "1", "--blas", "none", "--json", "say", "--model", str(folder), "--voice"]
    assert start.main([*words, "bare", "--text", SYSTEM + WORDS, "--seed", "3"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run.keys() == {*watch.PARTS, "wall"} and run["prompt"] == 0
    for part in ("imports", "weights", "fast forms", "text", "language model", "flow", "vocoder"):
        assert run[part] > 0, part
    rows = {row[0]: row[3] for row in start.table([run])}
    assert rows["all"] == "100 %" and rows["prompt"] == "0 %"
    assert start.main([*words, "nobody", "--text", "Hello."]) == 2
    assert "voice 'nobody' is not known" in capsys.readouterr().err


def test_growth_of_a_stream_is_compared_with_its_keys():
    """Chunks of 4 s at 0, 4, 8 and 12 s and a last one; with no prompt the keys grow 16 / 4."""
    for last, status in ((8.0, "met"), (40.0, "missed")):
        elapsed, marks = 0.0, []
        for cost in (4.0, 5.0, 6.0, last, 100.0):
            elapsed += cost
            marks.append([elapsed, 4 * targets.RATE])
        row = {"marks": marks, "status": "measured", "check": None}
        stream = {"variants": {"port": row}, "size": {"prompt": 0}, "ratios": {}, "counts": {}}
        (found,) = (t for t in targets.judge({"stream.30s": stream}) if t.what.startswith("growth"))
        assert found.status == status and found.value == pytest.approx(last / 4.0 / 4.0)


def test_work_of_a_stream():
    """For two chunks the original makes two whole passes; the port makes less than two, with the causal mask one."""
    model = stream_work.counted()
    again, usual, causal = (stream_work.passes(model, 2, stream) for stream in stream_work.WAYS.values())
    assert causal == 1
    assert 1 < usual <= again < 2
