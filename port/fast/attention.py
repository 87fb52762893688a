"""Attention in blocks that stay in the CPU's cache, by chunks where each sees its past, and joined projections.

b batch, h heads, n frames (m of them keys), c channels per head
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .arithmetic import LOG2_E, exp2, fused, on_cpu
from .paths import active
from .precision import layer_dtype, run

SCORES_AT_ONCE = 1 << 18  # a megabyte: fewer are small products, many more leave the CPU's cache
MASKED = -1e30  # a score that counts for nothing, finite so that no row is all infinite


@lru_cache(maxsize=1)
def _has_compiler() -> bool:
    # MLX compiles for a CPU with it, and without it stays as it was, silently.
    return shutil.which("g++") is not None


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
