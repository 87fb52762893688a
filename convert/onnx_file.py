"""An ONNX file parsed where it lies: the graph as a protobuf message, the data of its initializers left on disk.

Protobuf's own parser copies the file twice over. A message is a row of fields, each a tag (number and wire type) and a
value; the few that hold the weights are stepped over, everything else goes to the parser.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, TensorProto

from convert.checkpoint import CheckpointError

MAX_BYTES = 1 << 31  # protobuf's own limit
# Numbers of fields in onnx.proto.
GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
INITIALIZER = GraphProto.INITIALIZER_FIELD_NUMBER
RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups, 3 and 4, are not used by ONNX


class Field(NamedTuple):
    """Bytes `start:end` of the file are the whole field, `value:end` its value; `number` is 0 unless it is bytes."""

    number: int
    start: int
    value: int
    end: int


def read_graph(path: Path) -> tuple[GraphProto, dict[str, memoryview]]:
    """The graph without the raw data of its initializers, and that data by the initializer's name, memory-mapped.

    Raises:
        CheckpointError: unreadable, damaged, too large, or a graph without nodes.
    """
    try:
        size = path.stat().st_size
        if size >= MAX_BYTES:
            raise CheckpointError(f"{path}: {MAX_BYTES} bytes or more, which no ONNX file can have")
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        graph, raw = _parse(data)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found") from None
    except (OSError, DecodeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not readable as an ONNX file ({type(error).__name__})") from None
    if not all(isinstance(text, str) for text in _texts(graph)):  # protobuf gives bytes for what is no UTF-8
        raise CheckpointError(f"{path}: not readable as an ONNX file (a name is not UTF-8)")
    if not graph.node:
        raise CheckpointError(f"{path}: not an ONNX file, or one without nodes")
    return graph, raw


def _texts(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from (node.name, node.op_type, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    yield from (tensor.name for tensor in graph.initializer)


def _parse(data: memoryview) -> tuple[GraphProto, dict[str, memoryview]]:
    graph, raw = GraphProto(), {}
    rest = bytearray()
    for outer in _fields(data, 0, len(data)):
        if outer.number != GRAPH:
            continue
        for inner in _fields(data, outer.value, outer.end):
            if inner.number != INITIALIZER:
                rest += data[inner.start : inner.end]
                continue
            tensor, content = _tensor(data, inner)
            graph.initializer.append(tensor)
            if content is not None:
                raw[tensor.name] = content
    graph.MergeFromString(bytes(rest))
    return graph, raw


def _tensor(data: memoryview, place: Field) -> tuple[TensorProto, memoryview | None]:
    described, content = bytearray(), None
    for field in _fields(data, place.value, place.end):
        if field.number == RAW_DATA:
            content = data[field.value : field.end]
        else:
            described += data[field.start : field.end]
    return TensorProto.FromString(bytes(described)), content


def _fields(data: memoryview, start: int, stop: int) -> Iterator[Field]:
    """The fields of the message in `start:stop`.

    Raises:
        DecodeError: it does not end where it should, or is no message.
    """
    while start < stop:
        tag, value = _varint(data, start, stop)
        number, wire = 0, tag & 7
        if wire == VARINT:
            _, end = _varint(data, value, stop)
        elif wire == BYTES:
            length, value = _varint(data, value, stop)
            number, end = tag >> 3, value + length
        elif wire in (FIXED32, FIXED64):
            end = value + (4 if wire == FIXED32 else 8)
        else:
            raise DecodeError("wire type")
        if end > stop:
            raise DecodeError("truncated")
        yield Field(number, start, value, end)
        start = end


def _varint(data: memoryview, start: int, stop: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    number = 0
    for i in range(10):
        if start + i >= stop:
            break
        number |= (data[start + i] & 0x7F) << (7 * i)
        if data[start + i] < 0x80:
            return number, start + i + 1
    raise DecodeError("number")
