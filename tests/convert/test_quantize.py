"""Conversion to half precision and quantized weights: how tensors are stored, what is refused, how it is judged."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from convert import run
from convert.conversion import convert_folder
from convert.hub import find_source
from convert.quantize import PARTS, Precision, precision_of
from mlx_parity.compare import Reading
from mlx_parity.judge import Row, failures, reduced
from port.config import CosyVoice3Config
from port.files import weights
from port.files.errors import Misused, Refused
from port.files.storage import read_headers
from port.model import CosyVoice3Model
from reference.synthesize import synthesize
from tests.support.convert_support import arrays_of

pytestmark = pytest.mark.part("convert.quantize")

ROOT = Path(__file__).parents[2]
HALVES = ("float16", "bfloat16")
MODEL = CosyVoice3Model(CosyVoice3Config())
OFFICIAL = {name: tuple(value.shape) for name, value in dict(tree_flatten(MODEL.parameters())).items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official") / "tiny"
    synthesize(folder, "tiny", seed=5)
    return find_source(str(folder))


def converted(source, out, precision, compare=None):
    convert_folder(source, out, compare, precision=precision)
    return out


# ---- storage


def test_what_stays_float32():
    """Norms, the pitch's path and small layers, by name, at the official sizes."""
    precision = Precision("float16", tuple(PARTS), {"llm": 4, "embeddings": 8, "flow": 8, "speech_tokenizer": 8})
    kept = {name for name, info in precision.layout(OFFICIAL).items() if info.dtype == "F32"}
    assert {name for name in OFFICIAL if "norm" in name.lower() and "attn_norm.linear" not in name} <= kept
    assert {
        name for name in OFFICIAL if name.startswith(("vocoder.f0_predictor", "vocoder.m_source", "speaker."))
    } <= kept
    assert {
        name for name in OFFICIAL if "time_embed" in name or "input_embed." in name or "_out.linear" in name
    } <= kept
    assert "llm.llm_decoder.weight" in kept
    assert sum(np.prod(OFFICIAL[name]) for name in kept & OFFICIAL.keys() if name.startswith(("llm", "flow"))) < 16e6


