"""The golden runner: it uses manifest and metadata, never file names, and never passes without a comparison."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_parity.record import MANIFEST, Recorded
from parity_tests.degraded import KINDS, degraded
from parity_tests.golden import __main__ as runner
from parity_tests.golden.judge import EMBEDDED, judge_file, judge_folder
from parity_tests.golden.replay import Replays
from parity_tests.golden_support import golden, variants, write
from port import noise

pytestmark = pytest.mark.meta
SIDES = ("reference", "port")


@pytest.fixture(scope="module")
def others() -> dict[str, Recorded]:
    return variants()


def statuses(rows) -> set[str]:
    return {row.status for row in rows}


def problems(rows) -> list[str]:
    return [f"{r.status} {r.side} {r.tensor}: {r.note or r.value}" for r in rows if r.status not in ("PASS", "SKIP")]


def said(capsys, *argv) -> tuple[int, str]:
    code = runner.main([str(word) for word in argv])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out + captured.err


# ---- other names, other sizes


@pytest.mark.parametrize("described", ["manifest", "metadata"])
def test_names_of_files_mean_nothing(tmp_path, capsys, described):
    files = [Recorded.read(path) for path in sorted(EMBEDDED.glob("*.safetensors"), reverse=True)]
    write(files, tmp_path, manifest=described != "metadata", metadata=described != "manifest")
    code, text = said(capsys, tmp_path)
    assert code == 0, [line for line in text.splitlines() if line.startswith(("FAIL", "ERROR", "VACUOUS"))]
    tensors = sum(len({*file.out, *file.out64}) for file in files)
    assert len({tuple(line.split()[1:4]) for line in text.splitlines()[:-1]}) == 2 * tensors


def test_other_sizes_pass(tmp_path, others):
    write(others.values(), tmp_path)
    rows = judge_folder(tmp_path, SIDES)
    assert not problems(rows), problems(rows)
    assert {row.file for row in rows} == {f"n{number:03}" for number in range(len(others))}


SPOILED = [
    ("block", "out64.y"), ("block", "out.y"), ("block", "in.x"), ("block", "w.ff.ff.0.0.weight"),
    ("dit", "out64.block2"), ("flow", "out.feat"), ("flow", "out64.mu"), ("flow", "in.noise"),
    ("vocoder", "out.wav"), ("vocoder", "out64.f0"), ("vocoder", "in.sine_waves"), ("decode", "out64.up2"),
    ("masks", "out.chunk_mask_c5"), ("masks", "out.subsequent_chunk_mask_c40_left2"), ("noise", "out.sine_waves_10"),
    ("noise", "out.rand_noise_100"), ("noise", "out.randn_21_seed5"), ("schedule", "out.t_7"), ("draws", "out.prob"),
    ("draws", "out.id"), ("chain", "out.ras_ids"), ("sines", "out64.sine_unit"), ("greedy", "out.logits"),
    ("greedy", "out64.logits"), ("greedy", "out64.lm_input"), ("mel", "out.mel_basis"), ("fbank", "out.y16"),
    ("silence", "out.tokens"), ("driver", "out.mel_0"),
]  # fmt: skip


def spoil(file: Recorded, tensor: str) -> Recorded:
    """The file with the largest number of a tensor changed: a float by a thousandth, an integer x to 1 - x."""
    group, _, name = tensor.partition(".")
    where = {"w": "weights", "in": "inputs"}.get(group, group)
    held = dict(getattr(file, where))
    value = held[name] = held[name].copy()
    place = np.unravel_index(np.where(np.isfinite(value), np.abs(value.astype(float)), 0).argmax(), value.shape)
    value[place] = value[place] * value.dtype.type(1.001) if value.dtype.kind == "f" else 1 - value[place]
    return replace(file, **dict[str, Any]({where: held}))


@pytest.mark.parametrize(("name", "tensor"), SPOILED, ids=[".".join(pair) for pair in SPOILED])
def test_one_spoiled_number_fails(others, name, tensor):
    rows = judge_file(spoil(others[name], tensor), *SIDES)
    assert {row.side for row in rows if row.status == "FAIL"} == {*SIDES}, problems(rows)


def test_a_wrong_reference_is_no_truth(monkeypatch):
    """Without the original's float64 the reference's is the truth only if the original's float32 agrees with it."""
    monkeypatch.setattr("reference.frontend.audio.fbank", lambda waveform, **_: waveform.new_ones(98, 80))
    rows = judge_file(golden("resample_fbank"), *SIDES)
    assert {(row.tensor, row.side) for row in rows if row.status != "PASS"} == {
        (tensor, side) for tensor in ("fbank", "fbank_norm") for side in SIDES
    }


