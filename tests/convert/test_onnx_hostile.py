"""Malicious ONNX files that would cost time or memory or write on the terminal: refused early, in one short line."""

import time
from contextlib import suppress

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from convert.onnx_file import read_graph
from convert.onnx_weights import read_speaker
from port.files.errors import Refused
from tests.support.onnx_support import COUNTS, READ, node_of

pytestmark = pytest.mark.robust

PARTS = pytest.mark.parametrize("part", COUNTS)


@PARTS
def test_nodes_without_inputs(onnx_files, tmp_path, part):
    model = onnx.load(onnx_files / f"{part}14.onnx")
    path = tmp_path / "damaged.onnx"
    for op in sorted({node.op_type for node in model.graph.node if node.input} | {"Identity"}):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        node = next((node for node in changed.graph.node if node.op_type == op), None)
        if node is None:
            node = changed.graph.node.add(op_type=op, output=["new"])
        del node.input[:]
        path.write_bytes(changed.SerializeToString())
        with pytest.raises(Refused, match=f"{op}.*: 0 inputs") as caught:
            READ[part](path)
        assert "\n" not in str(caught.value)


def _message(number, content):
    """A protobuf field that holds bytes."""
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


EMPTY = 8 << 20
FLOODS = {
    "nodes": b"\x0a\x00" * EMPTY,
    "weights": b"\x2a\x00" * EMPTY,
    "descriptions": b"\x6a\x00" * EMPTY,
    "inputs of the graph": _message(11, b"\x12\x00" * EMPTY),
    "inputs of a node": _message(1, b"\x0a\x00" * EMPTY),
    "attributes of a node": _message(1, b"\x2a\x00" * EMPTY),
    "numbers of an attribute": _message(1, _message(5, b"\x40\x00" * EMPTY)),
    "subgraph": _message(1, _message(5, _message(6, b"\x0a\x00" * EMPTY))),
    "dimensions of a weight": _message(5, b"\x08\x01" * EMPTY),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_millions_of_empty_things_are_refused_before_they_are_read(tmp_path, flood):
    path = tmp_path / "flood.onnx"
    path.write_bytes(_message(7, FLOODS[flood]))
    start = time.process_time()
    with pytest.raises(Refused, match="far more than the official files"):
        read_graph(path)
    assert time.process_time() - start < 5


def test_a_long_chain_of_identities_is_followed_once(onnx_files, tmp_path):
    model = onnx.load(onnx_files / "speaker14.onnx")
    node, count = node_of(model.graph, "/head/conv1/Conv"), 50_000
    chain = [helper.make_node("Identity", [f"c{i}" if i else node.input[1]], [f"c{i + 1}"]) for i in range(count)]
    node.input[1] = f"c{count}"
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*chain, *rest])
    onnx.save(model, tmp_path / "chain.onnx")
    start = time.process_time()
    assert len(read_speaker(tmp_path / "chain.onnx")) == COUNTS["speaker"]
    assert time.process_time() - start < 20


@pytest.mark.parametrize("name", ["x" * 3_900_000, "a\nb", "\x1b[31mred", "\u202eleft", "/conv1/\x00/Conv"])
@pytest.mark.parametrize("place", ["node", "operator", "attribute", "value", "initializer", "output"])
def test_names_that_are_endless_or_not_plain_are_refused_in_a_short_line(onnx_files, tmp_path, place, name):
    model = onnx.load(onnx_files / "speaker14.onnx")
    node = node_of(model.graph, "/head/conv1/Conv")
    if place == "node":
        node.name = name
    elif place == "operator":
        node.op_type = name
    elif place == "attribute":
        node.attribute[0].name = name
    elif place == "value":
        node.input[1] = name
    elif place == "initializer":
        model.graph.initializer[0].name = name
    else:
        model.graph.output[0].name = name
    (tmp_path / "damaged.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Refused) as caught:
        read_speaker(tmp_path / "damaged.onnx")
    line = str(caught.value).removeprefix(str(tmp_path))
    assert len(line) < 300 and line.isprintable()


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), kept=st.floats(0.2, 1))
def test_damaged_bytes_never_end_in_a_traceback(onnx_files, tmp_path_factory, position, bits, kept):
    data = bytearray((onnx_files / "speaker14.onnx").read_bytes())
    data[int(position * len(data))] ^= bits
    path = tmp_path_factory.mktemp("damaged") / "speaker.onnx"
    path.write_bytes(data[: int(kept * len(data))])
    with suppress(Refused):
        read_graph(path)
