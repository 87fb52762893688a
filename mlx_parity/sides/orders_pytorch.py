"""Run the reference in float32 as another machine would: sums in another order, functions one unit off.

One float32 run does not measure the error: on small tensors it may be small by luck, and then a port that is as
exact as any looks wrong. IEEE 754 fixes neither the order of the terms of a sum nor the last bits of a sine, and
BLAS libraries and GPUs differ in both. Further runs in other orders show how large float32 errors can be.

b batch, n rows or frames, K terms of a sum, g groups
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

LONGEST = 256  # steps of one sum: longer sums are added in larger blocks, to limit the time
BLOCKS = (1, 4, 16, 64)  # sizes of the blocks that the machine's own kernel adds
FURTHER = len(BLOCKS)  # runs beside the plain one, one for each size of block
UNITS = 1  # in the last place, by which a sine or an exponential may be off

aten = torch.ops.aten
Handler = Callable[..., Any]
Result = TypeVar("Result")


class Lazily(Sequence[Result]):
    """The results of `make`, computed on first access."""

    def __init__(self, make: Callable[[], Sequence[Result]]) -> None:
        self._make = make
        self._made: Sequence[Result] | None = None

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def _all(self) -> Sequence[Result]:
        if self._made is None:
            self._made = self._make()
        return self._made


def in_other_orders(run: Callable[[], Result]) -> Sequence[Result]:
    """The results of `run` in each of `FURTHER` orders of its sums."""

    def in_order(seed: int) -> Result:
        with Order(seed):
            return run()

    return Lazily(lambda: [in_order(seed) for seed in range(FURTHER)])


class Order(TorchDispatchMode):
    """A context in which float32 operations of PyTorch round as on a simulated machine.

    Terms of products, convolutions, means and norms are permuted and added in blocks; functions that IEEE 754 leaves
    open are off by up to `UNITS`. Other dtypes are left alone, so a float64 run is the same inside and outside.

    Args:
        seed: of the machine; the same seed gives the same numbers.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng((seed, 0))
        self.block = BLOCKS[seed % len(BLOCKS)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if handler is not None and _is_single(args):
            # An operation without a handler keeps this machine's order, which can only make e_ref smaller.
            with contextlib.suppress(NotImplementedError):
                return handler(self, *args, **kwargs)
        if handler is None and is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        found = func(*args, **kwargs)
        return self.off(found) if func in FUNCTIONS and _is_single(args) else found

    def parts(self, count: int) -> Iterator[torch.Tensor]:
        """The indices of `count` terms, permuted, in blocks of the machine."""
        block = max(self.block, math.ceil(count / LONGEST))
        yield from torch.from_numpy(self.rng.permutation(count)).split(block)

    def off(self, y: torch.Tensor) -> torch.Tensor:
        """Each finite number but 0 and 1 moved by up to `UNITS` in the last place: cos 0 is exact everywhere."""
        units = torch.from_numpy(self.rng.integers(-UNITS, UNITS + 1, tuple(y.shape), dtype=np.int32))
        moved = (y.contiguous().view(torch.int32) + units).view(torch.float32)
        return torch.where(torch.isfinite(moved) & (y != 0) & (y.abs() != 1), moved, y)

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(..., n, K) times (..., K, m)."""
        y = torch.zeros(())
        for part in self.parts(a.shape[-1]):
            y = y + a[..., part] @ b[..., part, :]
        return y

    def sum(self, x: torch.Tensor, dims: Sequence[int], keepdim: bool = False) -> torch.Tensor:
        """Over `dims`; over all of them where none is named."""
        dims = sorted(d % x.ndim for d in dims) if dims else list(range(x.ndim))
        rest = [d for d in range(x.ndim) if d not in dims]
        flat = x.permute(*rest, *dims).reshape(*(x.shape[d] for d in rest), -1)
        y = torch.zeros(flat.shape[:-1])
        for part in self.parts(flat.shape[-1]):
            y = y + flat[..., part].sum(-1)
        return y.reshape([1 if d in dims else n for d, n in enumerate(x.shape)]) if keepdim else y


def _is_single(args: Sequence[Any]) -> bool:
    tensors = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    return bool(tensors) and all(t.dtype == torch.float32 for t in tensors)


def is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), torch._C.DispatchKey.CompositeImplicitAutograd)


def _addmm(order: Order, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **scales: float) -> torch.Tensor:
    return scales.get("beta", 1) * bias + scales.get("alpha", 1) * order.product(a, b)


def _convolution(
    order: Order,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """By channels in, those of a group; where a group has one only, by taps, the others zero."""
    if transposed:
        raise NotImplementedError("a transposed convolution in another order")
    convolve = {3: F.conv1d, 4: F.conv2d}[x.ndim]
    further = (stride, padding, dilation, groups)
    channels = weight.shape[1]
    y = torch.zeros(())
    if channels == 1:
        for part in order.parts(weight[0, 0].numel()):
            taps = torch.zeros(weight[0, 0].numel()).index_fill_(0, part, 1.0).reshape(weight[0, 0].shape)
            y = y + convolve(x, weight * taps, None, *further)
    else:
        by_group = x.unflatten(1, (groups, channels))
        for part in order.parts(channels):
            y = y + convolve(by_group[:, :, part].flatten(1, 2), weight[:, part], None, *further)
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))


def _layer_norm(
    order: Order,
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dims, count = list(range(x.ndim - len(shape), x.ndim)), math.prod(shape)
    mean = order.sum(x, dims, keepdim=True) / count
    scale = order.off(torch.rsqrt(order.sum((x - mean) ** 2, dims, keepdim=True) / count + eps))
    y = (x - mean) * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, scale


def _softmax(order: Order, x: torch.Tensor, dim: int, half_to_float: bool = False) -> torch.Tensor:
    y = order.off(torch.exp(x - x.amax(dim, keepdim=True)))
    return y / order.sum(y, [dim], keepdim=True)


def _log_softmax(order: Order, x: torch.Tensor, dim: int, half_to_float: bool = False) -> torch.Tensor:
    x = x - x.amax(dim, keepdim=True)
    return x - order.off(torch.log(order.sum(order.off(torch.exp(x)), [dim], keepdim=True)))


def _attention(
    order: Order,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if dropout_p:
        raise NotImplementedError("attention with dropout in another order")
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    scores = order.product(q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale), k.transpose(-1, -2))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return order.product(torch.nan_to_num(_softmax(order, scores, -1)), v)  # a row that sees no key is zero


def _mean(order: Order, x: torch.Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any) -> Any:
    count = math.prod(x.shape[d] for d in dim) if dim else x.numel()
    return order.sum(x, dim or (), keepdim) / count


def _sum(order: Order, x: torch.Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any) -> Any:
    return order.sum(x, dim or (), keepdim)


def _norm(
    order: Order, x: torch.Tensor, ord: float = 2, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any
) -> torch.Tensor:
    if ord != 2:
        raise NotImplementedError(f"norm of order {ord} in another order")
    return torch.sqrt(order.sum(x * x, dim or (), keepdim))


def _std(
    order: Order, x: torch.Tensor, dim: Sequence[int] | None = None, *, correction: float = 1, keepdim: bool = False
) -> torch.Tensor:
    count = math.prod(x.shape[d] for d in dim) if dim else x.numel()
    mean = order.sum(x, dim or (), keepdim=True) / count
    return torch.sqrt(order.sum((x - mean) ** 2, dim or (), keepdim) / (count - correction))


HANDLERS: dict[Any, Handler] = {
    aten.mm.default: Order.product,
    aten.bmm.default: Order.product,
    aten.mv.default: lambda order, a, b: order.product(a, b[:, None])[:, 0],
    aten.dot.default: lambda order, a, b: order.product(a[None], b[:, None])[0, 0],
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.convolution.default: _convolution,
    aten.native_layer_norm.default: _layer_norm,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten.scaled_dot_product_attention.default: _attention,
    aten.mean.dim: _mean,
    aten.mean.default: _mean,
    aten.sum.dim_IntList: _sum,
    aten.sum.default: _sum,
    aten.linalg_vector_norm.default: _norm,
    aten.std.correction: _std,
}
# Whose last bits IEEE 754 leaves open; what consists of them (GELU, Mish, SiLU) is off as a whole.
FUNCTIONS = {
    getattr(aten, name).default
    for name in (
        *("exp", "expm1", "log", "log10", "sin", "cos", "sinc", "tanh", "erf", "sigmoid", "rsqrt"),
        *("silu", "mish", "gelu", "elu", "softplus"),
    )
}