def test_quantized_by_default():
    """As in mlx_lm: the 168 linear layers of the language model, nothing else."""
    layout = Precision(bits={"llm": 4}).layout(OFFICIAL)
    packed = [name for name, info in layout.items() if info.dtype == "U32"]
    assert len(packed) == 168
    assert all(name.startswith("llm.qwen2.layers.") for name in packed)
    assert layout["llm.qwen2.layers.0.mlp.gate_proj.weight"].shape == (4864, 896 // 8)
    assert layout["llm.qwen2.layers.0.mlp.gate_proj.scales"].shape == (4864, 896 // 64)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(source, tmp_path, dtype):
    out = converted(source, tmp_path / "out", Precision(dtype))
    exact = converted(source, tmp_path / "exact", Precision())
    found, plain = precision_of(out), arrays_of(exact)
    assert found.label == dtype
    assert found.stages == {"llm", "flow"}
    for name, value in arrays_of(out).items():
        assert mx.array_equal(value, plain[name].astype(value.dtype)), name
    model = weights.load(out)
    assert model.flow.decoder.estimator.transformer_blocks[0].attn.to_q.weight.dtype == getattr(mx, dtype)
    assert precision_of(exact).label == "float32"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized(source, tmp_path, bits, dtype):
    out = converted(source, tmp_path / "out", Precision(dtype, bits={"llm": bits, "flow": 8}, group_size=32))
    content = json.loads((out / "config.json").read_text())
    assert content["quantization"] == content["quantization_config"]
    assert {k: content["quantization"][k] for k in ("bits", "group_size", "mode")} == {
        "bits": bits,
        "group_size": 32,
        "mode": "affine",
    }
    layer = weights.load(out).flow.decoder.estimator.transformer_blocks[1].attn.to_v
    assert isinstance(layer, nn.QuantizedLinear)
    assert (layer.bits, layer.group_size, layer.scales.dtype) == (8, 32, getattr(mx, dtype))
    llm = weights.load(out).llm.qwen2.layers[0].mlp.down_proj
    assert llm.bits == bits
    assert weights.load(out).llm.qwen2.embed_tokens.weight.dtype == getattr(mx, dtype)


def test_every_part_can_be_reduced(source, tmp_path):
    bits = {"llm": 4, "embeddings": 8, "flow": 4, "speech_tokenizer": 8}
    out = converted(source, tmp_path / "out", Precision("float16", tuple(PARTS), bits, 32))
    model = weights.load(out)
    assert isinstance(model.llm.qwen2.embed_tokens, nn.QuantizedEmbedding)
    assert model.llm.embed_text(np.array([[3, 4]], np.int32)).shape == (1, 2, 64)
    assert isinstance(model.speech_tokenizer.blocks[0].attn.query, nn.QuantizedLinear)
    assert model.vocoder.conv_pre.weight.dtype == mx.float16
    mel = mx.random.normal((1, 12, 80), key=mx.random.key(0))
    assert mx.isfinite(model.vocoder.inference(mel)[0]).all().item()


def test_shards_of_quantized_weights(source, tmp_path):
    whole = converted(source, tmp_path / "whole", Precision(bits={"llm": 4}, group_size=32))
    convert_folder(
        source, tmp_path / "out", max_shard_bytes=1 << 19, precision=Precision(bits={"llm": 4}, group_size=32)
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    one, other = (dict(tree_flatten(weights.load(folder).parameters())) for folder in (whole, tmp_path / "out"))
    assert one.keys() == other.keys()
    assert all(mx.array_equal(one[name], other[name]) for name in one)


# ---- the command


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--q-bits", "4"], "--q-bits goes with -q"),
        (["--q-parts", "flow"], "--q-parts goes with -q"),
        (["--dtype-parts", "flow"], "--dtype-parts goes with --dtype"),
        (["-q", "--q-parts", "llm,nose"], "part 'nose' is unknown"),
        (["-q", "--q-parts", "vocoder"], "part 'vocoder' is unknown"),
        (["-q", "--q-parts", "llm:3"], r"3\] bits"),
        (["-q", "--q-parts", "llm:x"], "expected PART or PART:BITS"),
        (["-q", "--q-group-size", "128"], "no layer of llm has a width that 128 divides"),
    ],
)
def test_flags_that_cannot_work(source, tmp_path, capsys, flags, said):
    code = run.main(["--hf-path", str(source.folder), "--mlx-path", str(tmp_path / "out"), *flags])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convert:")]
    assert code == 2
    assert re.search(said, line)
    assert not list(tmp_path.iterdir())


def test_the_command_verifies_what_it_writes(source, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["-q", "--q-bits", "8", "--q-group-size", "32", "--dtype", "float16"]
    assert run.main(["--hf-path", str(source.folder), "--mlx-path", str(out), *flags]) == 0
    assert "tensors pass" in capsys.readouterr().out
    quality = json.loads((out / "quality.json").read_text())
    assert quality["precision"] == "float16 and 8-bit"
    assert {metric["status"] for metric in quality["metrics"]} == {"PASS"}
    parity = json.loads((out / "audit.json").read_text())["parity"]
    assert {"PASS", "REDUCED"} == {row["status"] for row in parity}
    assert not [row for row in parity if row["status"] == "REDUCED" and row["name"].startswith("walk.vocoder")]


def test_a_folder_below_its_limits_is_refused(source, tmp_path, monkeypatch):
    """Scales written 20 % too large: the limit comes from the source, not from the damaged folder."""
    stored = Precision.stored

    def louder(self, name, array):
        for key, value in stored(self, name, array):
            yield key, value * 1.2 if key.endswith("to_v.scales") else value

    monkeypatch.setattr(Precision, "stored", louder)
    with pytest.raises(Refused, match="SNR is FAIL"):
        converted(source, tmp_path / "out", Precision(bits={"flow": 8}, group_size=32), run.parity_check)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [7e4, -7e4])
def test_weights_beyond_the_range_of_float16(source, tmp_path, value):
    folder = shutil.copytree(source.folder, tmp_path / "loud")
    state = torch.load(folder / "flow.pt", weights_only=True)
    state["decoder.estimator.transformer_blocks.1.ff.ff.2.weight"][0, 0] = value
    torch.save(state, folder / "flow.pt")
    with pytest.raises(Refused, match=r"linear_2.weight: 70000 exceeds the range of float16; choose bfloat16"):
        converted(find_source(str(folder)), tmp_path / "out", Precision("float16"))
    assert not (tmp_path / "out").exists()
    converted(find_source(str(folder)), tmp_path / "out", Precision("bfloat16"))


@pytest.mark.parametrize(
    "settings",
    [{"dtype": "float8"}, {"parts": ("all",)}, {"bits": {"llm": 3}}, {"group_size": 48}, {"bits": {"vocoder": 8}}],
)
def test_precisions_that_do_not_exist(settings):
    with pytest.raises(Misused):
        Precision(**settings)


# ---- REDUCED


def reading(status):
    return Reading(status, "9x the reference's own float32 error")


def test_reduced_rows_do_not_fail_and_errors_stay():
    rows = [Row(f"{stage}.{status}", stage, "chained", "m", "c", reading(status))
            for stage in ("llm", "whole", "vocoder") for status in ("PASS", "FAIL", "ERROR", "VACUOUS")]  # fmt: skip
    found = {row.name: row.reading.status for row in reduced(rows, "4-bit", {"llm"})}
    assert found["llm.FAIL"] == "REDUCED"
    assert found["whole.FAIL"] == found["vocoder.FAIL"] == "FAIL"
    assert {found[f"llm.{status}"] for status in ("ERROR", "VACUOUS", "PASS")} == {"ERROR", "VACUOUS", "PASS"}
    assert {row.name: row.reading.status for row in reduced(rows, "float16", {"flow"})}["whole.FAIL"] == "REDUCED"
    assert all(row.reading.status != "FAIL" for row in reduced(rows, "float16"))
    assert len(failures(reduced(rows, "float16"))) == 6
    assert "in 4-bit: 9x" in next(r for r in reduced(rows, "4-bit", {"llm"}) if r.name == "llm.FAIL").reading.message


def test_precision_of_a_folder_from_elsewhere(source, tmp_path):
    out = converted(source, tmp_path / "out", Precision())
    model = weights.load(out)
    model.set_dtype(mx.float16)
    weights.save(tmp_path / "half", model, model.config)
    found = precision_of(tmp_path / "half")
    assert found.label == "float16"
    assert "speaker" in found.stages
    assert len(read_headers(tmp_path / "half")) == len(found.tags)


@pytest.mark.meta
@pytest.mark.parametrize("damaged", [False, True], ids=["as converted", "damaged"])
def test_the_suite_on_a_quantized_folder(source, tmp_path, damaged):
    """Walks over budget do not fail the run; a quality limit that is not met does."""
    out = converted(source, tmp_path / "out", Precision(bits={"llm": 4}, group_size=32))
    if damaged:
        arrays = {k: 3 * v if k.endswith("down_proj.scales") else v for k, v in arrays_of(out).items()}
        mx.save_safetensors(str(out / "model.safetensors"), arrays, {"format": "mlx"})
    tests = ["test_walks.py::test_walk[walk.llm]", "test_walks.py::test_seeded_speech_tokens_are_equal"]
    tests += ["test_quality.py::test_quality_of_this_run"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"parity_tests/{t}" for t in tests)]
    command += ["--checkpoint", str(source.folder), "--mlx-path", str(out), "--report", str(tmp_path / "report")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == damaged, done.stdout + done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    counts = report["verdict"]["counts"]
    assert counts["REDUCED"] > 5
    assert counts["FAIL"] == counts["ERROR"] == 0
    assert report["verdict"]["test_counts"]["skipped"] == 3
    assert report["provenance"]["dtype"] == "4-bit"
    failed = {m["metric"] for m in report["quality"] if m["status"] == "FAIL"}
    assert bool(failed) == damaged
    assert report["verdict"]["status"] == ("FAIL" if damaged else "PASS")
