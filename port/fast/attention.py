"""Attention in blocks that fit the CPU's cache, attention by chunks under the chunk mask, and joined projections.

b batch, h heads, n frames (m of them keys), c channels per head
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..flow.dit import DiT
from ..flow.layers import Attention, Rope, apply_rotary_pos_emb
from ..stream.state import Kept
from .arithmetic import LOG2_E, Function, exp2, fused, on_cpu
from .modules import recast, replace
from .precision import OWN, layer_dtype

SCORES_AT_ONCE = 1 << 18  # a megabyte: fewer make the products small, many more exceed the CPU's cache
MASKED = -1e30  # a score that counts for nothing, finite so that no row is all infinite
PROJECTIONS = "to_q", "to_k", "to_v"


@lru_cache(maxsize=1)
def has_compiler() -> bool:
    """Whether MLX can compile for a CPU; without a compiler MLX silently runs step by step."""
    return shutil.which("g++") is not None


@dataclass(frozen=True)
class Chunks:
    """An implicit mask: each query sees the keys up to the end of its own chunk of `size` frames.

    Before the first query lie `start` frames, in whole chunks, whose keys all queries see.
    """

    size: int
    start: int = 0


class ChunkedDiT(DiT):
    """`DiT` that handles the chunk mask without a mask: each chunk of queries is multiplied with its own keys only."""

    def attention_mask(self, mask: mx.array | None, n: int, streaming: bool = False, start: int = 0) -> Any:
        """As in `DiT`, or `Chunks` if all frames are valid."""
        chunk_size = self.config.static_chunk_size
        if streaming and 0 < chunk_size < n and (mask is None or mask.all()):
            return Chunks(chunk_size, start)
        return super().attention_mask(mask, n, streaming, start)


class FastAttention(Attention):
    """`Attention` whose heads are laid out once.

    Attributes:
        to_qkv: one projection for queries, keys and values, if `join` made it of the three.
        cpu: compute in float32, with the rows of a head contiguous, or each product would copy them. GPU kernels keep
            scores of half precision in float32.
        softmax: `attention` or `attention_in_blocks`.
        dtype: of queries, keys and values.
    """

    def project(self, x: mx.array, rope: Rope | None = None) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values of `x` (b, n, d), (b, h, n, c) each."""
        if "to_qkv" in self:
            q, k, v = mx.split(self.to_qkv(x), 3, axis=-1)
        else:
            q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if rope is not None:
            q, k = apply_rotary_pos_emb(q, rope), apply_rotary_pos_emb(k, rope)
        q, k, v = (mx.unflatten(t, -1, (self.heads, -1)).swapaxes(1, 2) for t in (q, k, v))
        return (mx.contiguous(q), mx.contiguous(k), mx.contiguous(v)) if self.cpu else (q, k, v)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | Chunks | None = None) -> mx.array:
        """Attend with queries, keys and values (b, h, n, c) as of `project`; shapes of `mask` as in `__call__`."""
        if self.cpu:
            q, k, v = (t.astype(mx.float32) for t in (q, k, v))
        if isinstance(mask, mx.array) and mask.ndim == 2:
            mask = mask[:, None, None]
        scale = q.shape[-1] ** -0.5
        if isinstance(mask, Chunks):
            y = by_chunks(self.softmax, q, k, v, scale, mask)
        else:
            y = self.softmax(q, k, v, scale, mask)
        if isinstance(mask, mx.array):
            y = mx.where(mask.any(axis=-1, keepdims=True), y, 0.0)
        return self.to_out(y.swapaxes(1, 2).flatten(-2))

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | Chunks | None = None,
        rope: Rope | None = None,
        kept: Kept | None = None,
    ) -> mx.array:
        """As in `Attention`; `mask` may be chunks, where all frames are valid."""
        if not isinstance(mask, Chunks):
            return super().__call__(x, mask, rope, kept)
        q, k, v = self.project(x, rope)
        if kept is not None:
            k, v = kept.extend(k, v)
        return self.attend(q, k, v, mask)


