"""Reading the two ONNX files: what is accepted, in which form, and what is refused and how."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from convert.onnx_file import read_graph
from convert.onnx_graph import module_path
from convert.onnx_weights import read_speaker, read_speech_tokenizer
from port.config import SpeakerConfig, SpeechTokenizerConfig
from port.files.errors import Refused
from reference.export_onnx import export_speaker, live_speaker, live_speech_tokenizer
from tests.support.onnx_support import COUNTS, OPSETS, READ, SPEAKER, TOKENIZER, node_of

pytestmark = pytest.mark.part("convert")

PARTS = pytest.mark.parametrize("part", COUNTS)


@pytest.mark.parametrize("opset", OPSETS)
@PARTS
def test_reads_what_was_written(onnx_files, part, opset):
    weights = READ[part](onnx_files / f"{part}{opset}.onnx")
    assert len(weights) == COUNTS[part]
    assert weights.config == (TOKENIZER if part == "speech_tokenizer" else SPEAKER)
    written = (
        live_speech_tokenizer(TOKENIZER, 0) if part == "speech_tokenizer" else live_speaker(SPEAKER, 0)
    ).state_dict()
    assert weights.keys() == written.keys()
    for key, tensor in written.items():
        assert weights.shapes[key] == weights[key].shape
        if part == "speech_tokenizer":
            assert np.array_equal(weights[key], tensor.numpy()), key
        else:  # the exporter folds the norms again: two roundings of the gain, two of the product
            limit = 8 * 2**-24 * max(1.0, float(tensor.abs().max()))
            assert np.abs(weights[key] - tensor.numpy()).max() <= limit, key


def test_files_look_like_the_official_ones(onnx_files):
    graphs = {path.stem: onnx.load(path).graph for path in onnx_files.glob("*.onnx")}
    names = [initializer.name for initializer in graphs["speech_tokenizer14"].initializer]
    assert names[:3] == [f"blocks.{i}.attn.fsmn_block.weight" for i in range(2)] + ["quantizer.project_in.bias"]
    kinds = [name.split("_")[0] for name in names[3:]]
    block = ["Mul", "Add", "Add", "MatMul", "MatMul", "Add", "MatMul", "Add", "MatMul"]
    block += ["Mul", "Add", "Add", "MatMul", "Add", "MatMul"]
    assert kinds == [f"onnx::{kind}" for kind in ["Conv"] * 4 + block * 2 + ["MatMul"]]
    assert sum(name.startswith("onnx::") for name in names) == 4 + 15 * 2 + 1
    assert "LayerNormalization" not in {node.op_type for node in graphs["speech_tokenizer14"].node}
    assert "LayerNormalization" in {node.op_type for node in graphs["speech_tokenizer17"].node}
    names = [initializer.name for initializer in graphs["speaker14"].initializer]
    # head 12, tdnn 1, a bottleneck for each layer and the last transit: weight and folded bias of each
    assert sum(name.startswith("onnx::Conv_") for name in names) == 2 * (12 + 1 + 7 + 1)
    named = {name for name in names if not name.startswith("onnx::")}
    assert named <= read_speaker(onnx_files / "speaker14.onnx").keys()
    assert len(names) == COUNTS["speaker"]


def test_equal_weights_shared_through_identity(tmp_path):
    model = live_speaker(SPEAKER, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cam_layer" in name and name.endswith("bias"):
                parameter.zero_()
    export_speaker(model, tmp_path / "speaker.onnx")
    graph = onnx.load(tmp_path / "speaker.onnx").graph
    assert sum(node.op_type == "Identity" for node in graph.node) > 0
    assert len(graph.initializer) < COUNTS["speaker"]
    weights = read_speaker(tmp_path / "speaker.onnx")
    assert len(weights) == COUNTS["speaker"]
    assert not weights["xvector.block2.tdnnd3.cam_layer.linear2.bias"].any()


@pytest.mark.parametrize("opset", OPSETS)
@PARTS
def test_the_graph_is_the_one_that_protobuf_reads(onnx_files, part, opset):
    graph, raw, version = read_graph(onnx_files / f"{part}{opset}.onnx")
    assert version == opset
    assert len(raw) == len(graph.initializer) > 0
    for tensor in graph.initializer:
        assert not tensor.raw_data
        tensor.raw_data = bytes(raw[tensor.name])
    assert graph == onnx.load(onnx_files / f"{part}{opset}.onnx").graph


def test_module_paths():
    assert module_path("/blocks.3/attn/query/MatMul") == "blocks.3.attn.query"
    assert module_path("/blocks.3/mlp/mlp.0/MatMul") == "blocks.3.mlp.0"
    assert module_path("/head/layer1/layer1.0/shortcut/shortcut.0/Conv") == "head.layer1.0.shortcut.0"
    assert module_path("/Erf") == ""


# ---- damage


def _initializer(graph, start, rank=None):
    return next(i for i in graph.initializer if i.name.startswith(start) and rank in (None, len(i.dims)))


def _constant(graph, output):
    return next(n for n in graph.node if output in n.output).attribute[0].t


def _replace(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _external(graph):
    tensor = _initializer(graph, "onnx::MatMul")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _zeros(start, shape, dtype=np.float32):
    """Replace a weight of the same rank by zeros of another shape or dtype."""
    return lambda graph: _replace(_initializer(graph, start, len(shape)), np.zeros(shape, dtype))


def _rename(old, new):
    return lambda graph: setattr(node_of(graph, old), "name", new)


def _change_eps(graph):
    node = node_of(graph, "/blocks.1/mlp_ln/Add")
    _replace(_constant(graph, node.input[1]), np.array(1e-6, np.float32))


def _change_rotary(graph):
    table = next(n for n in graph.node if n.op_type == "Constant" and len(n.attribute[0].t.dims) == 2).attribute[0].t
    angles = np.arange(2048)[:, None] * np.tile(1e6 ** (-np.arange(0, 16, 2) / 16), 2)
    _replace(table, np.cos(angles).astype(np.float32))


def _compute_weight(graph):
    node = node_of(graph, "/conv1/Conv")
    graph.node.insert(0, helper.make_node("Neg", [node.input[1]], ["computed"], "/conv1/Neg"))
    node.input[1] = "computed"


def _loop(graph):
    node = node_of(graph, "/conv1/Conv")
    graph.node.extend([helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["a"])])
    node.input[1] = "a"


def _affine(graph):
    node = node_of(graph, "/xvector/dense/nonlinear/batchnorm/BatchNormalization")
    graph.initializer.append(numpy_helper.from_array(np.full(24, 2, np.float32), "two"))
    node.input[1] = "two"


def _set(name, attribute, value):
    def change(graph):
        node = node_of(graph, name)
        kept = [a for a in node.attribute if a.name != attribute]
        del node.attribute[:]
        node.attribute.extend([*kept, *([] if value is None else [helper.make_attribute(attribute, value)])])

    return change


def _constant_to(output, value):
    return lambda graph: _replace(_constant(graph, output), np.array(value, np.float32))


def _dims(graph):
    _initializer(graph, "onnx::MatMul").dims[0] = 1 << 40


IN_TOKENIZER = {
    "external data": (_external, "external data is not read"),
    "claims more than it holds": (_dims, "claims shape"),
    "half precision": (_zeros("onnx::Conv", (64, 128, 3), np.float16), "expected 1"),
    "wrong shape": (_zeros("blocks.1.attn", (64, 1, 29)), "has shape"),
    "renamed node": (
        _rename("/blocks.1/attn/value/Add", "/blocks.1/attn/worth/Add"),
        "speech_tokenizer.blocks.1.attn.value.bias; 37 of 38",
    ),
    "two nodes of one name": (
        _rename("/blocks.1/attn/value/MatMul", "/blocks.0/attn/value/MatMul"),
        "two nodes give blocks.0.attn.value.weight",
    ),
    "a layer too many": (_rename("/conv2/Conv", "/conv3/Conv"), "unknown tensor 'conv3"),
    "unused weight": (
        lambda g: g.initializer.append(numpy_helper.from_array(np.ones(7, np.float32), "spare")),
        "no place for initializer 'spare'",
    ),
    "epsilon of one norm": (_change_eps, "different epsilons"),
    "rotary of another base": (_change_rotary, "rotary tables"),
    "computed weight": (_compute_weight, "weight is computed"),
    "circle of identities": (_loop, "defined by itself"),
    "stride": (_set("/conv2/Conv", "strides", [1]), r"Conv /conv2/Conv: strides is \[1\], supported is \[2\]"),
    "stride left out": (_set("/conv2/Conv", "strides", None), r"strides is \[1\], supported is \[2\]"),
    "softmax": (_set("/blocks.0/attn/Softmax", "axis", 2), "attn/Softmax: axis is 2, supported is -1"),
    "bound of the quantizer": (_constant_to("/quantizer/Constant_output_0", 0.99), "what is rounded"),
    "scale of queries": (_constant_to("/blocks.0/attn/Constant_24_output_0", 0.51), "compute different things"),
}
IN_SPEAKER = {
    "norm with a scale": (_affine, "not 1 throughout"),
    "padding": (_set("/xvector/tdnn/linear/Conv", "pads", [4, 0]), r"pads is \[4, 0\], supported is \[2, 2\]"),
    "automatic padding": (_set("/head/conv1/Conv", "auto_pad", "SAME_UPPER"), "auto_pad is SAME_UPPER"),
    "dilation of one layer": (
        _set("/xvector/block2/tdnnd2/cam_layer/linear_local/Conv", "dilations", [1]),
        r"tdnnd2.*dilations is \[1\], supported is \[2\]",
    ),
    "segments without the last": (
        _set("/xvector/block1/tdnnd1/cam_layer/AveragePool", "ceil_mode", 0),
        "ceil_mode is 0, supported is 1",
    ),
    "one segment divided otherwise": (
        _set("/xvector/block2/tdnnd1/cam_layer/AveragePool", "count_include_pad", 0),
        "block2/tdnnd1/cam_layer/AveragePool: count_include_pad is 0, supported is 1",
    ),
    "norm in training": (
        _set("/xvector/transit1/nonlinear/batchnorm/BatchNormalization", "training_mode", 1),
        "training_mode is 1, supported is 0",
    ),
    "unknown attribute": (_set("/head/Relu", "alpha", 0.1), "Relu /head/Relu: unknown attribute 'alpha'"),
    "attribute of another type": (_set("/head/conv1/Conv", "group", [1]), "group is of type"),
    "deviation with all frames": (
        lambda g: g.node.remove(next(n for n in g.node if n.op_type == "Sqrt")),
        "no earlier node gives",
    ),
    "another model": (_rename("/head/conv1/Conv", "/stem/Conv"), "is not the speaker encoder"),
}
DAMAGE = {name: ("speech_tokenizer", *found) for name, found in IN_TOKENIZER.items()}
DAMAGE |= {name: ("speaker", *found) for name, found in IN_SPEAKER.items()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_line(onnx_files, tmp_path, damage):
    part, change, message = DAMAGE[damage]
    model = onnx.load(onnx_files / f"{part}14.onnx")
    change(model.graph)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Refused, match=message) as caught:
        READ[part](path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@PARTS
def test_files_that_are_not_onnx(onnx_files, tmp_path, part):
    whole = (onnx_files / f"{part}14.onnx").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "zeros": bytes(100)}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("cut", "empty", "text", "zeros", "missing", "."):
        with pytest.raises(Refused) as caught:
            READ[part](tmp_path / name)
        assert "\n" not in str(caught.value)
    other = next(p for p in COUNTS if p != part)
    with pytest.raises(Refused, match="is not the"):
        READ[part](onnx_files / f"{other}14.onnx")


def test_sizes_other_than_expected(onnx_files):
    with pytest.raises(Refused, match=r"speech_tokenizer\.dim is 64, expected 1280"):
        read_speech_tokenizer(onnx_files / "speech_tokenizer14.onnx", SpeechTokenizerConfig())
    with pytest.raises(Refused, match=r"speaker\.embed_dim is 24, expected 192"):
        read_speaker(onnx_files / "speaker14.onnx", SpeakerConfig())
