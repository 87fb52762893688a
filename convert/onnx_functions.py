"""The ONNX operators of the two official files as float64 functions. Where versions of onnxruntime differ, they follow
1.18.

A function takes a node's attributes and inputs. It checks the sizes of what it makes before it takes memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from convert.onnx_ops import Attributes, NodeError

MAX_VALUES = 1 << 24  # in one tensor; the largest at full size has 6.6 million, a weight
TYPES = {
    onnx.TensorProto.FLOAT: torch.float64,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}

Values = Sequence[Any]  # tensors; None where an optional input is left out
Op = Callable[[Attributes, Values], Tensor | list[Tensor]]


class RoomError(ValueError):
    """A tensor larger than any that a model has."""


def room(*sizes: int) -> None:
    """Refuse a tensor that is too large, before it is made.

    Raises:
        RoomError: more than `MAX_VALUES` values.
    """
    if math.prod(sizes) > MAX_VALUES:
        raise RoomError(f"a tensor of more than {MAX_VALUES} values")


def _ints(value: Tensor | None) -> list[int]:
    return [] if value is None else [int(item) for item in value.reshape(-1).tolist()]


def _axes(a: Attributes, v: Values, place: int = 1) -> list[int]:
    """An operator's axes: an attribute in older operator sets, an input in newer ones."""
    return list(a["axes"]) if "axes" in a else _ints(v[place]) if len(v) > place else []


def _reduce(function: Callable[..., Any]) -> Op:
    def reduce(a: Attributes, v: Values) -> Tensor:
        (x, *_), axes = v, _axes(a, v)
        if not axes and a.get("noop_with_empty_axes", 0):
            return x
        axes = [axis % x.dim() for axis in axes] or list(range(x.dim()))
        for axis in sorted(axes, reverse=True):
            x = function(x, dim=axis, keepdim=bool(a.get("keepdims", 1)))
        return x

    return reduce


def _div(a: Attributes, v: Values) -> Tensor:
    x, y = v
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _reshape(a: Attributes, v: Values) -> Tensor:
    x, shape = v[0], _ints(v[1])
    if not a.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _slice(a: Attributes, v: Values) -> Tensor:
    x = v[0]
    if len(v) > 1:
        starts, ends = _ints(v[1]), _ints(v[2])
        axes = _ints(v[3]) if len(v) > 3 and v[3] is not None else list(range(len(starts)))
        steps = _ints(v[4]) if len(v) > 4 and v[4] is not None else [1] * len(starts)
    else:
        starts, ends = a["starts"], a["ends"]
        axes, steps = a.get("axes", list(range(len(starts)))), [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        kept = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64))
    return x


def _gather(a: Attributes, v: Values) -> Tensor:
    x, indices = v
    axis, size = a["axis"] % x.dim(), x.shape[a["axis"]]
    room(x.numel() // max(size, 1), indices.numel())
    if not ((indices >= -size) & (indices < size)).all():
        raise IndexError
    found = x.index_select(axis, (indices.reshape(-1) % size).long())
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _unsqueeze(a: Attributes, v: Values) -> Tensor:
    (x, *_), axes = v, _axes(a, v)
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Attributes, v: Values) -> Tensor:
    (x, *_), axes = v, _axes(a, v)
    dropped = {axis % x.dim() for axis in axes} or {i for i, size in enumerate(x.shape) if size == 1}
    if any(x.shape[i] != 1 for i in dropped):
        raise ValueError
    return x.reshape([size for i, size in enumerate(x.shape) if i not in dropped])


def _expand(a: Attributes, v: Values) -> Tensor:
    shape = torch.broadcast_shapes(v[0].shape, _ints(v[1]))
    room(*shape)
    return v[0].expand(shape)


def _filled(a: Attributes, v: Values) -> Tensor:
    shape = _ints(v[0])
    room(*shape)
    return as_tensor(a["value"] if "value" in a else np.zeros(1, np.float32)).reshape([]).expand(shape)


def _range(a: Attributes, v: Values) -> Tensor:
    start, limit, step = (value.item() for value in v)
    room(math.ceil((limit - start) / step))
    return torch.arange(start, limit, step, dtype=v[0].dtype)


def _concat(a: Attributes, v: Values) -> Tensor:
    room(sum(x.numel() for x in v))
    return torch.cat(list(v), dim=a["axis"])


def _split(a: Attributes, v: Values) -> list[Tensor]:
    sizes = a.get("split") or _ints(v[1])
    return list(torch.split(v[0], sizes, dim=a["axis"]))


def _constant(a: Attributes, v: Values) -> Tensor:
    ((name, value),) = a.items()
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return as_tensor(value if name == "value" else np.array(value, kinds[name]))


def _clip(a: Attributes, v: Values) -> Tensor:
    low, high = ([*v[1:], None, None][:2]) if len(v) > 1 else (a.get("min"), a.get("max"))
    return v[0] if low is None and high is None else torch.clamp(v[0], low, high)


def _layer_norm(a: Attributes, v: Values) -> Tensor:
    x, (scale, bias) = v[0], [*v[1:], None][:2]
    axes = list(range(a["axis"] % x.dim(), x.dim()))
    x = x - x.mean(axes, keepdim=True)
    x = x / torch.sqrt((x * x).mean(axes, keepdim=True) + _single(a["epsilon"])) * scale
    return x if bias is None else x + bias


