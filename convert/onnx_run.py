"""Run an ONNX graph node by node in float64, with attributes read as onnxruntime 1.18 reads them.

Nothing in a file is executed as code: a node names an operator of onnx_functions.py or is refused. Sizes are checked
before allocation, and the total work of all nodes is limited.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from onnx import NodeProto
from torch import Tensor

from convert.onnx_functions import BROADCAST, OPS, RoomError, Values, as_tensor, room
from convert.onnx_ops import Attributes, NodeError, label, tensor_value

MAX_WORK = 1 << 37  # multiplications, and values, of all nodes; the full tokenizer takes some 2^33 for 60 frames


class UnknownOpError(Exception):
    """An operator that has no function here."""


def run(
    nodes: Sequence[NodeProto],
    attributes: Callable[[NodeProto], Attributes],
    stored: Callable[[str], Tensor | None],
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
) -> Iterator[tuple[NodeProto, Values, list[Tensor]]]:
    """Compute what `outputs` need, in the order of the file.

    Args:
        stored: a constant or weight by name; None for other names.
        inputs: by name, float64 where the graph has float32.

    Yields:
        Each node with its inputs and its outputs.

    Raises:
        UnknownOpError: an operator that is not supported here.
        NodeError: a node that cannot be computed, in one line.
    """
    needed = _needed(nodes, outputs)
    uses = Counter(name for node in needed for name in _reads(node))
    uses.update(outputs)
    values: dict[str, Tensor] = dict(inputs)
    work = 0

    def find(name: str) -> Tensor | None:
        return values[name] if name in values else stored(name)

    for node in needed:
        given = [find(name) if name else None for name in node.input]
        for name, value in zip(node.input, given, strict=True):
            if name and value is None:
                raise NodeError(f"{label(node)}: no earlier node gives its input {name!a}")
        try:
            work += _work(node, given)
            if work > MAX_WORK:
                raise NodeError(f"{label(node)}: more work than any model takes")
            results = _results(node, given, attributes, find)
        except (NodeError, UnknownOpError):
            raise
        except RoomError as error:
            raise NodeError(f"{label(node)}: {error}") from None
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError, ArithmeticError) as error:
            raise NodeError(f"{label(node)}: cannot be computed ({type(error).__name__})") from None
        work += sum(value.numel() for value in results)
        values.update((name, value) for name, value in zip(node.output, results, strict=False) if name)
        yield node, given, results
        for name in _reads(node):
            uses[name] -= 1
            if not uses[name]:
                values.pop(name, None)


def _results(
    node: NodeProto,
    given: Values,
    attributes: Callable[[NodeProto], Attributes],
    find: Callable[[str], Tensor | None],
) -> list[Tensor]:
    if node.domain in ("", "ai.onnx") and node.op_type == "If":
        return _branch(attributes(node), given, attributes, find)
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPS:
        raise UnknownOpError(f"operator {node.op_type} of {node.domain or 'ONNX'}")
    result = OPS[node.op_type](attributes(node), given)
    return result if isinstance(result, list) else [result]


def _branch(
    a: Attributes,
    v: Values,
    attributes: Callable[[NodeProto], Attributes],
    find: Callable[[str], Tensor | None],
) -> list[Tensor]:
    """The result of the chosen branch; the exporter writes an If where it cannot tell whether a size is 1."""
    graph = a["then_branch" if v[0].item() else "else_branch"]
    if any(node.op_type == "If" for node in graph.node):
        raise NodeError("an If inside an If occurs in neither model")
    own = {tensor.name: as_tensor(tensor_value(tensor)) for tensor in graph.initializer}
    outputs = [output.name for output in graph.output]
    found: dict[str, Tensor] = {}
    for node, _, results in run(graph.node, attributes, lambda name: own.get(name, find(name)), {}, outputs):
        found.update(zip(node.output, results, strict=False))
    given = [found[name] if name in found else find(name) for name in outputs]
    results = [result for result in given if result is not None]
    if len(results) < len(outputs):
        raise NodeError("a branch has other outputs than its If")
    return results


def _reads(node: NodeProto) -> list[str]:
    """The inputs of a node and what its branches read."""
    branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [*node.input, *(name for g in branches for inner in g.node for name in inner.input)] + [
        output.name for g in branches for output in g.output
    ]


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    wanted, needed = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_reads(node))
            needed.append(node)
    return needed[::-1]


def _work(node: NodeProto, given: Values) -> int:
    """Multiplications of the costly operators; also checks the size of broadcast results."""
    shapes = [value.shape for value in given if value is not None]
    if node.op_type in ("MatMul", "Gemm", "Conv") and len(shapes) > 1:
        x, w = shapes[:2]
        if node.op_type == "Conv":
            room(x.numel(), 2)
            return x[0] * w.numel() * math.prod(size + 64 for size in x[2:])
        batch = torch.broadcast_shapes(x[:-2], w[:-2]) if node.op_type == "MatMul" else ()
        rows, columns = math.prod(x[-2:]), w.numel() // max(1, math.prod(w[:-1]))
        room(*batch, math.prod(x[-2:-1]), columns)
        return math.prod(batch) * rows * max(columns, *w[-2:])
    if node.op_type in BROADCAST:
        room(*torch.broadcast_shapes(*shapes))
    return 0
