"""Parse an ONNX file and leave the data of its initializers on disk.

Protobuf's own parser would copy the file twice. A message is a list of fields, each a tag (number and wire type) and a
value. We skip the few fields that hold weights and give the rest to the parser.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, TensorProto

from port.files.disk import require_regular
from port.files.errors import Refused

MAX_BYTES = 1 << 31  # protobuf's own limit
# Far above the official files: 3206 nodes with some ten fields each, names of 50 characters, tensors of rank 4.
MAX_NODES = 100_000
MAX_FIELDS = 500_000
MAX_NAME = 256
MAX_RANK = 8
MAX_NESTED = 1 << 16  # bytes of a subgraph or of an input's type
# Numbers of fields in onnx.proto.
GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
OPSETS = onnx.ModelProto.OPSET_IMPORT_FIELD_NUMBER
NODE = GraphProto.NODE_FIELD_NUMBER
INITIALIZER = GraphProto.INITIALIZER_FIELD_NUMBER
# What else of a graph is read; its descriptions of values are not.
KEPT = (
    GraphProto.NAME_FIELD_NUMBER,
    GraphProto.INPUT_FIELD_NUMBER,
    GraphProto.OUTPUT_FIELD_NUMBER,
    GraphProto.SPARSE_INITIALIZER_FIELD_NUMBER,
    NODE,
)
RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER
ATTRIBUTE = onnx.NodeProto.ATTRIBUTE_FIELD_NUMBER
VALUE = onnx.AttributeProto.T_FIELD_NUMBER
NESTED = tuple(field.number for field in onnx.AttributeProto.DESCRIPTOR.fields if field.message_type is not None)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups, 3 and 4, are not used by ONNX


class Field(NamedTuple):
    """Bytes `start:end` of the file are the whole field, `value:end` its value; `number` is 0 unless it is bytes."""

    number: int
    start: int
    value: int
    end: int


class Room:
    """Fields that may still be read."""

    def __init__(self) -> None:
        self.left = MAX_FIELDS

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooMuchError(f"more than {MAX_FIELDS} fields")


class OnnxFile(NamedTuple):
    """`graph` without the raw data of its initializers, `raw` that data by the initializer's name, memory-mapped;
    `opset` is the version of ONNX's own operators."""

    graph: GraphProto
    raw: dict[str, memoryview]
    opset: int


def read_graph(path: Path) -> OnnxFile:
    """Parse a file.

    Raises:
        Refused: unreadable, damaged or too large; a graph without nodes, or with more nodes, fields or dimensions than
            a model has; a name that cannot be printed on one line.
    """
    try:
        require_regular(path)
        size = path.stat().st_size
        if size >= MAX_BYTES:
            raise Refused(f"{path}: {MAX_BYTES} bytes or more, which no ONNX file can have")
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        found = _parse(data)
    except FileNotFoundError:
        raise Refused(f"{path}: not found") from None
    except TooMuchError as error:
        raise Refused(f"{path}: {error}, far more than the official files") from None
    except (OSError, DecodeError, ValueError, RuntimeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path}: not readable as an ONNX file ({type(error).__name__})") from None
    for text in _texts(found.graph):
        if not isinstance(text, str):  # protobuf returns bytes where a text is not UTF-8
            raise Refused(f"{path}: not readable as an ONNX file (a name is not UTF-8)")
        if len(text) > MAX_NAME or not text.isprintable():
            raise Refused(f"{path}: a name of {len(text)} characters, {text[:40]!a}, is too long or not plain")
    if not found.graph.node:
        raise Refused(f"{path}: not an ONNX file, or one without nodes")
    return found


class TooMuchError(ValueError):
    """More nodes, fields or dimensions than any model has."""


def _texts(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)
    for named in (graph.initializer, graph.input, graph.output):
        yield from (value.name for value in named)


def _parse(data: memoryview) -> OnnxFile:
    """Count everything before protobuf makes objects of it."""
    graph, raw, opset = GraphProto(), {}, 1
    rest, nodes = bytearray(), 0
    room = Room()
    for outer in _fields(data, 0, len(data), room):
        if outer.number == OPSETS:
            imported = onnx.OperatorSetIdProto.FromString(bytes(data[outer.value : outer.end]))
            opset = imported.version if imported.domain in ("", "ai.onnx") else opset
        if outer.number != GRAPH:
            continue
        for inner in _fields(data, outer.value, outer.end, room):
            nodes += inner.number in (NODE, INITIALIZER)
            if nodes > MAX_NODES:
                raise TooMuchError(f"more than {MAX_NODES} nodes and weights")
            if inner.number == INITIALIZER:
                tensor, content = _tensor(data, inner, room)
                graph.initializer.append(tensor)
                if content is not None:
                    raw[tensor.name] = content
            elif inner.number in KEPT:
                _count(data, inner, room)
                rest += data[inner.start : inner.end]
    graph.MergeFromString(bytes(rest))
    constants = (a.t for node in graph.node for a in node.attribute if a.HasField("t"))
    for tensor in itertools.chain(graph.initializer, constants):
        if len(tensor.dims) > MAX_RANK:
            raise TooMuchError(f"a tensor of {len(tensor.dims)} dimensions")
    return OnnxFile(graph, raw, opset)


def _count(data: memoryview, place: Field, room: Room) -> None:
    """Count the fields of a node, of its attributes and of their tensors; other messages are small or not used."""
    if place.number != NODE:
        _small(place)
        return
    for field in _fields(data, place.value, place.end, room):
        for part in _fields(data, field.value, field.end, room) if field.number == ATTRIBUTE else ():
            if part.number == VALUE:
                for _ in _fields(data, part.value, part.end, room):
                    pass
            elif part.number in NESTED:
                _small(part)


def _small(place: Field) -> None:
    if place.end - place.start > MAX_NESTED:
        raise TooMuchError(f"a description of {place.end - place.start} bytes in one node or input")


def _tensor(data: memoryview, place: Field, room: Room) -> tuple[TensorProto, memoryview | None]:
    described, content = bytearray(), None
    for field in _fields(data, place.value, place.end, room):
        if field.number == RAW_DATA:
            content = data[field.value : field.end]
        else:
            described += data[field.start : field.end]
    return TensorProto.FromString(bytes(described)), content


def _fields(data: memoryview, start: int, stop: int, room: Room) -> Iterator[Field]:
    """The fields of the message in `start:stop`.

    Raises:
        DecodeError: the message is malformed, or ends at another place than `stop`.
        TooMuchError: more fields than the limit.
    """
    while start < stop:
        room.take()
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
