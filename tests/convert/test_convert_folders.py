"""Configurations and folders as people have them: accepted, or refused in one line that says what to do."""

import json

import mlx.core as mx
import pytest

from convert import run
from convert.conversion import convert_folder
from convert.hub import find_source, needed_files
from convert.official import load_config
from port.cosyvoice3 import CosyVoice3
from port.files.errors import Refused
from tests.support.convert_support import CONFIG, arrays_of

pytestmark = pytest.mark.robust

# ---- the backbone's configuration


def saved_by(version, content):
    """`content` as transformers 4 or 5 saves it."""
    content = dict(content)
    layers = ["full_attention"] * content["num_hidden_layers"]
    if version == 4:
        more = {"layer_types": layers, "rope_scaling": None, "_name_or_path": "x", "_attn_implementation_autoset": True}
        return content | more | {"pad_token_id": None}
    theta = content.pop("rope_theta")
    content.pop("torch_dtype")
    head = content["hidden_size"] // content["num_attention_heads"]
    rope = {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    return content | rope | {"layer_types": layers, "dtype": "bfloat16", "sliding_window": None, "head_dim": head}


@pytest.mark.parametrize("version", [4, 5])
def test_the_backbones_configuration_of_newer_transformers(source, version):
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
def test_another_backbone(source, refuses, change, named):
    path = source / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refuses(source, named)


# ---- the yaml as people edit it


EDITS = [
    ("sample_rate: 24000", "rate: &rate 24000\nsample_rate: *rate"),
    ("llm_output_size: 64", "llm_output_size: !ref <llm_input_size>"),
    ("chunk_size: ", "more: &more [1, 3]\nless: {<<: {a: 1}, b: *more}\nchunk_size: "),
    ("!ref <chunk_size> * <token_mel_ratio>", "!ref <chunk_size> * 2"),
    ("!ref <chunk_size> * <token_mel_ratio>", "!ref 2 * <chunk_size>"),
    ("!ref <chunk_size> * <token_mel_ratio>", "!ref (<chunk_size> + <chunk_size>)"),
    ("!ref <chunk_size> * <token_mel_ratio>", "!ref <chunk_size> * 4 // 2"),
]


@pytest.mark.parametrize(("old", "new"), EDITS)
def test_yaml_as_people_edit_it(source, old, new):
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
        "!ref <chunk_size> if 1 else 2",
        "!ref " + " * ".join(["<chunk_size>"] * 15),
        "!ref " + "(" * 150 + "<chunk_size>" + ")" * 150,
        "!ref <itself>",
    ],
)
def test_yaml_that_computes_too_much(source, refuses, new):
    path = source / "cosyvoice3.yaml"
    text = path.read_text().replace("!ref <chunk_size> * <token_mel_ratio>", new, 1)
    path.write_text(text + "\nitself: !ref <itself>\n")
    refuses(source, "cosyvoice3.yaml")


def test_a_limit_of_8000_hz_says_what_to_do(source, conversion):
    path = source / "cosyvoice3.yaml"
    path.write_text(path.read_text().replace("fmax: null", "fmax: 8000", 1))
    assert "write `fmax: null`" in conversion(source)[1]


# ---- folders that are something else


@pytest.mark.parametrize("name", needed_files())
def test_git_lfs_pointer(source, refuses, name):
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    refuses(source, name, "git lfs pull")


@pytest.mark.parametrize(
    "levels", [("Fun-CosyVoice3-0.5B",), ("snapshots", "abc"), ("hub", "models--x--y", "snapshots", "b")]
)
def test_a_folder_that_contains_a_checkpoint(source, refuses, tmp_path, levels):
    top = tmp_path / "top"
    inner = top.joinpath(*levels)
    inner.parent.mkdir(parents=True)
    source.rename(inner)
    (top / "refs").mkdir()
    refuses(top if len(levels) < 4 else top / "hub", f"give {inner}")


def test_the_tokenizer_of_training_alone(source, refuses):
    (source / "speech_tokenizer_v3.onnx").rename(source / "speech_tokenizer_v3.batch.onnx")
    refuses(source, "speech_tokenizer_v3.batch.onnx is the variant for training, download speech_tokenizer_v3.onnx")


def test_cosyvoice_2_is_refused(source, conversion):
    (source / "cosyvoice3.yaml").rename(source / "cosyvoice2.yaml")
    (source / "llm.pt").unlink()
    assert "only CosyVoice 3 is converted" in conversion(source)[1]


def test_a_mistyped_folder(source, refuses):
    refuses(source.parent / "sourse", f"did you mean {source}", code=2)


def test_a_mistyped_relative_folder(source, refuses, monkeypatch):
    monkeypatch.chdir(source.parent.parent)
    refuses(f"{source.parent.name}/sourse", "no such folder; did you mean", code=2)


@pytest.mark.parametrize("name", ["./nothing", "../nothing", "/nothing/at/all", "~/nothing", "no thing/here"])
def test_a_path_that_is_no_hub_id(refuses, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuses(name, f"{name}: no such folder; give a folder, or a hub id", code=2)


def test_swapped_paths(source, capsys, tmp_path):
    """The error must not advise to delete the checkpoint."""
    assert run.main(["--hf-path", str(tmp_path / "new"), "--mlx-path", str(source)]) == 2
    line = capsys.readouterr().err
    assert "is a checkpoint" in line and "give it to --hf-path" in line
    assert "remove" not in line and "delete" not in line
    assert sorted(path.name for path in source.iterdir()) == sorted({name.split("/")[0] for name in needed_files()})


def test_a_converted_folder_is_no_source(source, tmp_path, conversion):
    folder = tmp_path / "converted"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (folder / "model.safetensors").write_bytes(b"")
    assert "is already converted: --model takes it" in conversion(folder)[1]


@pytest.mark.parametrize("settings", [{"group_size": 0, "bits": 4}, {"group_size": 32, "bits": 0}])
def test_a_converted_folder_that_divides_by_zero(official, tmp_path, settings):
    """MLX divides by the group size: zero once ended the process with SIGFPE."""
    folder = tmp_path / "out"
    convert_folder(find_source(str(official)), folder)
    layer = "llm.qwen2.layers.0.mlp.gate_proj"
    tensors = arrays_of(folder) | {f"{layer}.scales": mx.zeros((160, 2))}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    content = json.loads((folder / "config.json").read_text())
    for quantization in (settings, {"group_size": 64, "bits": 4, layer: settings}):
        (folder / "config.json").write_text(json.dumps(content | {"quantization": quantization}))
        with pytest.raises(Refused, match="quantization"):
            CosyVoice3.from_pretrained(folder)
