"""Missing, unknown or wrongly shaped tensors in each of the six weights files: refused by name, nothing is left."""

import copy
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from convert.onnx_graph import module_path
from port.files.errors import Refused
from tests.support.convert_support import resave
from tests.support.onnx_support import COUNTS, READ

pytestmark = pytest.mark.part("convert", late=1)

PICKLED = ("llm.pt", "llm.rl.pt", "flow.pt", "hift.pt")
GRAPHS = ("speech_tokenizer_v3.onnx", "campplus.onnx")


@pytest.fixture
def refused(source, refuses):
    """The line of the error with which converting a damaged file ends."""
    return lambda file, *said: refuses(source, *said, flags=("--llm", "rl") if file == "llm.rl.pt" else ())


def some_keys(source, file):
    """Tensors of a file from its start, middle and end."""
    if file == "llm.rl.pt":
        shutil.copyfile(source / "llm.pt", source / file)
    keys = list(torch.load(source / file, weights_only=True))
    return keys[0], keys[len(keys) // 2], keys[-1]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("file", PICKLED)
def test_a_missing_tensor(source, refused, file, place):
    key = some_keys(source, file)[place]
    resave(source / file, lambda state: {k: v for k, v in state.items() if k != key})
    line = refused(file)
    assert "missing" in line or "not filled" in line or "lacks its partner" in line


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("file", PICKLED)
def test_a_tensor_of_another_shape(source, refused, file, place):
    key = some_keys(source, file)[place]
    resave(source / file, lambda state: state | {key: torch.cat([state[key], state[key][:1]])})
    refused(file, key)


@pytest.mark.parametrize("file", PICKLED)
@pytest.mark.parametrize("stranger", ["extra.weight", "{}.extra", "text_embedding.weight"])
def test_an_unknown_tensor(source, refused, file, stranger):
    key = stranger.format(some_keys(source, file)[1])
    resave(source / file, lambda state: state | {key: torch.ones(3)})
    refused(file, f"unknown tensor '{key}'")


@pytest.mark.parametrize("width", [8, 32])
def test_the_rotary_frequencies_show_the_width_of_a_head(source, refused, width):
    """Two heads of twice the width have the shapes of four: only the frequencies tell them apart."""
    path = source / "cosyvoice3.yaml"
    text = path.read_text()
    assert "heads: 4\n            dim_head: 16" in text
    path.write_text(
        text.replace("heads: 4\n            dim_head: 16", f"heads: {64 // width}\n            dim_head: {width}")
    )
    refused("flow.pt", "decoder.estimator.rotary_embed.inv_freq")


# ---- the two graphs


@pytest.fixture(scope="module")
def graphs(onnx_files):
    return {part: onnx.load(onnx_files / f"{part}14.onnx") for part in COUNTS}


def written(model, path):
    path.write_bytes(model.SerializeToString())
    return path


def nodes_with_weights(graph):
    """Nodes that hold a weight, with the names of what is stored for them."""
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if module_path(node.name) and (held := [name for name in node.input if name in stored]):
            yield node, held


@pytest.mark.parametrize("part", COUNTS)
def test_every_node_of_a_graph_is_needed(graphs, tmp_path, part):
    for i, _ in enumerate(list(nodes_with_weights(graphs[part].graph))):
        model = copy.deepcopy(graphs[part])
        node, _ = list(nodes_with_weights(model.graph))[i]
        place = node.name
        node.name = ""
        with pytest.raises(Refused) as refusal:
            READ[part](written(model, tmp_path / "lacking.onnx"))
            pytest.fail(f"{place} is not missed")
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("part", COUNTS)
def test_every_weight_of_a_graph_has_one_shape(graphs, tmp_path, part):
    names = [name for _, held in nodes_with_weights(graphs[part].graph) for name in held]
    for name in dict.fromkeys(names):
        model = copy.deepcopy(graphs[part])
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor)
        if array.ndim == 0 or array.size == 1:
            continue
        tensor.CopyFrom(numpy_helper.from_array(np.concatenate([array, array[:1]]), name))
        with pytest.raises(Refused):
            READ[part](written(model, tmp_path / "wide.onnx"))
            pytest.fail(f"{name} may be wider")


@pytest.mark.parametrize("part", COUNTS)
def test_a_node_too_many(graphs, tmp_path, part):
    modules = {module_path(node.name) for node, _ in nodes_with_weights(graphs[part].graph)}
    for module in sorted(modules):
        path = module.replace(".", "/")
        for place in (f"/{path}/extra/Conv", f"/{path}x/Conv", "/extra/Conv"):
            model = copy.deepcopy(graphs[part])
            weight = numpy_helper.from_array(np.ones((4, 4, 1), np.float32), "stranger")
            model.graph.initializer.append(weight)
            model.graph.node.append(helper.make_node("Conv", ["input", "stranger"], ["unused"], place))
            with pytest.raises(Refused):
                READ[part](written(model, tmp_path / "more.onnx"))
                pytest.fail(f"{place} is accepted")


@pytest.mark.parametrize("file", GRAPHS)
def test_a_graph_that_is_refused_leaves_nothing(source, refused, file):
    path = source / file
    whole = onnx.load(path)
    node, held = list(nodes_with_weights(whole.graph))[-1]
    for change in ("missing", "shape", "unknown"):
        model = copy.deepcopy(whole)
        if change == "missing":
            next(n for n in model.graph.node if n.name == node.name).name = ""
        elif change == "shape":
            tensor = next(t for t in model.graph.initializer if t.name == held[0])
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate([array, array[:1]]), tensor.name))
        else:
            model.graph.initializer.append(numpy_helper.from_array(np.ones(7, np.float32), "stranger"))
        written(model, path)
        refused(file, file)
