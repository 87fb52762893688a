"""Layouts of checkpoints that people have: each converts and passes the real comparison, or a line says why not."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert import run
from convert.conversion import convert_folder
from convert.hub import find_source
from port.files.errors import Refused
from tests.convert.test_convert_folders import EDITS, saved_by
from tests.convert.test_mapping import folded
from tests.support.convert_support import arrays_of, resave

pytestmark = pytest.mark.part("convert.layouts")

HEAD, CONSTANT = "llm.model.lm_head.weight", "decoder.estimator.rotary_embed.inv_freq"
FILES = ("llm.pt", "flow.pt", "hift.pt")
ROOTS = {"llm.pt": "llm.", "flow.pt": "flow.", "hift.pt": "vocoder."}


def old_weight_norm(state):
    names = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


def before(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def without(key, state):
    return {name: value for name, value in state.items() if name != key}


def compiled(state):
    """`torch.compile` of some module within."""
    return {key.replace(".", "._orig_mod.", 1): value for key, value in state.items()}


def as_dtype(dtype, state):
    return {key: value.to(dtype) for key, value in state.items()}


def with_discriminator(state):
    other = {
        "discriminator.mpd.0.convs.0.weight": torch.full((2, 3), float("nan")),
        "discriminator.mrd.bias": torch.ones(1),
    }
    return before("generator.", state) | other


DEEPSPEED = {"grad_norm": torch.tensor(2.5), "ds_version": "0.15", "global_steps": 7, "buffer_names": [], "lr": None}
DEEPSPEED |= {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "sparse_tensor_module_names": {"a"}}
COUNTED = {"epoch": torch.tensor(7), "step": torch.tensor([9], dtype=torch.int32)}
# By name: tolerance relative to the weights of the plain checkpoint, and the change to each of FILES.
LAYOUTS: dict[str, Any] = {
    "trainers": (
        0,
        lambda s: {"module": s, **DEEPSPEED},
        lambda s: before("module.", s) | {"epoch": 7, "step": torch.tensor(1200), "grad_norm": 1.5},
        lambda s: before("generator.", s),
    ),
    "without what is never used": (
        0,
        lambda s: before("module.", without(HEAD, s)),
        lambda s: {"state_dict": without(CONSTANT, s), "callbacks": {}},
        lambda s: before("module.", old_weight_norm(s)),
    ),
    "compiled, folded": (
        1e-6,
        lambda s: {"model_state_dict": before("_orig_mod.", s), "epoch": 2},
        lambda s: compiled(before("module.", s)),
        folded,
    ),
    "a vocoder's whole training": (
        0,
        lambda s: {"model": s, "loss": torch.tensor(0.5)},
        lambda s: {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in s.items()},
        lambda s: with_discriminator(old_weight_norm(s)),
    ),
    "one in another": (
        0,
        lambda s: {"state_dict": {"module": compiled(s)}, "epoch": 1},
        lambda s: {"model": {"state_dict": before("_orig_mod.module.", s)}},
        lambda s: {
            "generator": {k: v.double() for k, v in before("module.generator.", s).items()},
            "discriminator": {"a.weight": torch.ones(2)},
        },
    ),
    "bfloat16": (2**-8, *[lambda s: as_dtype(torch.bfloat16, s)] * 3),
    "float16": (2**-11, *[lambda s: as_dtype(torch.float16, s)] * 3),
    "safetensors": (
        2**-8,
        lambda s: without(HEAD, s) | COUNTED,
        lambda s: as_dtype(torch.bfloat16, s),
        lambda s: as_dtype(torch.float64, before("generator.", s)),
    ),
}


@pytest.fixture(scope="module")
def plain(official, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    assert run.main(["--hf-path", str(official), "--mlx-path", str(out)]) == 0
    return arrays_of(out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_converts_and_passes_the_comparison(source, tmp_path, plain, capsys, layout):
    tolerance, *changes = LAYOUTS[layout]
    for file, change in zip(FILES, changes, strict=True):
        resave(source / file, change)
        if layout == "safetensors":
            state = {key: value.contiguous() for key, value in torch.load(source / file).items()}
            save_file(state, (source / file).with_suffix(".safetensors"))
            (source / file).unlink()
    assert run.main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert re.search(r"parity (\d+) of \1 tensors pass$", said.strip()), said
    for key, file in ((HEAD, "llm.pt"), (CONSTANT, "flow.pt")):
        dropped = json.loads((tmp_path / "out" / "audit.json").read_text())["dropped"]
        lacks = key not in "".join(dropped).replace("_orig_mod.", "")
        assert lacks == (f"note: the checkpoint has no {key}" in said), file
    found = arrays_of(tmp_path / "out")
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        got, wanted = np.array(found[name], np.float64), np.array(value, np.float64)
        if value.ndim == 4 and "condnet" in name:  # stored as two summands
            got, wanted = got.sum(0), wanted.sum(0)
        assert np.abs(got - wanted).max() <= 2 * tolerance * np.abs(wanted).max(), name
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    ignored = {name: file["ignored"] for name, file in audit["files"].items()}
    if layout == "trainers":
        assert set(ignored["llm"]) == set(DEEPSPEED)
        assert set(ignored["flow"]) == {"epoch", "step", "grad_norm"}
    if layout == "safetensors":
        assert set(ignored["llm"]) == set(COUNTED)
    if layout == "a vocoder's whole training":
        assert [key for key in audit["dropped"] if key.startswith("discriminator.")]
        assert "training" in audit["dropped"]["discriminator.mrd.bias"]


@pytest.mark.parametrize("version", [4, 5])
def test_text_files_as_people_have_them_convert_and_pass_the_comparison(source, tmp_path, plain, capsys, version):
    """A backbone's configuration of newer transformers, and a yaml edited in several places."""
    path = source / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps(saved_by(version, json.loads(path.read_text()))))
    path = source / "cosyvoice3.yaml"
    text = path.read_text()
    for old, new in EDITS[:4]:  # those after it edit the same line
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    assert run.main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert re.search(r"parity (\d+) of \1 tensors pass$", said.strip()), said
    found = arrays_of(tmp_path / "out")
    assert found.keys() == plain.keys()
    assert all(mx.array_equal(found[name], value) for name, value in plain.items())


