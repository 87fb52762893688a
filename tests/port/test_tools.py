"""`benchmark`, `convert` and `verify`: what they print, and what they say where something is missing."""

import json
import re
from importlib.metadata import version

import mlx.core as mx
import pytest
from safetensors.numpy import load_file, save_file

from parity_tests import verify
from parity_tests.speech_support import copy_folder
from port.app import benchmark, suite
from port.fast.convolution import adds_whole_products
from tests.support.cli_support import assert_one_line

pytestmark = pytest.mark.part("app")


def test_benchmark_prints_a_table(run, model):
    code, out, _ = run("benchmark", "--model", model, "--seconds", 0.4, "--repeats", 1)
    first, *rest = out.splitlines()
    lines = [line for line in rest if line.startswith("|")]
    assert code == 0
    assert f"mlx {version('mlx')}, cosyvoice3-mlx" in first and "llm " in first
    assert {line.count("|") for line in lines} == {8}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:2] for row in rows] == [
        ["50 prompt tokens, 75 tokens to wave", "3.00"],
        ["text, whole", "0.40"],
        ["text, streamed", "0.40"],
    ]
    assert all(float(cell) > 0 for row in rows for cell in row[2:4])
    assert ("LD_PRELOAD" in out) is not adds_whole_products(mx.default_device().type)


@pytest.mark.parametrize("slow", [False, True], ids=["a fast BLAS", "the wheel's BLAS"])
def test_the_table_names_a_slow_blas(monkeypatch, slow):
    monkeypatch.setattr(benchmark, "adds_whole_products", lambda device: not slow)
    assert ("LD_PRELOAD" in benchmark.table({"machine": "a", "model": "b"}, [])) is slow


def test_benchmark_as_data(run, model, monkeypatch):
    """Whole and streamed speech has the length asked for, to the token, whatever the weights."""
    monkeypatch.setattr(benchmark, "fixture", lambda *_: {})
    code, out, _ = run("benchmark", "--model", model, "--seconds", 2.12, "--repeats", 1, "--json")
    whole, streamed = json.loads(out)["rows"][1:]
    assert code == 0
    assert whole["audio_s"] == streamed["audio_s"] == 2.12
    # Both are printed in thousandths.
    assert whole["real_time_factor"] == pytest.approx(whole["time_s"] / 2.12, abs=0.001)
    assert whole["first_audio_s"] == whole["time_s"] and "late_s" not in whole
    assert streamed["first_audio_s"] < streamed["time_s"]
    assert streamed["late_s"] < streamed["time_s"] - streamed["first_audio_s"]


@pytest.mark.parametrize(
    ("marks", "late"),
    [
        ([(1.0, 0.5), (1.3, 0.5), (1.6, 0.5)], -0.2),  # each in time
        ([(1.0, 0.5), (2.0, 2.0), (3.0, 1.0)], 0.5),  # the second came half a second after the first was played
        ([(1.0, 0.5), (1.1, 0.1), (2.0, 1.0)], 0.4),
    ],
)
def test_how_late_a_chunk_is(marks, late):
    assert benchmark.late(marks) == pytest.approx(late)


@pytest.mark.parametrize("flag", [("--seconds", "x"), ("--seconds", "nan"), ("--seconds", 1e9), ("--repeats", 0)])
def test_benchmark_refuses_impossible_numbers(run, tmp_path, flag):
    assert_one_line(run("benchmark", "--model", tmp_path, *flag), 2, f"{flag[0]}: '")


def test_convert_hands_its_arguments_over(run, tmp_path):
    code, out, _ = run("convert", "--help")
    assert code == 0
    assert "python -m port convert --hf-path" in out
    assert "--q-bits" in out
    code, out, err = run("convert", "--hf-path", tmp_path / "nowhere", "--mlx-path", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "nowhere: no such folder" in err


def test_verify(run, parity, model, tmp_path, monkeypatch):
    """A folder equals its checkpoint until a weight changes; its files are not touched."""
    monkeypatch.setattr(verify, "WALKS", ("walk.speaker",))
    checkpoint = ("--checkpoint", parity.models.source)
    code, out, _ = run("verify", "--model", model, *checkpoint)
    assert code == 0
    assert re.search(r"equals .*: (\d+) PASS of \1 tensors", out)
    damaged = copy_folder(parity.models, tmp_path / "damaged")
    path = next(path for path in damaged.glob("*.safetensors") if any(k.startswith("speaker") for k in load_file(path)))
    tensors = load_file(path)
    name = max((key for key in tensors if key.startswith("speaker")), key=lambda key: tensors[key].size)
    save_file(tensors | {name: tensors[name] * 1.01}, path, {"format": "mlx"})
    before = {file.name: file.read_bytes() for file in damaged.iterdir()}
    code, out, err = run("verify", "--model", damaged, *checkpoint)
    assert (code, out) == (1, "")
    assert re.search(r"^error: .*damaged: differs from .* FAIL.*; first \S+: ", err, re.M)
    assert {file.name: file.read_bytes() for file in damaged.iterdir()} == before


def test_verify_leaves_the_quality_of_a_folder_alone(run, parity, tmp_path, monkeypatch):
    """The audit records the file's hash, and another machine measures other numbers."""
    folder = copy_folder(parity.models, tmp_path / "mlx")
    (folder / "quality.json").write_text("as converted")

    def measured(source, folder):
        (folder / "quality.json").write_text("measured here")
        return [{"name": "x", "status": "PASS", "message": ""}]

    monkeypatch.setattr(verify, "verify_folder", measured)
    assert run("verify", "--model", folder, "--checkpoint", parity.models.source)[0] == 0
    assert (folder / "quality.json").read_text() == "as converted"


@pytest.mark.parametrize("arguments", [("convert", "--help"), ("verify", "--model", "x", "--checkpoint", "y")])
def test_without_the_extra(run, monkeypatch, arguments):
    monkeypatch.setattr(suite, "find_spec", lambda name: None if name == "torch" else name)
    said = f"{arguments[0]} needs torch; install the extra: pip install 'cosyvoice3-mlx[convert]'"
    assert_one_line(run(*arguments), 1, said)
