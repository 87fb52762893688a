"""Weights on disk: what is written comes back bit for bit, and a file that lies is refused before it is read."""

import json
import struct
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from convert.conversion import convert_folder
from convert.hub import find_source
from port.config import CosyVoice3Config
from port.files import weights
from port.files.errors import Refused
from port.files.storage import TensorInfo, Writer, read_header, read_headers
from port.model import CosyVoice3Model
from reference.synthesize import synthesize
from tests.support.convert_support import CONFIG
from tests.support.parsed_json import put

pytestmark = pytest.mark.part("files.weights")

FILE = "model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official") / "tiny"
    synthesize(folder, "tiny", seed=4)
    return find_source(str(folder))


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert_folder(source, out)
    return out


@pytest.fixture(scope="module")
def model(converted):
    return weights.load(converted)


def parameters(model):
    return dict(tree_flatten(model.parameters()))


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert mx.array_equal(value.view(mx.uint8), right[name].view(mx.uint8)), name


def copy_config(folder):
    folder.mkdir(exist_ok=True)
    weights.save_config(folder, CONFIG)
    return folder


# ---- round trips


def test_loaded_is_what_was_written(converted, model):
    assert_same(parameters(model), mx.load(str(converted / FILE)))
    assert not model.training


def test_save_and_load(model, tmp_path):
    weights.save(tmp_path / "again", model, CONFIG)
    assert_same(parameters(weights.load(tmp_path / "again")), parameters(model))
    loaded: Any = mx.load(str(tmp_path / "again" / FILE), return_metadata=True)
    assert loaded[1] == {"format": "mlx", "heads": "llm 8/2, flow 4, speech tokenizer 2"}


def test_shards(source, model, tmp_path):
    convert_folder(source, tmp_path / "out", max_shard_bytes=1 << 20)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in parameters(model).values())
    assert_same(parameters(weights.load(tmp_path / "out")), parameters(model))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(model, tmp_path, dtype):
    halves = {name: value.astype(dtype) for name, value in parameters(model).items()}
    weights.save(tmp_path / "out", halves, CONFIG)
    assert_same(parameters(weights.load(tmp_path / "out")), halves)


@pytest.mark.parametrize("own", [False, True])
def test_quantized(model, converted, tmp_path, own):
    quantized = weights.load(converted)
    settings = {"group_size": 32, "bits": 4}
    # Widths of the tiny model that a group divides: the flow's 64.
    nn.quantize(quantized.flow, 32, 4, class_predicate=lambda path, m: path.endswith("to_q"))
    nn.quantize(quantized.flow, 32, 8, class_predicate=lambda path, m: own and path.endswith("to_k"))
    blocks = CONFIG.flow.dit.depth
    special = {
        f"flow.decoder.estimator.transformer_blocks.{i}.attn.to_k": {"group_size": 32, "bits": 8}
        for i in range(blocks)
        if own
    }
    weights.save(tmp_path / "out", quantized, CONFIG, quantization=settings | special)
    loaded = weights.load(tmp_path / "out")
    assert isinstance(loaded.flow.decoder.estimator.transformer_blocks[0].attn.to_q, nn.QuantizedLinear)
    assert_same(parameters(loaded), parameters(quantized))
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["quantization"] == content["quantization_config"]


def test_numpy_arrays(model, tmp_path):
    arrays = {name: np.array(value) for name, value in parameters(model).items()}
    weights.save(tmp_path / "out", arrays, CONFIG)
    assert_same(parameters(weights.load(tmp_path / "out")), parameters(model))


def test_a_folder_that_lacks_the_speakers_division(model, tmp_path, caplog):
    """It is read with a warning of one line, and divides as the official file does; a whole folder gives no warning."""
    weights.save(tmp_path / "out", model, CONFIG)
    assert_same(parameters(weights.load(tmp_path / "out")), parameters(model))
    assert not caplog.messages
    path = tmp_path / "out" / "config.json"
    content = json.loads(path.read_text())
    del content["speaker"]["divide_by_full_segment"]
    path.write_text(json.dumps(content))
    loaded = weights.load(tmp_path / "out")
    assert loaded.config.speaker.divide_by_full_segment
    (line,) = caplog.messages
    said = ("does not say how the speaker encoder averages", "convert the checkpoint again")
    assert all(part in line for part in said) and "\n" not in line


# ---- refused folders


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": entry([2], 0, 8)}, b"\0" * 7, "truncated"),
        ({"a": entry([2], 0, 8)}, b"\0" * 9, "describes 8"),
        ({"a": entry([1 << 40], 0, 8)}, b"\0" * 8, "does not fit"),
        ({"a": entry([1 << 62, 1 << 62], 0, 8)}, b"\0" * 8, "not usable"),
        ({"a": entry([-2], 0, 8)}, b"\0" * 8, "not usable"),
        ({"a": entry([2.0], 0, 8)}, b"\0" * 8, "not usable"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12, "does not start where"),
        ({"a": entry([2], 0, 8), "b": entry([1], 12, 16)}, b"\0" * 16, "does not start where"),
        ({"a": entry([1], 0, 8, "F64")}, b"\0" * 8, "dtype 'F64'"),
        ({"a": {"dtype": "F32"}}, b"", "damaged"),
        ({"a": 3}, b"", "damaged"),
        ([1, 2], b"", "not a JSON object"),
        (b"{nonsense}", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"a": {}, "a": {}}', b"", "given twice"),
    ],
)
def test_header_that_lies(tmp_path, header, data, said):
    path = write(tmp_path / FILE, header, data)
    with pytest.raises(Refused, match=said) as refusal:
        read_header(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, struct.pack("<Q", 1 << 60), struct.pack("<Q", 100) + b"{}"])
