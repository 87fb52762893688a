"""Fast forms of what the transformers' plain layers compute; `port/fast/paths.py` chooses, and the result is the same.

MLX's CPU back end takes exp and tanh one number at a time; here one polynomial serves both, in operations that every
device runs side by side.

b batch, h heads, n frames (m of them keys), c channels per head
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .convolution import compiles_exactly, polynomial
from .paths import active
from .precision import layer_dtype, run

EXP_DEGREE = 6  # leaves 2e-9 of the polynomial's own error, a thirtieth of what float32 rounds away
LOG2_E = math.log2(math.e)
ROUNDER = 1.5 * 2.0**23  # adding it leaves the nearest integer in a float32's last bits
MANTISSA_BITS, ONE_BITS = 23, 127 << 23
EXP_RANGE = 126.0  # beyond, 2^x or its inverse is no normal float32
MISH_RANGE = 60.0  # log2(e) x from which tanh(softplus(x)) is 1; the square of 2^60 is still a float32
MAX_KERNELS = 512  # compiled functions kept, one a shape
SCORES_AT_ONCE = 1 << 18  # a megabyte: fewer are small products, many more leave the CPU's cache
MASKED = -1e30  # a score that counts for nothing, finite so that no row is all infinite
TANH_SCALE, TANH_CUBE = math.sqrt(2 / math.pi), 0.044715  # torch.nn.functional.gelu, approximate="tanh"


def on_cpu() -> bool:
    """Whether the default device, at the time of the call, is a CPU."""
    return mx.default_device().type == mx.DeviceType.cpu


@lru_cache(maxsize=1)
def _has_compiler() -> bool:
    # MLX compiles for a CPU with it, and without it stays as it was, silently.
    return shutil.which("g++") is not None


@lru_cache(maxsize=MAX_KERNELS)
def _compiled(function: Callable[[mx.array], mx.array], shape: tuple[int, ...]) -> Callable[[mx.array], mx.array]:
    # A function of its own for each shape: MLX keeps what it compiled as long as the function lives.
    return mx.compile(lambda x: function(x))


def fused(function: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """`function`, which works element by element, of `x`: in few kernels where the path `compiled` is on.

    Compiled for the one shape: without shapes MLX fuses less, and a view not at all.
    """
    return _compiled(function, x.shape)(x) if active().compiled and compiles_exactly() else function(x)


@lru_cache(maxsize=1)
def _exp2_coefficients() -> tuple[float, ...]:
    """Of 2^r for |r| <= 1 / 2, lowest power first: interpolation at Chebyshev's points."""
    fit = np.polynomial.Chebyshev.interpolate(np.exp2, EXP_DEGREE, domain=[-0.5, 0.5])
    return tuple(map(float, fit.convert(kind=np.polynomial.Polynomial).coef))


def exp2(x: mx.array) -> mx.array:
    """2^x to 2e-7, float32, at +-EXP_RANGE where `x` is beyond: 2^k 2^r with k the nearest integer, 2^k of its bits."""
    x = mx.where(x < -EXP_RANGE, -EXP_RANGE, mx.where(x > EXP_RANGE, EXP_RANGE, x))
    shifted = x + ROUNDER
    power = mx.view((mx.view(shifted, mx.int32) << MANTISSA_BITS) + ONE_BITS, mx.float32)
    return polynomial(_exp2_coefficients(), x - (shifted - ROUNDER)) * power


def gelu_by_tanh(x: mx.array) -> mx.array:
    """GELU by its tanh, as written."""
    # mx.power (nn.gelu_approx cubes with it) is some fifty times slower than products on a CPU.
    return 0.5 * x * (1 + mx.tanh(TANH_SCALE * (x + TANH_CUBE * (x * x * x))))


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU by its tanh, x (1 + tanh u) / 2, as x / (1 + e^-2u); float32."""
    return x / (1 + exp2((-2 * LOG2_E * TANH_SCALE) * (x + TANH_CUBE * (x * x * x))))


def mish(x: mx.array) -> mx.array:
    """Mish of any shape; without the CPU's scalar functions where the path `fast_mish` is on."""
    if active().fast_mish and x.dtype == mx.float32 and on_cpu():
        return fused(mish_by_exp2, x)
    return nn.mish(x)


def mish_by_exp2(x: mx.array) -> mx.array:
    """Mish, x tanh(log(1 + e^x)), as x t / (t + 2) with t = e^x (e^x + 2); float32."""
    y = exp2(mx.minimum(LOG2_E * x, MISH_RANGE))
    t = y * (y + 2)
    return x * (t / (t + 2))


def silu(x: mx.array) -> mx.array:
    """SiLU of any shape; without the CPU's scalar exponential where the path `fast_silu` is on."""
    if active().fast_silu and x.dtype == mx.float32 and on_cpu():
        return fused(silu_by_exp2, x)
    return nn.silu(x)


def silu_by_exp2(x: mx.array) -> mx.array:
    """SiLU, x / (1 + e^-x); float32."""
    return x / (1 + exp2(-LOG2_E * x))


