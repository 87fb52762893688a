"""Checkpoints and folders that a conversion refuses: one line, exit code 1 or 2, and nothing is left behind."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from convert.checkpoint import Tagged, read_yaml
from convert.hub import needed_files
from port.files.errors import Refused
from tests.support.convert_support import resave

pytestmark = [pytest.mark.robust, pytest.mark.part("convert")]


class Touches:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize("name", needed_files())
def test_missing_file(source, conversion, name):
    (source / name).unlink()
    code, line = conversion(source)
    assert code == 1
    assert Path(name).name in line
    assert "not found" in line


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_truncated_file(source, conversion, kept):
    path = source / "hift.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    code, line = conversion(source)
    assert code == 1
    assert "hift.pt: truncated" in line


def test_pickle_with_code_is_not_run(source, conversion, tmp_path):
    touched = tmp_path / "touched"
    resave(source / "flow.pt", lambda state: state | {"extra": Touches(touched)})
    code, line = conversion(source)
    assert code == 1
    assert "flow.pt: refused, its pickle asks for posix.system" in line
    assert not touched.exists()


def test_bare_pickle_is_not_run(source, conversion, tmp_path):
    touched = tmp_path / "touched"
    (source / "flow.pt").write_bytes(pickle.dumps(Touches(touched)))
    assert conversion(source)[0] == 1
    assert not touched.exists()


@pytest.mark.parametrize(
    "text",
    [
        "x: !apply:os.system ['touch {touched}']",
        "x: !!python/object/apply:os.system ['touch {touched}']",
        "x: !!python/name:os.system",
        "x: {{y: [1, !apply:subprocess.run [touch, '{touched}']]}}",
        "x: !include:other.yaml",
        "x: !copy <llm>",
        "x: !apply:random.seed.__init__ [1]",
    ],
)
def test_yaml_tag_that_would_run_code(source, conversion, tmp_path, text):
    touched = tmp_path / "touched"
    path = source / "cosyvoice3.yaml"
    path.write_text(path.read_text() + text.format(touched=touched) + "\n")
    code, line = conversion(source)
    assert code == 1
    assert "would run code; refused" in line
    assert f"line {len(path.read_text().splitlines())}" in line
    assert not touched.exists()


@pytest.mark.parametrize(
    "text", ["x: [1", "- 1\n- 2\n", "\x00", "a: &a [*a]\n", "[" * 1500, "x: 2000-13-45\n", "a: !new:x.y ["]
)
def test_yaml_that_is_not_usable(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(Refused, match=r"bad\.yaml") as refusal:
        read_yaml(path)
    assert "\n" not in str(refusal.value)


def test_tags_are_data(tmp_path):
    (tmp_path / "a.yaml").write_text("x: !new:os.system {a: 1}\ny: !name:a.b\nz: !apply:random.seed [1986]\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "x": Tagged("new", "os.system", {"a": 1}),
        "y": Tagged("name", "a.b", None),
        "z": Tagged("apply", "random.seed", [1986]),
    }


def test_wrong_shape(source, conversion):
    resave(source / "flow.pt", lambda s: s | {"input_embedding.weight": s["input_embedding.weight"][:-1].clone()})
    code, line = conversion(source)
    assert code == 1
    assert "input_embedding.weight [6560, 80]" in line
    assert "[6561, 80]" in line


def test_wrong_rank(source, conversion):
    resave(source / "hift.pt", lambda s: s | {"source_downs.0.weight": s["source_downs.0.weight"][0]})
    code, line = conversion(source)
    assert code == 1
    assert "source_downs.0.weight" in line


def test_unknown_extra_tensor(source, conversion):
    resave(source / "llm.pt", lambda s: s | {"llm_embedding.weight": torch.zeros(2, 48)})
    code, line = conversion(source)
    assert code == 1
    assert "unknown tensor 'llm_embedding.weight'" in line


def test_layer_that_the_configuration_does_not_have(source, conversion):
    def deepen(state):
        last = {k: v for k, v in state.items() if ".layers.1." in k}
        return state | {k.replace(".layers.1.", ".layers.2."): v for k, v in last.items()}

    resave(source / "llm.pt", deepen)
    code, line = conversion(source)
    assert code == 1
    assert "llm.model.model.layers.2." in line


def test_missing_tensor(source, conversion):
    resave(source / "llm.pt", without("llm_decoder.weight"))
    code, line = conversion(source)
    assert code == 1
    assert "llm.llm_decoder.weight is not filled" in line


def test_half_of_a_weight_norm(source, conversion):
    resave(source / "hift.pt", without("conv_pre.parametrizations.weight.original1"))
    code, line = conversion(source)
    assert code == 1
    assert "lacks its partner conv_pre.parametrizations.weight.original1" in line


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.zeros(80, dtype=torch.int64), "holds int64"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.full((80,), float("nan")), "not finite"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.full((80,), 1e39, dtype=torch.float64), "not finite"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.zeros(1).expand(1 << 40), "claims shape"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.zeros(0), "is empty"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.zeros(80).to_sparse(), "not a plain dense tensor"),
        ("flow.pt", "decoder.estimator.proj_out.bias", "text", "is str"),
        ("flow.pt", "decoder.estimator.rotary_embed.inv_freq", torch.ones(8), "rotary frequencies"),
        ("llm.pt", "llm.model.lm_head.weight", torch.zeros(601, 64), "differs from the tensor it is tied to"),
        ("hift.pt", "generator.conv_pre.bias", torch.zeros(32), "same tensor under two names"),
    ],
)
def test_bad_tensor(source, conversion, file, key, value, said):
    resave(source / file, lambda s: s | {key: value})
    code, line = conversion(source)
    assert code == 1
    assert said in line
    assert key.removeprefix("generator.") in line


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3), {"state_dict": {}}, {1: torch.zeros(1)}])
def test_not_a_state_dict(source, conversion, content):
    torch.save(content, source / "llm.pt")
    code, line = conversion(source)
    assert code == 1
    assert "llm.pt" in line


def test_compressed_archive(source, conversion):
    path = source / "hift.pt"
    with zipfile.ZipFile(path) as old:
        records = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in records.items():
            new.writestr(name, data)
    code, line = conversion(source)
    assert code == 1
    assert "is compressed" in line


def test_existing_output_is_kept(source, conversion, tmp_path):
    out = tmp_path / "results" / "out"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("keep")
    code, line = conversion(source, out, expect_left=["out"])
    assert code == 2
    assert "already exists" in line
    assert (out / "mine.txt").read_text() == "keep"


def test_neither_folder_nor_hub_id(conversion, tmp_path):
    code, line = conversion(tmp_path / "nowhere" / "at" / "all")
    assert code == 2
    assert "no such folder; give a folder, or a hub id" in line