def test_not_a_safetensors_file(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(Refused, match="not a safetensors file"):
        read_header(tmp_path / FILE)


def test_missing_weights(tmp_path):
    with pytest.raises(Refused, match="not found"):
        weights.load(copy_config(tmp_path / "empty"))
    with pytest.raises(Refused, match="not found"):
        weights.load(tmp_path / "nowhere")


@pytest.mark.parametrize("placed", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin"])
def test_index_that_leaves_the_folder(tmp_path, placed):
    folder = copy_config(tmp_path / "out")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": placed}}))
    with pytest.raises(Refused, match="is not a safetensors file of this folder"):
        weights.load(folder)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": 3}}', "no weight_map"),
        ("nonsense", "not readable as JSON"),
        ('{"weight_map": {"b": "model-1.safetensors"}}', "holds 'a'"),
        ('{"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}', "'b' is not in"),
        ('{"weight_map": {"a": "model-2.safetensors"}}', "No such file"),
    ],
)
def test_index_that_lies(tmp_path, index, said):
    write(tmp_path / "model-1.safetensors", {"a": entry([1], 0, 4)}, b"\0" * 4)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Refused, match=said):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("flow.input_embedding.weight"), "flow.input_embedding.weight' is missing"),
        (lambda w: w.update({"flow.extra": mx.zeros(2)}), "unknown tensor 'flow.extra'"),
        (lambda w: w.update({"flow.input_embedding.weight": mx.zeros((3, 80))}), r"has shape \[3, 80\]"),
        (lambda w: w.update({"vocoder.conv_pre.bias": mx.zeros(32, mx.uint32)}), "holds U32"),
    ],
)
def test_weights_that_do_not_fit_the_model(model, tmp_path, change, said):
    arrays = parameters(model)
    change(arrays)
    weights.save(tmp_path / "out", arrays, CONFIG)
    with pytest.raises(Refused, match=said):
        weights.load(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"llm.qwen2.num_attention_heads": 4, "llm.qwen2.num_key_value_heads": 1},
        {"flow.dit.heads": 2, "flow.dit.dim_head": 32},
        {"speech_tokenizer.heads": 1},
    ],
)
@pytest.mark.parametrize("shards", [1 << 40, 1 << 20])
def test_heads_that_the_weights_do_not_have(model, tmp_path, change, shards):
    """Half as many heads of twice the width have the same shapes."""
    weights.save(tmp_path / "out", model, CONFIG, shards)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(put(json.loads(path.read_text()), change)))
    with pytest.raises(Refused, match="written for heads of 'llm 8/2, flow 4, speech tokenizer 2'"):
        weights.load(tmp_path / "out")


def test_weights_without_a_note_of_their_heads_are_accepted(model, tmp_path):
    weights.save_config(copy_config(tmp_path / "out"), CONFIG)
    mx.save_safetensors(str(tmp_path / "out" / FILE), parameters(model), {"format": "mlx"})
    assert_same(parameters(weights.load(tmp_path / "out")), parameters(model))


def test_quantization_that_mlx_does_not_know(model, tmp_path):
    arrays = parameters(model) | {"flow.decoder.estimator.proj_out.scales": mx.zeros((80, 2))}
    weights.save(tmp_path / "out", arrays, CONFIG, quantization={"group_size": 7, "bits": 4})
    with pytest.raises(Refused, match="quantization"):
        weights.load(tmp_path / "out")


# ---- the writer


def test_writer_keeps_its_promises(tmp_path):
    announced = {"a": TensorInfo("F32", (2,)), "b": TensorInfo("F32", (3,))}
    with pytest.raises(Refused, match="b: announced and not written"), Writer(tmp_path, announced) as writer:
        writer.write("a", np.zeros(2, np.float32))
        with pytest.raises(Refused, match="written twice"):
            writer.write("a", np.zeros(2, np.float32))
        with pytest.raises(Refused, match="not announced"):
            writer.write("c", np.zeros(2, np.float32))
        with pytest.raises(Refused, match=r"has shape \[2\]"):
            writer.write("b", np.zeros(2, np.float32))
    with pytest.raises(Refused, match="exists already"):
        Writer(tmp_path, announced)


def test_dtype_that_cannot_be_stored(tmp_path):
    with pytest.raises(Refused, match="float64 cannot be stored"):
        weights.save(tmp_path / "out", {"a": np.zeros(2)}, CONFIG)


def test_building_the_full_model_allocates_nothing():
    before = mx.get_active_memory()
    CosyVoice3Model(CosyVoice3Config())
    assert mx.get_active_memory() - before < 64 << 20