def key_dtype(attention: Attention) -> mx.Dtype:
    """Dtype of its keys and values."""
    return attention.dtype if isinstance(attention, FastAttention) else mx.float32


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None = None) -> mx.array:
    """Softmax attention by MLX.

    Args:
        q, k, v: (b, h, n, c), (b, h, m, c) twice.
        mask: which keys a query sees, bool, of a shape that fits (b, h, n, m).

    Returns:
        (b, h, n, c); without meaning where a query sees no key.
    """
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def by_chunks(
    softmax: Callable[..., mx.array], q: mx.array, k: mx.array, v: mx.array, scale: float, chunks: Chunks
) -> mx.array:
    """Attention of each chunk of queries with the keys that it sees; shapes as for `attention`, start + n = m."""
    parts = []
    for first in range(0, q.shape[2], chunks.size):
        seen = chunks.start + min(first + chunks.size, q.shape[2])
        parts.append(softmax(q[:, :, first : first + chunks.size], k[:, :, :seen], v[:, :, :seen], scale))
    return mx.concatenate(parts, axis=2)


def attention_in_blocks(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: mx.array | None = None,
    power: Function = exp2,
) -> mx.array:
    """As `attention`, in blocks of heads, or of queries if the scores of one head exceed the cache; float32.

    Args:
        power: of two.
    """
    (b, h, n, _), m = q.shape, k.shape[2]
    heads = min(h, max(1, SCORES_AT_ONCE // (n * m)))
    rows = n if heads > 1 else min(n, max(1, SCORES_AT_ONCE // m))
    q = q * (scale * LOG2_E)
    if mask is not None:
        mask = mx.broadcast_to(mask, (b, h, n, m)).swapaxes(-1, -2)

    def block(i: int, j: int, start: int) -> mx.array:
        batch, head, row = slice(i, i + 1), slice(j, j + heads), slice(start, start + rows)
        seen = None if mask is None else mask[batch, head, :, row]
        return _softmax_product(q[batch, head, row], k[batch, head], v[batch, head], seen, power)

    def along(axis: int, end: int, step: int, part: Callable[[int], mx.array]) -> mx.array:
        return mx.concatenate([part(start) for start in range(0, end, step)], axis=axis)

    return along(0, b, 1, lambda i: along(1, h, heads, lambda j: along(2, n, rows, lambda r: block(i, j, r))))


def _softmax_product(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, power: Function) -> mx.array:
    # One row per key: maxima and sums across rows are four times as fast as along them.
    scores = k @ q.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, MASKED)
    weights = power(scores - scores.max(axis=-2, keepdims=True))
    return (weights.swapaxes(-1, -2) @ v) / weights.sum(axis=-2, keepdims=True).swapaxes(-1, -2)


def lay_out(model: nn.Module) -> nn.Module:
    """Replace attention and DiT by `FastAttention` and `ChunkedDiT`."""

    def made(plain: Attention) -> FastAttention:
        fast = recast(plain, FastAttention)
        fast.cpu, fast.softmax, fast.dtype = on_cpu(), attention, layer_dtype(plain.to_k)
        return fast

    return replace(model, {Attention: made, DiT: lambda plain: recast(plain, ChunkedDiT)})


def join(model: nn.Module) -> nn.Module:
    """Put `FastAttention` in place, and have it project once where the three projections are of one kind.

    A CPU gains nothing, and the copy takes a fourteenth of the time that all weights take to load.
    """
    model = lay_out(model)
    for module in model.modules():
        if not isinstance(module, FastAttention) or "to_qkv" in module:
            continue
        if _alike(layers := [module[name] for name in PROJECTIONS]):
            module.to_qkv = _joined(layers)
            for name in PROJECTIONS:
                del module[name]
    return model


def in_blocks(model: nn.Module) -> nn.Module:
    """Replace attention by `FastAttention` that attends in blocks."""
    model = lay_out(model)
    for module in model.modules():
        if isinstance(module, FastAttention):
            module.softmax = partial(attention_in_blocks, power=fused(exp2))
    return model


def _alike(layers: Sequence[nn.Module]) -> bool:
    """Plain linears with the same parameters, or quantized ones of the same kind."""
    if type(layers[0]) not in (*OWN, *OWN.values()):
        return False
    names = ("group_size", "bits", "mode")
    kinds = [(type(la), la.keys(), layer_dtype(la), *(getattr(la, name, None) for name in names)) for la in layers]
    return all(kind == kinds[0] for kind in kinds)


def _joined(layers: Sequence[nn.Module]) -> nn.Module:
    whole = copy.copy(layers[0])
    for name in layers[0]:
        whole[name] = mx.concatenate([layer[name] for layer in layers])
    return whole
