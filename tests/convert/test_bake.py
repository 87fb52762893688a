"""Folders with baked timesteps: same results without the weights that only see the time; damaged tables are refused."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from convert import bake, run
from convert.conversion import convert_folder
from convert.hub import find_source
from convert.quantize import Precision
from mlx_parity.sides.walk import walk
from parity_tests.models import Models
from parity_tests.walks import walks
from port.cosyvoice3 import CosyVoice3
from port.fast import modulation
from port.files import weights
from port.files.errors import Refused

pytestmark = pytest.mark.part("convert.bake")

TIMES = "flow.decoder.estimator.time_embed.times"
GATES = ("gate_msa", "shift_mlp", "scale_mlp", "gate_mlp")
TABLE = "flow.decoder.estimator.norm_out.linear.table"


@pytest.fixture(scope="module")
def source(official):
    return find_source(str(official))


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory):
    """A folder with weights, and one with tables as the command writes it."""
    scratch = tmp_path_factory.mktemp("converted")
    convert_folder(source, scratch / "plain")
    command = ["--hf-path", str(source.folder), "--mlx-path", str(scratch / "baked"), "--bake-timesteps"]
    assert run.main(command) == 0
    return scratch / "plain", scratch / "baked"


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def test_the_tables_are_those_that_the_port_makes(folders):
    plain, baked = folders
    model = weights.load(plain)
    modulation.bake(model.flow.decoder)
    expected, found = parameters(model), parameters(weights.load(baked))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert mx.array_equal(value, expected[name]), name


def test_baking_drops_only_what_sees_the_time_and_the_audit_says_so(folders):
    plain, baked = (parameters(weights.load(folder)) for folder in folders)
    gone = plain.keys() - baked.keys()
    assert gone == {n for n in plain if n.startswith(TIMES.removesuffix("times")) or "norm.linear." in n} | {
        n for n in plain if n.startswith("flow.decoder.estimator.norm_out.")
    }
    assert all(mx.array_equal(plain[name], baked[name]) for name in plain.keys() & baked.keys())
    audit = json.loads((folders[1] / "audit.json").read_text())
    assert audit["baked"] == {"timesteps": 10, "parameters": len(gone), "tensors": len(baked.keys() - plain.keys())}
    assert "baked into tables of 10 timesteps" in audit["verdict"]
    assert "baked" not in json.loads((folders[0] / "audit.json").read_text())["verdict"]
    # What the error of a conversion and the card read of a row; their own tests give them rows by hand.
    assert all(row.keys() == {"name", "kind", "status", "ratio", "message"} for row in audit["parity"])
    rows = {row["name"]: row["status"] for row in audit["parity"]}
    assert rows["walk.flow.chunked/flow.decoder.estimator.transformer_blocks.0.attn_norm.gate_msa"] == "PASS"
    assert {name for name, status in rows.items() if status != "PASS"} == {
        "walk.flow.chunked/flow.decoder.estimator.time_embed",
        "walk.flow.chunked/flow.decoder.estimator.time_embed.time_embed",
    }


@pytest.mark.meta
@pytest.mark.parametrize("name", ["walk.flow.full", "walk.flow.separate"])
def test_every_other_part_is_still_compared(source, folders, name):
    """Isolated parts that need the dropped weights are skipped; all else passes."""
    plan = walks(weights.load(folders[0]).config)[name]
    plain, baked = (
        {(row.name, row.kind): row.reading.status for row in walk(Models.load(source.folder, folder), plan)}
        for folder in folders
    )
    skipped = {key for key, status in baked.items() if status == "SKIP"}
    assert set(plain.values()) == {"PASS"}
    assert {status for key, status in baked.items() if key not in skipped} == {"PASS"}
    # One skip may stand for several outputs.
    assert {key for key in plain if key not in baked} <= {
        (f"{part}.{output}", kind) for part, kind in skipped for output in ("y", *GATES)
    } | {key for key in plain if "time_embed" in key[0]}
    assert all("time_embed" in part or kind == "isolated" for part, kind in skipped)
    assert all(part.endswith(("time_embed", "norm", "norm_out", ".0", ".1")) for part, _ in skipped)


def test_a_wrong_table_is_refused(source, tmp_path, monkeypatch, capsys):
    times = bake.step_times
    monkeypatch.setattr(bake, "step_times", lambda span: [time + 1e-3 for time in times(span)])
    command = ["--hf-path", str(source.folder), "--mlx-path", str(tmp_path / "out"), "--bake-timesteps"]
    assert run.main(command) == 1
    assert "not among the timesteps that were baked" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_swapped_layers_are_refused(source, tmp_path, monkeypatch, capsys):
    norms = bake.norms
    monkeypatch.setattr(bake, "norms", lambda dit: [*norms(dit)[1::-1], *norms(dit)[2:]])
    stored = bake.Bake.stored

    def swapped(self, name, array):
        for key, value in stored(self, name, array):
            yield key.translate({ord("0"): "1", ord("1"): "0"}) if key.endswith("table") else key, value

    monkeypatch.setattr(bake.Bake, "stored", swapped)
    command = ["--hf-path", str(source.folder), "--mlx-path", str(tmp_path / "out"), "--bake-timesteps"]
    assert run.main(command) == 1
    assert "parity: walk.flow" in capsys.readouterr().err


@pytest.mark.parametrize("precision", [Precision("float16"), Precision(bits={"flow": 8, "llm": 4}, group_size=32)])
def test_tables_stay_float32(source, folders, tmp_path, precision):
    convert_folder(source, tmp_path / "out", precision=precision, bake_timesteps=True)
    found, exact = parameters(weights.load(tmp_path / "out")), parameters(weights.load(folders[1]))
    for name in (name for name in exact if name.endswith((".table", ".times"))):
        assert mx.array_equal(found[name], exact[name]), name


def test_a_baked_model_is_saved_and_loaded(folders, tmp_path):
    model = CosyVoice3.from_pretrained(folders[0], bake_timesteps=True, plain=True).model
    weights.save(tmp_path / "again", model, model.config)
    assert parameters(weights.load(tmp_path / "again")).keys() == parameters(model).keys()
    again = CosyVoice3.from_pretrained(folders[1], bake_timesteps=True, plain=True).model  # it is baked already
    assert parameters(again).keys() == parameters(model).keys()


def test_times_that_another_machine_rounds_otherwise_are_found(folders):
    model = weights.load(folders[1])
    dit = model.flow.decoder.estimator
    times = np.array(dit.time_embed.times)
    found = modulation.tabulate(dit, np.nextafter(times, np.float32(2)).tolist())
    assert mx.array_equal(found[-1], modulation.tabulate(dit, times.tolist())[-1])
    with pytest.raises(ValueError, match=r"time 0\.5000 is not among"):
        modulation.tabulate(dit, [0.5])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(TABLE), f"tensor '{TABLE}' is missing"),
        (lambda tensors: tensors.pop(TIMES), "unknown tensor"),
        (lambda tensors: tensors.update({TIMES: mx.zeros(0)}), "0 baked timesteps; a model has 1 to 64"),
        (lambda tensors: tensors.update({TIMES: mx.zeros(65)}), "65 baked timesteps"),
        (lambda tensors: tensors.update({TIMES: mx.zeros((2, 5))}), r"has shape \[2, 5\]"),
        (lambda tensors: tensors.update({TABLE: tensors[TABLE][:9]}), r"has shape \[9, 2, 64\]"),
    ],
)
def test_damaged_tables(folders, tmp_path, change, said):
    model = weights.load(folders[1])
    tensors = parameters(model)
    change(tensors)
    weights.save(tmp_path / "out", tensors, model.config)
    with pytest.raises(Refused, match=said):
        weights.load(tmp_path / "out")
