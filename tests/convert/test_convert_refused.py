"""Checkpoints and folders that a conversion refuses: one line, exit code 1 or 2, and nothing is left behind."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from convert.checkpoint import Tagged, read_yaml
from convert.hub import needed_files
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
def test_missing_file(source, refuses, name):
    (source / name).unlink()
    refuses(source, Path(name).name, "not found")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_truncated_file(source, refuses, kept):
    path = source / "hift.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    refuses(source, "hift.pt: truncated")


def test_pickle_with_code_is_not_run(source, refuses, tmp_path):
    touched = tmp_path / "touched"
    resave(source / "flow.pt", lambda state: state | {"extra": Touches(touched)})
    refuses(source, "flow.pt: refused, its pickle asks for posix.system")
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
def test_yaml_tag_that_would_run_code(source, refuses, tmp_path, text):
    touched = tmp_path / "touched"
    path = source / "cosyvoice3.yaml"
    path.write_text(path.read_text() + text.format(touched=touched) + "\n")
    refuses(source, "would run code; refused", f"line {len(path.read_text().splitlines())}")
    assert not touched.exists()


def test_tags_are_data(tmp_path):
    (tmp_path / "a.yaml").write_text("x: !new:os.system {a: 1}\ny: !name:a.b\nz: !apply:random.seed [1986]\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "x": Tagged("new", "os.system", {"a": 1}),
        "y": Tagged("name", "a.b", None),
        "z": Tagged("apply", "random.seed", [1986]),
    }


def deeper(state):
    """With a layer that the configuration does not have."""
    last = {k: v for k, v in state.items() if ".layers.1." in k}
    return state | {k.replace(".layers.1.", ".layers.2."): v for k, v in last.items()}


def changed(key, change):
    return lambda state: state | {key: change(state[key])}


EMBEDDING, DOWN, NORM = "input_embedding.weight", "source_downs.0.weight", "conv_pre.parametrizations.weight.original1"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("flow.pt", changed(EMBEDDING, lambda x: x[:-1].clone()), (f"{EMBEDDING} [6560, 80]", "[6561, 80]")),
        ("hift.pt", changed(DOWN, lambda x: x[0]), (DOWN,)),
        (
            "llm.pt",
            lambda s: s | {"llm_embedding.weight": torch.zeros(2, 48)},
            ("unknown tensor 'llm_embedding.weight'",),
        ),
        ("llm.pt", deeper, ("llm.model.model.layers.2.",)),
        ("llm.pt", without("llm_decoder.weight"), ("llm.llm_decoder.weight is not filled",)),
        ("hift.pt", without(NORM), (f"lacks its partner {NORM}",)),
    ],
    ids=["shape", "rank", "unknown", "deeper", "missing", "half of a weight norm"],
)
def test_tensors_that_do_not_fit(source, refuses, file, change, said):
    resave(source / file, change)
    refuses(source, *said)


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
def test_bad_tensor(source, refuses, file, key, value, said):
    resave(source / file, lambda s: s | {key: value})
    refuses(source, said, key.removeprefix("generator."))


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3), {"state_dict": {}}, {1: torch.zeros(1)}])
def test_not_a_state_dict(source, refuses, content):
    torch.save(content, source / "llm.pt")
    refuses(source, "llm.pt")


def test_compressed_archive(source, refuses):
    path = source / "hift.pt"
    with zipfile.ZipFile(path) as old:
        records = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in records.items():
            new.writestr(name, data)
    refuses(source, "is compressed")


def test_existing_output_is_kept(source, refuses, tmp_path):
    out = tmp_path / "results" / "out"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("keep")
    refuses(source, "already exists", out=out, expect_left=["out"], code=2)
    assert (out / "mine.txt").read_text() == "keep"
