"""Layouts in which people have a checkpoint: each converts and passes the real comparison, or a line says why not."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert import run
from convert.hub import needed_files
from parity_tests.convert_support import CONFIG, resave
from parity_tests.test_mapping import folded
from port.config import ConfigError
from port.cosyvoice3 import CosyVoice3
from port.storage import WeightsError

pytestmark = pytest.mark.meta
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
# By name: what each file holds instead, and how exactly the converted weights are those of the plain checkpoint.
LAYOUTS = {
    "trainers": (
        {
            "llm.pt": lambda s: {"module": s, **DEEPSPEED},
            "flow.pt": lambda s: before("module.", s) | {"epoch": 7, "step": torch.tensor(1200), "grad_norm": 1.5},
            "hift.pt": lambda s: before("generator.", s),
        },
        0,
    ),
    "without what is never used": (
        {
            "llm.pt": lambda s: before("module.", without(HEAD, s)),
            "flow.pt": lambda s: {"state_dict": without(CONSTANT, s), "callbacks": {}},
            "hift.pt": lambda s: before("module.", old_weight_norm(s)),
        },
        0,
    ),
    "compiled, folded": (
        {
            "llm.pt": lambda s: {"model_state_dict": before("_orig_mod.", s), "epoch": 2},
            "flow.pt": lambda s: compiled(before("module.", s)),
            "hift.pt": folded,
        },
        1e-6,
    ),
    "a vocoder's whole training": (
        {
            "llm.pt": lambda s: {"model": s, "loss": torch.tensor(0.5)},
            "flow.pt": lambda s: {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in s.items()},
            "hift.pt": lambda s: with_discriminator(old_weight_norm(s)),
        },
        0,
    ),
    "one in another": (
        {
            "llm.pt": lambda s: {"state_dict": {"module": compiled(s)}, "epoch": 1},
            "flow.pt": lambda s: {"model": {"state_dict": before("_orig_mod.module.", s)}},
            "hift.pt": lambda s: {
                "generator": {k: v.double() for k, v in before("module.generator.", s).items()},
                "discriminator": {"a.weight": torch.ones(2)},
            },
        },
        0,
    ),
    "bfloat16": (dict.fromkeys(FILES, lambda s: as_dtype(torch.bfloat16, s)), 2**-8),
    "float16": (dict.fromkeys(FILES, lambda s: as_dtype(torch.float16, s)), 2**-11),
    "safetensors": (
        {
            "llm.pt": lambda s: without(HEAD, s),
            "flow.pt": lambda s: as_dtype(torch.bfloat16, s),
            "hift.pt": lambda s: before("generator.", s),
        },
        2**-8,
    ),
}


@pytest.fixture(scope="module")
def plain(official, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    assert run.main(["--hf-path", str(official), "--mlx-path", str(out)]) == 0
    return mx.load(str(out / "model.safetensors"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_converts_and_passes_the_comparison(source, tmp_path, plain, capsys, layout):
    changes, tolerance = LAYOUTS[layout]
    for file, change in changes.items():
        resave(source / file, change)
        if layout == "safetensors":
            state = {key: value.contiguous() for key, value in torch.load(source / file).items()}
            save_file(state, (source / file).with_suffix(".safetensors"))
            (source / file).unlink()
    assert run.main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert "267 of 267 checkpoints pass" in capsys.readouterr().out
    found = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        got, wanted = np.array(found[name], np.float64), np.array(value, np.float64)
        if value.ndim == 4 and "condnet" in name:  # two summands
            got, wanted = got.sum(0), wanted.sum(0)
        assert np.abs(got - wanted).max() <= 2 * tolerance * np.abs(wanted).max(), name
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    ignored = {name: file["ignored"] for name, file in audit["files"].items()}
    if layout == "trainers":
        assert set(ignored["llm"]) == set(DEEPSPEED)
        assert set(ignored["flow"]) == {"epoch", "step", "grad_norm"}
    if layout == "a vocoder's whole training":
        assert [key for key in audit["dropped"] if key.startswith("discriminator.")]
        assert "training" in audit["dropped"]["discriminator.mrd.bias"]


@pytest.mark.parametrize("file", FILES)
def test_the_comparison_sees_other_weights_in_a_layout(source, tmp_path, monkeypatch, file):
    """The port filled from the plain file, the reference from a changed one of another layout: told apart."""
    spoiled = Path(shutil.copytree(source, tmp_path / "spoiled"))
    state = torch.load(spoiled / file)
    key = next(k for k, v in state.items() if v.dim() > 1 and k not in (HEAD,) and "embed" not in k)
    torch.save(before("module._orig_mod.", state | {key: state[key] * 1.01}), spoiled / file)
    real = run.parity_check
    with pytest.raises(run.ParityError, match="is FAIL"):
        run.convert_folder(run.find_source(str(source)), tmp_path / "out", lambda _, folder: real(spoiled, folder))


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
    assert f"parity {passed} of {len(rows)} checkpoints pass, {reduced} REDUCED" in said
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
        ("llm.pt", "discriminator.x.weight", "unknown tensor"),
        ("flow.pt", "generator.x.weight", "unknown tensor"),
    ],
)
def test_tensors_of_other_training(source, conversion, file, key, said):
    resave(source / file, lambda s: s | {key: torch.ones(2, 2)})
    code, line = conversion(source)
    assert code == 1
    assert said in line
    assert key in line


# ---- the backbone's configuration


def saved_by(version, content):
    """As transformers 4 and 5 save what `content` says."""
    content = dict(content)
    layers = ["full_attention"] * content["num_hidden_layers"]
    if version == 4:
        return content | {"layer_types": layers, "rope_scaling": None, "_name_or_path": "x", "pad_token_id": None}
    theta = content.pop("rope_theta")
    content.pop("torch_dtype")
    head = content["hidden_size"] // content["num_attention_heads"]
    rope = {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    return content | rope | {"layer_types": layers, "dtype": "bfloat16", "sliding_window": None, "head_dim": head}


@pytest.mark.parametrize("version", [4, 5])
def test_the_backbones_configuration_of_newer_transformers(source, version):
    from convert.official import load_config

    path = source / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps(saved_by(version, json.loads(path.read_text()))))
    assert load_config(source) == CONFIG


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": 2}, "layer_types"),
        ({"head_dim": 64}, "head_dim"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"rope_theta": 1e6, "factor": 4}}, "rope_parameters.factor"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta"),
    ],
)
def test_another_backbone(source, conversion, change, named):
    path = source / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, line = conversion(source)
    assert code == 1
    assert named in line


# ---- the yaml as people edit it


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("!ref <chunk_size> * <token_mel_ratio>", "!ref <chunk_size> * 2"),
        ("!ref <chunk_size> * <token_mel_ratio>", "!ref 2 * <chunk_size>"),
        ("!ref <chunk_size> * <token_mel_ratio>", "!ref (<chunk_size> + <chunk_size>)"),
        ("!ref <chunk_size> * <token_mel_ratio>", "!ref <chunk_size> * 4 // 2"),
        ("pretrain_path: !ref <qwen_pretrain_path>", "pretrain_path: !ref <qwen_pretrain_path>/CosyVoice-BlankEN"),
        ("sample_rate: 24000", "rate: &rate 24000\nsample_rate: *rate"),
        ("llm_output_size: 64", "llm_output_size: !ref <llm_input_size>"),
        ("chunk_size: ", "more: &more [1, 3]\nless: {<<: {a: 1}, b: *more}\nchunk_size: "),
    ],
)
def test_yaml_as_people_edit_it(source, old, new):
    from convert.official import load_config

    path = source / "cosyvoice3.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert load_config(source) == CONFIG


@pytest.mark.parametrize(
    "new",
    [
        "!ref <chunk_size> ** 2",
        "!ref <chunk_size>()",
        "!ref <chunk_size> * x",
        "!ref <chunk_size> / 0",
        "!ref <chunk_size> * <token_mel_ratio>.real",
        "!ref __import__('os')",
        "!ref <chunk_size> if 1 else 2",
        "!ref " + " * ".join(["<chunk_size>"] * 15),
        "!ref " + "(" * 150 + "<chunk_size>" + ")" * 150,
        "!ref <itself>",
    ],
)
def test_yaml_that_computes_too_much(source, conversion, new):
    path = source / "cosyvoice3.yaml"
    text = path.read_text().replace("!ref <chunk_size> * <token_mel_ratio>", new, 1)
    path.write_text(text + "\nitself: !ref <itself>\n")
    code, line = conversion(source)
    assert code == 1
    assert "cosyvoice3.yaml" in line


def test_a_limit_of_8000_hz_says_what_to_do(source, conversion):
    path = source / "cosyvoice3.yaml"
    path.write_text(path.read_text().replace("fmax: null", "fmax: 8000", 1))
    assert "write `fmax: null`" in conversion(source)[1]


# ---- folders that are something else


@pytest.mark.parametrize("name", needed_files())
def test_git_lfs_pointer(source, conversion, name):
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    code, line = conversion(source)
    assert code == 1
    assert name in line and "git lfs pull" in line


@pytest.mark.parametrize(
    "levels", [("Fun-CosyVoice3-0.5B",), ("snapshots", "abc"), ("hub", "models--x--y", "snapshots", "b")]
)
def test_a_folder_around_a_checkpoint(source, conversion, tmp_path, levels):
    top = tmp_path / "top"
    inner = top.joinpath(*levels)
    inner.parent.mkdir(parents=True)
    source.rename(inner)
    (top / "refs").mkdir()
    code, line = conversion(top if len(levels) < 4 else top / "hub")
    assert code == 1
    assert f"give {inner}" in line


def test_the_tokenizer_of_training_alone(source, conversion):
    (source / "speech_tokenizer_v3.onnx").rename(source / "speech_tokenizer_v3.batch.onnx")
    code, line = conversion(source)
    assert code == 1
    assert "speech_tokenizer_v3.batch.onnx is the variant for training, download speech_tokenizer_v3.onnx" in line


def test_another_generation(source, conversion):
    (source / "cosyvoice3.yaml").rename(source / "cosyvoice2.yaml")
    (source / "llm.pt").unlink()
    assert "only CosyVoice 3 is converted" in conversion(source)[1]


def test_a_mistyped_folder(source, conversion):
    code, line = conversion(source.parent / "sourse")
    assert code == 2
    assert f"did you mean {source}" in line


def test_a_mistyped_relative_folder(source, conversion, monkeypatch):
    monkeypatch.chdir(source.parent.parent)
    code, line = conversion(f"{source.parent.name}/sourse")
    assert code == 2
    assert "no such folder; did you mean" in line


@pytest.mark.parametrize("name", ["./nothing", "../nothing", "/nothing/at/all", "~/nothing", "no thing/here"])
def test_a_path_that_is_no_hub_id(conversion, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, line = conversion(name)
    assert code == 2
    assert name in line and "folder" in line


def test_exchanged_paths(source, capsys, tmp_path):
    """Never the advice to delete a checkpoint."""
    assert run.main(["--hf-path", str(tmp_path / "new"), "--mlx-path", str(source)]) == 2
    line = capsys.readouterr().err
    assert "is a checkpoint" in line and "--hf-path takes it" in line
    assert "remove" not in line and "delete" not in line
    assert sorted(path.name for path in source.iterdir()) == sorted({name.split("/")[0] for name in needed_files()})


def test_a_converted_folder_is_no_source(source, tmp_path, conversion):
    folder = tmp_path / "converted"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (folder / "model.safetensors").write_bytes(b"")
    assert "is converted already: give it to --model" in conversion(folder)[1]


@pytest.mark.parametrize("settings", [{"group_size": 0, "bits": 4}, {"group_size": 32, "bits": 0}])
def test_a_converted_folder_that_divides_by_zero(official, tmp_path, settings):
    """MLX divides by the group size: SIGFPE ended the process."""
    folder = tmp_path / "out"
    run.convert_folder(
        run.find_source(str(official)), folder, lambda *_: [{"checkpoint": "none here", "status": "PASS"}]
    )
    layer = "llm.qwen2.layers.0.mlp.gate_proj"
    tensors = dict(mx.load(str(folder / "model.safetensors"))) | {f"{layer}.scales": mx.zeros((160, 2))}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    content = json.loads((folder / "config.json").read_text())
    for quantization in (settings, {"group_size": 64, "bits": 4, layer: settings}):
        (folder / "config.json").write_text(json.dumps(content | {"quantization": quantization}))
        with pytest.raises((WeightsError, ConfigError), match="quantization"):
            CosyVoice3.from_pretrained(folder)