def test_two_sides_that_are_wrong_together_fail(monkeypatch):
    """The original's numbers decide, even without its float64 and if both sides share the wrong code."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(noise, "sine_waves", lambda n, offset=0: rng.standard_normal((n, 9)).astype(np.float32))
    rows = judge_file(golden("upstream_noise"), "port")
    assert {row.tensor for row in rows if row.status == "FAIL"} == {"sine_waves_64"}


def test_float64_of_a_waveform_may_cost_what_a_rounding_costs(others):
    """Phases grow with time, so at some length one float64 rounding of the mel moves the waveform by more than 1e-12.
    The limit grows with it, and one float32 rounding is still far beyond."""
    file = others["vocoder"]
    truth, moved = file.out64["wav"], Replays(file).moved["wav"]
    for wav, status in (
        (moved, "PASS"),
        (truth * (1 + 1e-9), "FAIL"),
        (truth.astype(np.float32).astype(float), "FAIL"),
    ):
        rows = judge_file(replace(file, out64={**file.out64, "wav": wav}), "reference")
        assert next(r.status for r in rows if (r.tensor, r.measure) == ("wav", "float64")) == status


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_that_is_not_float32_passes_nothing(tmp_path, capsys, kind):
    with degraded(kind):
        rows = judge_file(golden("resblock_causal_k3"), *SIDES)
        code, text = said(capsys, folder_of(tmp_path, "resblock_causal_k3"))
    assert {(r.side, r.measure) for r in rows if r.status == "PASS"} == {("reference", "float64")}
    assert code == 2 and text.startswith("error: ") and "PyTorch" in text


# ---- no pass without a comparison


@pytest.mark.parametrize(
    "change",
    [
        lambda f: replace(f, inputs={"tokens": np.zeros(0, np.int64)}, out={"tokens": np.zeros(0, np.int64)}),
        lambda f: replace(f, out={}),
        lambda f: replace(f, out={"tokens": f.out["tokens"], "others": f.out["tokens"]}),
        lambda f: replace(f, out={"tokens": f.out["tokens"].astype(np.float32)}),
    ],
    ids=["empty", "no output", "unknown output", "floats"],
)
def test_what_cannot_be_compared_is_an_error(change):
    rows = judge_file(change(golden("silent_filter")), *SIDES)
    assert "ERROR" in statuses(rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("group", ["out", "out64"])
@pytest.mark.parametrize("whole", [True, False])
def test_numbers_that_are_none_pass_nothing(group, value, whole):
    file = golden("snake")
    y = getattr(file, group)["y"].copy()
    y[... if whole else (0, 0, 0)] = value
    rows = judge_file(replace(file, **dict[str, Any]({group: {"y": y}})), *SIDES)
    assert {row.side for row in rows if row.status in ("FAIL", "ERROR")} == {*SIDES}


@pytest.mark.parametrize("shape", [(0, 10, 37), (2, 10, 0)], ids=["no rows", "no frames"])
def test_empty_floats_are_an_error(shape):
    empty = np.zeros(shape, np.float32)
    file = replace(golden("snake"), inputs={"x": empty}, out={"y": empty}, out64={"y": empty.astype(np.float64)})
    assert "PASS" not in statuses(judge_file(file, *SIDES))


# ---- invalid folders, manifests and files


def folder_of(tmp_path, *names, **how):
    write([golden(name) for name in names], tmp_path, **how)
    return tmp_path


def edit_manifest(folder, change):
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    change(content["cases"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cases: cases.append(cases[0] | {"file": "gone.safetensors"}), "the folder lacks it"),
        (lambda cases: cases.pop(), "does not list this file"),
        (lambda cases: cases[0].update(sha256="0" * 64), "sha256 differs"),
        (lambda cases: cases[0]["tensors"].update({"out.z": {"shape": [1], "dtype": "float32"}}), "the file lacks it"),
        (lambda cases: cases[0]["tensors"].pop("out.y"), "does not list it"),
        (lambda cases: cases[0]["tensors"]["out.y"].update(shape=[1]), "shape is [2, 10, 37], [1] in"),
        (lambda cases: cases[0]["tensors"]["out.y"].update(dtype="float16"), "dtype is float32"),
        (lambda cases: cases[0].update(tensors=3), "is no object"),
        (lambda cases: cases[0].update(config={"in_features": 11}), "differ in config"),
        (lambda cases: cases[0].update(call=[]), "call is [], not a dict"),
        (lambda cases: cases[0].update(upstream=None), "upstream is null, not a str"),
        (lambda cases: cases[0].update(upstream="some.other.Module"), "differ in upstream"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_an_error(tmp_path, capsys, change, message):
    folder = folder_of(tmp_path, "snake", "grn")
    edit_manifest(folder, change)
    code, text = said(capsys, folder)
    assert code == 1
    assert any(line.startswith("ERROR") and message in line for line in text.splitlines()), text


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", '{"cases": 3}', '{"cases": [3]}', '{"cases": [{}]}', '{"cases": [{"file": "../x"}]}',
     '{"cases": [], "cases": []}', '{"cases": [{"file": "a", "file": "b"}]}',
     '{"cases": [{"file": "a"}, {"file": "a"}]}', "[" * 100_000, b"\xff\xfe"],
)  # fmt: skip
def test_a_damaged_manifest_is_one_line(tmp_path, capsys, content):
    folder = folder_of(tmp_path, "snake")
    (folder / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, text = said(capsys, folder)
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1


@pytest.mark.parametrize(
    "make", [lambda p: p / "gone", lambda p: p, lambda p: p / MANIFEST], ids=["gone", "empty", "file"]
)
def test_no_folder_and_no_files_are_one_line(tmp_path, capsys, make):
    (tmp_path / MANIFEST).write_text('{"cases": []}')
    code, text = said(capsys, make(tmp_path))
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1


def test_rows_that_cannot_be_written_are_one_line(tmp_path, capsys):
    code, text = said(capsys, folder_of(tmp_path, "snake"), "--json", tmp_path / "gone" / "rows.json")
    assert code == 2 and text.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("content", [b"", b"not a safetensors file"], ids=["empty", "text"])
def test_a_broken_file_is_an_error(tmp_path, capsys, content):
    (tmp_path / "snake.safetensors").write_bytes(content)
    code, text = said(capsys, tmp_path)
    assert code == 1 and "no file of recorded tensors" in text


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "neither manifest.json nor the metadata has upstream and config and call"),
        ({"config": "{}", "call": "{}"}, "has upstream: nothing to replay"),
        ({"upstream": "x.Snake", "config": "{}"}, "has call: nothing to replay"),
        ({"upstream": "x.Snake", "config": "{", "call": "{}"}, "no file of recorded tensors"),
        ({"upstream": "x.Snake", "config": "[]", "call": "{}"}, "config is [], not a dict"),
        ({"upstream": "a.new.Module", "config": "{}", "call": "{}"}, "'a.new.Module' names no part"),
        ({"upstream": "", "config": "{}", "call": "{}"}, "'' names no part"),
        ({"upstream": "x.Snake", "config": '{"alpha_logscale": true, "in_features": 10}', "call": "{}"}, "False only"),
        ({"upstream": "x.Snake", "config": '{"in_features": 10, "depth": 2}', "call": "{}"}, "depth"),
        ({"upstream": "x.Snake", "config": '{"in_features": 10}', "call": '{"flag": 1}'}, "flag"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, capsys, metadata, message):
    save_file(golden("snake").tensors, tmp_path / "snake.safetensors", metadata)
    code, text = said(capsys, tmp_path, "--side", "reference")
    assert code == 1
    first, total = text.splitlines()
    assert first.startswith("ERROR") and message in first and total == "1 ERROR of 1 tensors"


def test_an_input_that_nothing_reads_is_an_error():
    file = golden("snake")
    rows = judge_file(replace(file, inputs=file.inputs | {"gain": np.ones(1, np.float32)}), *SIDES)
    assert statuses(rows) == {"ERROR"} and "gain" in rows[0].note


def test_a_tensor_of_no_group_is_an_error(tmp_path, capsys):
    path = folder_of(tmp_path, "snake", manifest=False) / "n000.safetensors"
    about = {"upstream": "x.Snake", "config": '{"in_features": 10}', "call": "{}"}
    save_file(load_file(path) | {"surplus": np.ones(1, np.float32)}, path, about)
    code, text = said(capsys, tmp_path)
    assert code == 1 and "'surplus' is none of" in text


def test_a_model_without_weights_needs_a_file_beside_it(tmp_path, capsys):
    code, text = said(capsys, folder_of(tmp_path, "llm_bistream"))
    assert code == 1 and "has no weights, and no file beside it" in text


def test_a_request_that_is_no_word_is_an_error(others):
    call = others["driver"].call | {"rounds": ["backwards"]}
    rows = judge_file(replace(others["driver"], call=call), "reference")
    assert statuses(rows) == {"ERROR"} and "'backwards'" in rows[0].note


def test_nothing_but_skipped_rows_does_not_pass(tmp_path, capsys):
    file = golden("upstream_noise")
    write([replace(file, out={"uv_64": np.ones(64, np.float32)})], tmp_path)
    assert said(capsys, tmp_path)[0] == 1


def test_help_says_what_a_folder_holds(capsys):
    with pytest.raises(SystemExit):
        runner.main(["-h"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("manifest.json", "upstream", "out64.*", "w.*"))