@pytest.mark.parametrize("file", FILES)
def test_the_comparison_sees_other_weights_in_a_layout(source, tmp_path, monkeypatch, file):
    """The port has the plain weights, the reference changed ones in another layout: the comparison fails."""
    damaged = Path(shutil.copytree(source, tmp_path / "damaged"))
    state = torch.load(damaged / file)
    key = next(k for k, v in state.items() if v.dim() > 1 and k != HEAD and "embed" not in k)
    torch.save(before("module._orig_mod.", state | {key: state[key] * 1.01}), damaged / file)
    real = run.parity_check
    with pytest.raises(Refused, match="is FAIL"):
        convert_folder(find_source(str(source)), tmp_path / "out", lambda _, folder: real(damaged, folder))


def test_half_precision_of_a_half_precision_checkpoint(source, tmp_path, capsys):
    for file in FILES:
        resave(source / file, lambda s: as_dtype(torch.bfloat16, s))
    flags = ["--dtype", "bfloat16", "-q", "--q-group-size", "32"]
    assert run.main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), *flags]) == 0
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "audit.json").read_text())["parity"]
    reduced = sum(row["status"] == "REDUCED" for row in rows)
    passed = sum(row["status"] == "PASS" for row in rows)
    assert reduced
    assert f"parity {passed} of {len(rows)} tensors pass, {reduced} REDUCED" in said
    assert "quality.json" in said


@pytest.mark.parametrize(
    ("file", "key", "said"),
    [
        (
            "llm.pt",
            "base_model.model.llm.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "merge the adapter",
        ),
        ("llm.pt", "llm.model.model.layers.0.self_attn.q_proj.base_layer.weight", "merge the adapter"),
        ("flow.pt", "decoder.estimator.transformer_blocks.0.attn.to_q.lora_up.weight", "merge the adapter"),
        ("hift.pt", "conv_pre.lora_B.weight", "merge the adapter"),
        ("llm.pt", "llm.model.model.layers.0.self_attn.q_proj.vera_lambda_b", "merge the adapter"),
        ("llm.pt", "base_model.vera_A.default", "merge the adapter"),
        ("flow.pt", "decoder.estimator.transformer_blocks.0.attn.to_q.boft_R.default", "merge the adapter"),
        ("llm.pt", "discriminator.x.weight", "unknown tensor"),
        ("flow.pt", "generator.x.weight", "unknown tensor"),
    ],
)
def test_tensors_of_other_training(source, refuses, file, key, said):
    resave(source / file, lambda s: s | {key: torch.ones(2, 2)})
    refuses(source, said, key)


@pytest.mark.parametrize("wrapper", ["net_g", "net", "ema", "params", "llm", "model_state", "training.model"])
def test_a_wrapper_of_another_name(source, refuses, wrapper):
    """Some trainers wrap the tensors under another name, beside a loss."""

    def wrap(state):
        for name in reversed(wrapper.split(".")):
            state = {name: state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "loss": torch.ones(1)}
        return state | {"step": torch.tensor(3), "lr": 1e-4}

    resave(source / "flow.pt", wrap)
    refuses(source, f"holds no tensors itself; its entry '{wrapper}' does: save that alone")


def test_a_file_without_tensors(source, conversion):
    resave(source / "flow.pt", lambda _: {"epoch": 3, "args": {"lr": 1}})
    assert conversion(source)[1].endswith("flow.pt: holds no tensors")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("prefix", ["model.", "ema_model.", "vocoder.", "base_model.model."])
def test_a_prefix_of_every_name(source, refuses, file, prefix):
    resave(source / file, lambda s: before(prefix, s))
    refuses(source, f"every name begins with '{prefix}'; save the tensors under their names without it")