def _batch_norm(a: Attributes, v: Values) -> Tensor:
    x, *vectors = v
    weight, bias, mean, variance = (vector.reshape(-1, *[1] * (x.dim() - 2)) for vector in vectors)
    return (x - mean) / torch.sqrt(variance + _single(a["epsilon"])) * weight + bias


def _conv(a: Attributes, v: Values) -> Tensor:
    x, w, bias = [*v, None][:3]
    space = w.dim() - 2
    ones, pads = [1] * space, a.get("pads", [0] * 2 * space)
    if a["group"] < 1 or min(pads, default=0) < 0 or pads[:space] != pads[space:]:
        raise ValueError
    function = {1: F.conv1d, 2: F.conv2d}[space]
    return function(x, w, bias, a.get("strides", ones), pads[:space], a.get("dilations", ones), a["group"])


def _average_pool(a: Attributes, v: Values) -> Tensor:
    """Over the last axis. onnxruntime up to 1.23 divides every window by the kernel where padding is included, also a
    last one that reaches past the end (its issues 16203, 16752); without, by what the window holds."""
    x, (size,), (step,) = v[0], a["kernel_shape"], a.get("strides", [1])
    parts = list(x.split(size, dim=-1)) if size == step else []
    if not parts:
        raise ValueError
    means = [p.sum(-1, keepdim=True) / (size if a["count_include_pad"] else p.shape[-1]) for p in parts]
    return torch.cat(means, dim=-1)


def _gemm(a: Attributes, v: Values) -> Tensor:
    x, w, *bias = v
    y = a["alpha"] * (x.T if a["transA"] else x) @ (w.T if a["transB"] else w)
    return y + a["beta"] * bias[0] if bias else y


def _pad(a: Attributes, v: Values) -> Tensor:
    x, pads = v[0], _ints(v[1]) if len(v) > 1 else list(a["pads"])
    value = v[2].item() if len(v) > 2 and v[2] is not None else 0.0
    if a.get("mode", "constant") != "constant" or len(v) > 3 or len(pads) != 2 * x.dim():
        raise ValueError
    room(*(size + abs(pads[i]) + abs(pads[x.dim() + i]) for i, size in enumerate(x.shape)))
    return F.pad(x, [pads[i + side] for i in reversed(range(x.dim())) for side in (0, x.dim())], value=value)


def _shape(a: Attributes, v: Values) -> Tensor:
    return torch.tensor(list(v[0].shape)[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _single(value: float) -> float:
    return float(np.float32(value))


def as_tensor(array: np.ndarray) -> Tensor:
    """An array as the graph's values are held here: float64 for float32.

    Raises:
        NodeError: of another type, or too large.
    """
    if array.size > MAX_VALUES or array.dtype.name not in ("float32", "float64", "int32", "int64", "bool"):
        raise NodeError(f"a constant of {array.size} values of type {array.dtype} occurs in neither model")
    array = array.astype(np.float64) if array.dtype == np.float32 else array.copy()
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def _of(function: Callable[..., Tensor]) -> Op:
    return lambda a, v: function(*v)


BROADCAST: dict[str, Op] = {
    "Add": _of(torch.add),
    "And": _of(torch.logical_and),
    "Div": _div,
    "Equal": _of(torch.eq),
    "Greater": _of(torch.gt),
    "GreaterOrEqual": _of(torch.ge),
    "Less": _of(torch.lt),
    "LessOrEqual": _of(torch.le),
    "Max": _of(torch.maximum),
    "Min": _of(torch.minimum),
    "Mul": _of(torch.mul),
    "Or": _of(torch.logical_or),
    "Pow": lambda a, v: torch.pow(v[0], v[1]).to(v[0].dtype),
    "Sub": _of(torch.sub),
    "Where": _of(torch.where),
}
OPS: dict[str, Op] = {
    **BROADCAST,
    "Abs": _of(torch.abs),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda a, v: v[0].to(TYPES[a["to"]]),
    "Ceil": _of(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Cos": _of(torch.cos),
    "Erf": _of(torch.erf),
    "Exp": _of(torch.exp),
    "Expand": _expand,
    "Flatten": lambda a, v: v[0].reshape(math.prod(v[0].shape[: a["axis"]]), -1),
    "Floor": _of(torch.floor),
    "Gather": _gather,
    "Gelu": _of(F.gelu),
    "Gemm": _gemm,
    "Identity": lambda a, v: v[0],
    "LayerNormalization": _layer_norm,
    "Log": _of(torch.log),
    "MatMul": _of(torch.matmul),
    "Neg": _of(torch.neg),
    "Not": _of(torch.logical_not),
    "Pad": _pad,
    "Range": _range,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(torch.prod),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _of(torch.relu),
    "Reshape": _reshape,
    "Round": _of(torch.round),
    "Shape": _shape,
    "Sigmoid": _of(torch.sigmoid),
    "Sin": _of(torch.sin),
    "Slice": _slice,
    "Softmax": lambda a, v: torch.softmax(v[0], dim=a["axis"]),
    "Split": _split,
    "Sqrt": _of(torch.sqrt),
    "Squeeze": _squeeze,
    "Tanh": _of(torch.tanh),
    "Transpose": lambda a, v: v[0].permute(a.get("perm", list(range(v[0].dim()))[::-1])),
    "Unsqueeze": _unsqueeze,
}
