"""CAM++ against embeddings of the onnxruntime that the original pins: `golden/onnx.py` on `data/pinned`."""

import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from parity_tests.golden import __main__ as golden
from parity_tests.golden.judge import judge_pair
from port.frontend import speaker

pytestmark = pytest.mark.part("frontend.speaker.CAMPPlus")

EMBEDDED = Path(__file__).parent / "data" / "pinned"
FULL = Path(os.environ.get("COSYVOICE3_PINNED", Path(__file__).parents[2] / "shared" / "pinned"))
SIDES = pytest.mark.parametrize("side", ["reference", "port"])
SHORT = ("57", "203")  # frames that leave a last segment of fewer than 100


@pytest.fixture
def pair(tmp_path):
    for file in EMBEDDED.glob("campplus.*"):
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path / "campplus.safetensors"


def judge(path, side):
    return {row.tensor: row for row in judge_pair(path, side)}


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit(path, change):
    model = onnx.load(path.with_suffix(".onnx"))
    change(model.graph)
    onnx.save(model, path.with_suffix(".onnx"))


@SIDES
@pytest.mark.parametrize("folder", [EMBEDDED, FULL], ids=["embedded", "full"])
def test_the_speaker_encoder_is_that_of_the_pinned_onnxruntime(folder, side):
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    rows = judge(folder / "campplus.safetensors", side)
    assert {tensor: row.note for tensor, row in rows.items() if row.status != "PASS"} == {}
    lengths = {key.partition(".")[2] for key in load_file(folder / "campplus.safetensors")}
    assert rows.keys() >= {f"out.{length}" for length in lengths}
    if side == "reference":  # and not that of 1.32, where the two differ
        assert rows.keys() >= {f"out132.{length}" for length in lengths - {"200"}}


def test_the_command_takes_such_a_folder(pair, capsys):
    assert golden.main([str(pair.parent), "--side", "both"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("PASS") >= 8 and "FAIL" not in printed
    pair.unlink()
    assert golden.main([str(pair.parent)]) == 1  # an ONNX file alone


def test_a_port_that_divides_by_what_a_segment_holds_fails(monkeypatch):
    def held(self, x):
        means = [x[:, i : i + 100].mean(axis=1, keepdims=True) for i in range(0, x.shape[1], 100)]
        return mx.repeat(mx.concatenate(means, axis=1), 100, axis=1)[:, : x.shape[1]]

    monkeypatch.setattr(speaker.CAMLayer, "seg_pooling", held)
    rows = judge(EMBEDDED / "campplus.safetensors", "port")
    assert {tensor for tensor, row in rows.items() if row.status == "FAIL"} == {f"out.{length}" for length in SHORT}


@SIDES
def test_numbers_of_the_other_onnxruntime_are_no_truth(pair, side):
    rewrite(pair, lambda t: t.update({f"out.{length}": t[f"out132.{length}"] for length in SHORT}))
    rows = judge(pair, side)
    assert {tensor: row.status for tensor, row in rows.items() if row.status != "PASS"} == {
        f"out.{length}": "FAIL" for length in SHORT
    }


@pytest.mark.parametrize("side", [pytest.param("reference", marks=pytest.mark.part("convert")), "port"])
def test_a_file_that_does_not_count_padding_is_followed(pair, side):
    """Without `count_include_pad` (ONNX's default is 0) the sides must give what 1.32 gives for the original file."""
    rewrite(pair, lambda t: t.update({f"out.{length}": t[f"out132.{length}"] for length in SHORT}))

    def without(graph):
        for node in graph.node:
            if node.op_type == "AveragePool":
                kept = [a for a in node.attribute if a.name != "count_include_pad"]
                del node.attribute[:]
                node.attribute.extend(kept)

    edit(pair, without)
    rows = judge(pair, side)
    assert rows.keys() == {"out.57", "out.200", "out.203"}
    assert {row.status for row in rows.values()} == {"PASS"}


def _drop(key):
    return lambda tensors: tensors.pop(key)


@SIDES
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("out.57"), "in.57 has no out.57"),
        (_drop("in.57"), "has no in.57"),
        (lambda t: t.update({"w.57": t["out.57"]}), "unknown tensor"),
        (lambda t: t.update({"out.57": t["out.57"][:, :5].copy()}), "shape"),
        (lambda t: t.update({"out.57": t["out.57"][:, :0].copy()}), ""),
        (lambda t: t.update({"in.57": t["in.57"][:, :2].copy()}), "too few"),
        (lambda t: t.update({"out.57": np.full_like(t["out.57"], np.nan)}), ""),
    ],
)
def test_what_is_no_pair_is_an_error(pair, side, change, message):
    rewrite(pair, change)
    rows = judge(pair, side).values()
    assert any(row.status == "ERROR" and message in row.note and "\n" not in row.note for row in rows), rows
