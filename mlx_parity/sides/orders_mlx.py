"""Run MLX as another machine would: the counterpart of `orders_pytorch.py`.

Only the measurement of false alarms runs the port in it; a verdict never does.

K terms of a sum, g groups
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parity.sides.orders_pytorch import BLOCKS, LONGEST, UNITS

FUNCTIONS = ["exp", "expm1", "log", "log1p", "log10", "logaddexp", "sin", "cos", "tanh", "erf", "sigmoid", "rsqrt"]


class Order:
    """A context in which MLX's float32 operations round as on a simulated machine; other dtypes are unchanged.

    Whole process, one thread: MLX's functions are exchanged, and `mx.compile` is off, since a compiled graph would
    keep the functions it was traced with.

    Args:
        seed: of the machine; the same seed gives the same numbers.
        forget: called on entering and on leaving; drops what the port keeps of the machine that it found.
    """

    def __init__(self, seed: int, forget: Callable[[], None] = lambda: None) -> None:
        self.rng = np.random.default_rng((seed, 1))
        self._forget = forget
        self.block = BLOCKS[seed % len(BLOCKS)]
        self._undo: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Order:
        mx.disable_compile()
        self._forget()
        self.matmul, self.convolve = mx.array.__matmul__, {3: mx.conv1d, 4: mx.conv2d}
        for owner, name, make in _PATCHES:
            original = getattr(owner, name)
            self._undo.append((owner, name, original))
            setattr(owner, name, make(self, original))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            setattr(*self._undo.pop())
        mx.enable_compile()
        self._forget()

    def parts(self, count: int) -> Iterator[mx.array]:
        """The indices of `count` terms, permuted, in blocks of the machine."""
        order, block = self.order(count)
        yield from (mx.array(order[start : start + block]) for start in range(0, count, block))

    def order(self, count: int) -> tuple[np.ndarray, int]:
        """The indices of `count` terms, permuted, and how many make a block."""
        return self.rng.permutation(count).astype(np.int32), max(self.block, math.ceil(count / LONGEST))

    def off(self, y: mx.array) -> mx.array:
        """Each finite number but 0 and 1 moved by up to `UNITS` in the last place: cos 0 is exact everywhere."""
        if y.dtype != mx.float32 or not y.size:
            return y
        units = mx.array(self.rng.integers(-UNITS, UNITS + 1, y.shape, dtype=np.int32))
        moved = mx.view(mx.view(mx.contiguous(y), mx.int32) + units, mx.float32)
        return mx.where(mx.isfinite(moved) & (y != 0) & (mx.abs(y) != 1), moved, y)

    def product(self, a: mx.array, b: mx.array) -> mx.array:
        """(..., n, K) times (..., K, m), or (..., n, K) times (K,)."""
        if a.dtype != mx.float32 or b.dtype != mx.float32:
            return self.matmul(a, b)
        if b.ndim == 1:
            return self.product(a, b[:, None])[..., 0]
        if a.ndim == 1:
            return self.product(a[None], b)[..., 0, :]
        if b.ndim == 2:
            return self.product(a.reshape(1, -1, a.shape[-1]), b[None]).reshape(*a.shape[:-1], b.shape[-1])
        a, b = (t.reshape(*[1] * (max(a.ndim, b.ndim) - t.ndim), *t.shape) for t in (a, b))
        order = self.order(a.shape[-1])
        a, b = _blocks(a, *order), _blocks(b.swapaxes(-1, -2), *order)
        return _one_by_one(self.matmul(a, b.swapaxes(-1, -2)))

    def sum(self, x: mx.array, axis: int | Sequence[int] | None, keepdims: bool) -> mx.array:
        axes = sorted(a % x.ndim for a in ([axis] if isinstance(axis, int) else axis or range(x.ndim)))
        rest = [a for a in range(x.ndim) if a not in axes]
        flat = x.transpose(*rest, *axes).reshape(*(x.shape[a] for a in rest), -1)
        blocks = _blocks(flat, *self.order(flat.shape[-1]))
        y = _one_by_one(self.matmul(blocks, mx.ones((blocks.shape[-1], 1)))[..., 0])
        return y.reshape([1 if a in axes else n for a, n in enumerate(x.shape)]) if keepdims else y

    def mean(self, x: mx.array, axis: int | Sequence[int] | None, keepdims: bool) -> mx.array:
        y = self.sum(x, axis, keepdims)
        return y / (x.size // max(y.size, 1))

    def softmax(self, x: mx.array, axis: int = -1) -> mx.array:
        y = mx.exp(x - x.max(axis=axis, keepdims=True))
        return y / self.sum(y, axis, True)


def _blocks(x: mx.array, order: np.ndarray, block: int) -> mx.array:
    """(..., K) as (blocks, ..., terms of a block); zeros fill the last. All at once: few operations for many terms."""
    x = mx.take(x, mx.array(order), axis=-1)
    x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -len(order) % block)])
    return mx.moveaxis(mx.unflatten(x, -1, (-1, block)), -2, 0)


def _one_by_one(parts: mx.array) -> mx.array:
    """The sum of (blocks, ...) over the first axis, each added to the sum of those before it."""
    return mx.cumsum(parts, axis=0)[-1]


def _matmul(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b, **_: order.product(a, b)


def _addmm(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    def addmm(c: mx.array, a: mx.array, b: mx.array, alpha: float = 1.0, beta: float = 1.0, **_: Any) -> mx.array:
        return beta * c + alpha * order.product(a, b)

    return addmm


def _convolution(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    def convolve(x: mx.array, weight: mx.array, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1):  # noqa: ANN202
        further = (stride, padding, dilation, groups)
        if x.dtype != mx.float32:
            return original(x, weight, *further)
        y, channels = mx.zeros(()), weight.shape[-1]
        by_group = x.reshape(*x.shape[:-1], groups, channels)
        for part in order.parts(channels):
            taken = mx.take(by_group, part, axis=-1).reshape(*x.shape[:-1], -1)
            y = y + original(taken, mx.take(weight, part, axis=-1), *further)
        return y

    return convolve


def _attention(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    def attend(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **_: Any) -> mx.array:
        if q.dtype != mx.float32:
            return original(q, k, v, scale=scale, mask=mask)
        groups = q.shape[1] // k.shape[1]
        k, v = (mx.repeat(t, groups, axis=1) for t in (k, v))
        scores = order.product(q * scale, k.swapaxes(-1, -2))
        if isinstance(mask, str):  # "causal"
            n, m = scores.shape[-2:]
            mask = mx.arange(m)[None] <= mx.arange(m - n, m)[:, None]
        if mask is not None:
            scores = mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
        return order.product(order.softmax(scores), v)

    return attend


def _layer_norm(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    def norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, **_: Any) -> mx.array:
        if x.dtype != mx.float32:
            return original(x, weight, bias, eps)
        x = x - order.mean(x, -1, True)
        y = x * mx.rsqrt(order.mean(x * x, -1, True) + eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    return norm


def _rms_norm(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    def norm(x: mx.array, weight: mx.array | None, eps: float, **_: Any) -> mx.array:
        if x.dtype != mx.float32:
            return original(x, weight, eps)
        y = x * mx.rsqrt(order.mean(x * x, -1, True) + eps)
        return y if weight is None else y * weight

    return norm


def _reduction(name: str) -> Callable[[Order, Callable[..., Any]], Callable[..., Any]]:
    def make(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
        def reduce(x: mx.array, axis: Any = None, keepdims: bool = False, **_: Any) -> mx.array:
            if x.dtype != mx.float32 or not x.size:
                return original(x, axis, keepdims)
            return getattr(order, name)(x, axis, keepdims)

        return reduce

    return make


def _softmax(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis=-1, **_: original(x, axis) if x.dtype != mx.float32 else order.softmax(x, axis)


def _logsumexp(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    def logsumexp(x: mx.array, axis: Any = None, keepdims: bool = False, **_: Any) -> mx.array:
        if x.dtype != mx.float32:
            return original(x, axis, keepdims)
        largest = x.max(axis=axis, keepdims=True)
        y = mx.log(order.sum(mx.exp(x - largest), axis, True)) + largest
        return y if keepdims else y.squeeze(axis)

    return logsumexp


def _function(order: Order, original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: order.off(original(*args, **kwargs))


_PATCHES: list[tuple[Any, str, Callable[[Order, Callable[..., Any]], Callable[..., Any]]]] = [
    (mx.array, "__matmul__", _matmul),
    (mx, "matmul", _matmul),
    (mx, "addmm", _addmm),
    (mx, "conv1d", _convolution),
    (mx, "conv2d", _convolution),
    (mx.fast, "scaled_dot_product_attention", _attention),
    (mx.fast, "layer_norm", _layer_norm),
    (mx.fast, "rms_norm", _rms_norm),
    (mx, "softmax", _softmax),
    (mx, "logsumexp", _logsumexp),
    *((owner, name, _reduction(name)) for owner in (mx, mx.array) for name in ("sum", "mean")),
    *((mx, name, _function) for name in FUNCTIONS),
]