@dataclass(frozen=True)
class Chunks:
    """A mask that need not be built: each query sees the keys up to the end of its own chunk of `size` frames.

    Before the first query lie `start` frames, in whole chunks, whose keys all queries see.
    """

    size: int
    start: int = 0


def by_head(t: mx.array, heads: int) -> mx.array:
    """(b, n, h * c) as (b, h, n, c); on a CPU each head's rows lie together, or each product would copy them."""
    t = mx.unflatten(t, -1, (heads, -1)).swapaxes(1, 2)
    return mx.contiguous(t) if on_cpu() else t


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | Chunks | None = None) -> mx.array:
    """Softmax attention.

    Args:
        q, k, v: (b, h, n, c), (b, h, m, c) twice; on a CPU with the rows of a head together.
        mask: which keys a query sees, bool, of a shape that fits (b, h, n, m); or chunks, then start + n = m.

    Returns:
        (b, h, n, c); without meaning where a query sees no key.
    """
    if isinstance(mask, Chunks):
        parts = []
        for first in range(0, q.shape[2], mask.size):
            seen = mask.start + min(first + mask.size, q.shape[2])
            parts.append(attention(q[:, :, first : first + mask.size], k[:, :, :seen], v[:, :, :seen], scale))
        return mx.concatenate(parts, axis=2)
    if active().fast_softmax and q.dtype == mx.float32 and on_cpu() and _has_compiler():
        return _attention_by_exp2(q, k, v, scale, mask)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _attention_by_exp2(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Attention by heads, and by queries where one head's scores are too many to stay in the cache."""
    (b, h, n, _), m = q.shape, k.shape[2]
    heads = min(h, max(1, SCORES_AT_ONCE // (n * m)))
    rows = n if heads > 1 else min(n, max(1, SCORES_AT_ONCE // m))
    q = q * (scale * LOG2_E)
    if mask is not None:
        mask = mx.broadcast_to(mask, (b, h, n, m)).swapaxes(-1, -2)

    def block(i: int, j: int, start: int) -> mx.array:
        batch, head, row = slice(i, i + 1), slice(j, j + heads), slice(start, start + rows)
        seen = None if mask is None else mask[batch, head, :, row]
        return _softmax_product(q[batch, head, row], k[batch, head], v[batch, head], seen)

    def along(axis: int, end: int, step: int, part: Callable[[int], mx.array]) -> mx.array:
        return mx.concatenate([part(start) for start in range(0, end, step)], axis=axis)

    return along(0, b, 1, lambda i: along(1, h, heads, lambda j: along(2, n, rows, lambda r: block(i, j, r))))


def _softmax_product(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    # A row a key: maxima and sums then go over whole rows, four times as fast as along them.
    scores = k @ q.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, MASKED)
    weights = fused(exp2, scores - scores.max(axis=-2, keepdims=True))
    return (weights.swapaxes(-1, -2) @ v) / weights.sum(axis=-2, keepdims=True).swapaxes(-1, -2)


class FusedLinear:
    """Linears that read the same input as one product.

    Their parameters become views of one array, so that nothing is held twice. Parameters that somebody sets later are
    joined again; layers of unlike kinds are called one by one.
    """

    def __init__(self) -> None:
        self._joined: tuple[nn.Module, list[mx.array]] | None = None

    def __call__(self, x: mx.array, layers: Sequence[nn.Module]) -> list[mx.array]:
        """What each of `layers` makes of `x` (b, n, d)."""
        if not _alike(layers):
            return [run(layer, x) for layer in layers]
        joined = self._joined
        if joined is None or any(a is not b for a, b in zip(_parameters(layers), joined[1], strict=True)):
            joined = self._joined = _join(layers)
        widths = np.cumsum([layer.weight.shape[0] for layer in layers[:-1]])
        return mx.split(run(joined[0], x), widths.tolist(), axis=-1)


def _alike(layers: Sequence[nn.Module]) -> bool:
    """Plain linears with the same parameters, or quantized ones of the same kind."""
    first = layers[0]
    if type(first) not in (nn.Linear, nn.QuantizedLinear):
        return False
    kinds = [
        (
            type(layer),
            layer.keys(),
            layer_dtype(layer),
            *(getattr(layer, n, None) for n in ("group_size", "bits", "mode")),
        )
        for layer in layers
    ]
    return all(kind == kinds[0] for kind in kinds)


def _parameters(layers: Sequence[nn.Module]) -> list[mx.array]:
    return [layer[name] for layer in layers for name in layer]


def _join(layers: Sequence[nn.Module]) -> tuple[nn.Module, list[mx.array]]:
    whole = copy.copy(layers[0])
    ends = np.cumsum([layer.weight.shape[0] for layer in layers]).tolist()
    for name in layers[0]:
        whole[name] = mx.concatenate([layer[name] for layer in layers])
        mx.eval(whole[name])
        for layer, start, end in zip(layers, [0, *ends], ends, strict=False):
            view = whole[name][start:end]
            mx.eval(view)  # before another thread can see it
            layer[name] = view
    return whole, _parameters(layers)
