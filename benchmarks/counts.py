"""Counts that are the same on every device, from the graph that MLX traces: nothing is timed, little is computed.

The graph is exported through `mx.export_function`, which names each primitive with the shapes of its inputs. Kernels
that MLX fuses on one device and not on another appear as this device's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import mlx.core as mx

# These only move or reshape data; the other primitives compute something for each element.
LAYOUT = {"Broadcast", "ExpandDims", "Squeeze", "Reshape", "Flatten", "Unflatten", "Transpose", "Slice", "Split"}
LAYOUT |= {"Contiguous", "AsStrided", "Copy"}


@dataclass(frozen=True)
class Counts:
    """The cost of one run of a graph.

    Attributes:
        matmul_flops: floating-point operations of matrix products and convolutions, two a multiplication.
        weight_bytes: bytes read besides the inputs: weights, and rows taken from tables.
        primitives: operations of the graph, without those that only change the layout.
        layout_primitives: operations that only change the layout.
        by_name: operations by the name of their primitive.
        idle_waits: host waits per token with nothing queued; None if the graph is no step of a loop.
    """

    matmul_flops: int
    weight_bytes: int
    primitives: int
    layout_primitives: int
    by_name: dict[str, int]
    idle_waits: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def count(function: Callable[..., Any], *arguments: mx.array) -> Counts:
    """Trace `function` and count; it must not evaluate anything.

    Raises:
        ValueError: a primitive that multiplies matrices has no counting rule.
    """
    events: list[dict[str, Any]] = []
    mx.disable_compile()  # a compiled function would count as one primitive, and cannot be exported
    try:
        with patch.object(mx, "contiguous", lambda x: x):  # a change of layout that cannot be exported either
            mx.export_function(events.append, function, *arguments)
    finally:
        mx.enable_compile()
    constants = {name: a for event in events if event["type"] == "constants" for name, a in event["constants"]}
    steps = [event for event in events if event["type"] == "primitive"]
    names = Counter(step["name"] for step in steps)
    moved = sum(n for name, n in names.items() if name in LAYOUT)
    return Counts(
        matmul_flops=sum(_flops(step) for step in steps),
        weight_bytes=sum(_read(name, array, steps) for name, array in constants.items()),
        primitives=names.total() - moved,
        layout_primitives=moved,
        by_name=dict(sorted(names.items())),
    )


def _read(name: str, array: mx.array, steps: list[dict[str, Any]]) -> int:
    """Bytes of an array that the steps read: all of it, or the rows or slice that they take."""
    readers = [step for step in steps if name in (given for given, *_ in step["inputs"])]
    taken = [math.prod(step["outputs"][0][1]) * array.itemsize for step in readers]
    if {step["name"] for step in readers} <= {"Gather", "Slice"}:
        return min(array.nbytes, sum(taken))
    return array.nbytes


def _flops(step: dict[str, Any]) -> int:
    name, (_, out, _) = step["name"], step["outputs"][0]
    shapes = [shape for _, shape, _ in step["inputs"]]
    if name in ("Matmul", "AddMM"):
        return 2 * math.prod(out) * shapes[0][-1]
    if name == "Convolution":
        # Weights (O, ..., C / g): each output value is a sum over all but the first axis.
        return 2 * math.prod(out) * math.prod(shapes[1][1:])
    if name == "QuantizedMatmul":
        return 2 * math.prod(out) * shapes[0][-1]
    if name == "ScaledDotProductAttention":
        return 2 * math.prod(out) * shapes[1][-2] * 2
    if "matmul" in name.lower() or "mm" in name.lower().split("_"):
        raise ValueError(f"counts: the primitive {name} multiplies matrices and has no counting rule; add one")
    return 0
