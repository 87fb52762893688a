"""Layers of the diffusion transformer (cosyvoice/flow/DiT/modules.py; rotary embedding of x-transformers).

b batch, n frames, d width, h heads, c channels per head, f time frequencies, K kernel taps
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..stream.state import Kept, Tail

LAYER_NORM_EPS = 1e-6
MAX_PERIOD = 10000.0  # of the sinusoidal time embedding
ROTARY_THETA = 10000.0
# By width, where the original's float32 exp on x86 (MKL) is one unit too low, which is 6e-5 rad at 1000 rad.
TORCH_EXP_BELOW = {256: (4,)}
Rope = tuple[mx.array, mx.array]


def sinus_frequencies(dim: int) -> np.ndarray:
    """Frequencies of the time embedding, (dim / 2,) float32, falling geometrically from 1 to 1 / MAX_PERIOD."""
    half = dim // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-(math.log(MAX_PERIOD) / (half - 1)))
    # numpy's float32 exp is off by one unit in half of the places; through float64 it rounds correctly.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    for place in TORCH_EXP_BELOW.get(dim, ()):
        frequencies[place] = np.nextafter(frequencies[place], np.float32(0))
    return frequencies


class SinusPositionEmbedding(nn.Module):
    """Sines then cosines of a scaled time (`SinusPositionEmbedding`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def __call__(self, x: mx.array | np.ndarray, scale: float = 1000) -> mx.array:
        """Embed times `x` (b,) float32 as (b, dim) float32."""
        # The angles reach 1000 rad, where float32 has lost 4e-5; these few numbers are made on the host in float64.
        times = np.asarray(x, dtype=np.float64)
        angles = scale * times[:, None] * sinus_frequencies(self.dim)[None]
        return mx.array(np.concatenate((np.sin(angles), np.cos(angles)), axis=-1).astype(np.float32))


class TimestepEmbedding(nn.Module):
    """Time to a vector that steers every block (`TimestepEmbedding`)."""

    def __init__(self, dim: int, freq_embed_dim: int = 256) -> None:
        super().__init__()
        self.time_embed = SinusPositionEmbedding(freq_embed_dim)
        self.linear_1 = nn.Linear(freq_embed_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, timestep: mx.array | np.ndarray) -> mx.array:
        """Embed times (b,) in 0..1 as (b, d)."""
        return self.linear_2(nn.silu(self.linear_1(self.time_embed(timestep))))


class CausalConvPositionEmbedding(nn.Module):
    """Two grouped convolutions that see only the past (`CausalConvPositionEmbedding`)."""

    def __init__(self, dim: int, kernel_size: int = 31, groups: int = 16) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.conv1 = nn.Conv1d(dim, dim, kernel_size, groups=groups)
        self.conv2 = nn.Conv1d(dim, dim, kernel_size, groups=groups)
        self.mish = nn.Mish()

    def __call__(self, x: mx.array, mask: mx.array | None = None, tail: Sequence[Tail] | None = None) -> mx.array:
        """Map `x` (b, n, d) to (b, n, d).

        Args:
            mask: (b, n) bool, frames outside are zeroed before and after.
            tail: of a stream, whose chunk `x` is: one for each convolution.
        """
        past = self.kernel_size - 1
        if mask is not None:
            x = mx.where(mask[..., None], x, 0.0)
        for i, conv in enumerate((self.conv1, self.conv2)):
            x = mx.pad(x, [(0, 0), (past, 0), (0, 0)]) if tail is None else tail[i].extend(x, past)
            x = self.mish(conv(x))
        return x if mask is None else mx.where(mask[..., None], x, 0.0)


def rotary_frequencies(dim: int) -> np.ndarray:
    """Angular speed of each rotated pair, (dim / 2,) float32; equals the original's buffer `inv_freq`."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1) / np.power(ROTARY_THETA, exponents.astype(np.float64)).astype(np.float32)


class RotaryEmbedding(nn.Module):
    """Angles of interleaved rotary pairs (`RotaryEmbedding` of x-transformers)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def __call__(self, seq_len: int, offset: int = 0) -> np.ndarray:
        """Angles (1, n, dim) float32 of `seq_len` positions from `offset` on, the same for both channels of a pair."""
        positions = np.arange(offset, offset + seq_len, dtype=np.float32)
        return np.repeat(positions[:, None] * rotary_frequencies(self.dim), 2, axis=-1)[None]

    def tables(self, seq_len: int, offset: int = 0) -> Rope:
        """Cosines and sines of these angles, (1, n, dim) float32 each."""
        return rotary_tables(self(seq_len, offset))


def rotary_tables(freqs: np.ndarray | mx.array) -> Rope:
    """Cosines and sines of the angles `freqs` (1, n, dim), float32.

    Made on the host: the angles reach 15000 rad, and how well a GPU reduces them is not documented.
    """
    angles = np.asarray(freqs, dtype=np.float64)
    return mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32))


def apply_rotary_pos_emb(t: mx.array, rope: Rope) -> mx.array:
    """Rotate adjacent pairs of the first channels of `t`; channels beyond the tables' width stay unchanged.

    Args:
        t: (..., n, channels).
        rope: cosines and sines, (1, n, dim) each, dim <= channels.
    """
    cos, sin = rope
    rotated, rest = t[..., : cos.shape[-1]], t[..., cos.shape[-1] :]
    turned = mx.stack([-rotated[..., 1::2], rotated[..., ::2]], axis=-1).flatten(-2)
    return mx.concatenate([(rotated * cos + turned * sin).astype(t.dtype), rest], axis=-1)


class GRN(nn.Module):
    """Global response normalisation over time (`GRN`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = mx.zeros((1, 1, dim))
        self.beta = mx.zeros((1, 1, dim))

    def __call__(self, x: mx.array) -> mx.array:
        """Map (b, n, d) to (b, n, d)."""
        energy = mx.sqrt(mx.sum(x * x, axis=1, keepdims=True))
        return self.gamma * (x * (energy / (energy.mean(axis=-1, keepdims=True) + 1e-6))) + self.beta + x


class ConvNeXtV2Block(nn.Module):
    """Depthwise convolution and a gated MLP (`ConvNeXtV2Block`); CosyVoice 3 builds none, the original offers it."""

    def __init__(self, dim: int, intermediate_dim: int, dilation: int = 1) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel_size=7, padding=3 * dilation, groups=dim, dilation=dilation)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.pwconv1 = nn.Linear(dim, intermediate_dim)
        self.grn = GRN(intermediate_dim)
        self.pwconv2 = nn.Linear(intermediate_dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        """Map (b, n, d) to (b, n, d)."""
        return x + self.pwconv2(self.grn(nn.gelu(self.pwconv1(self.norm(self.dwconv(x))))))


class AdaLayerNormZero(nn.Module):
    """Layer norm whose scale, shift and gates come from the time embedding (`AdaLayerNormZero`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = nn.Linear(dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, affine=False)

    def modulation(self, emb: mx.array) -> tuple[mx.array, ...]:
        """Shift, scale, gate of the attention, then of the MLP, (b, d) each, from the time embedding (b, d)."""
        return tuple(mx.split(self.linear(self.silu(emb)).astype(mx.float32), 6, axis=-1))

    def __call__(self, x: mx.array, emb: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array]:
        """Normalise `x` (b, n, d) by `emb` (b, d); also the attention's gate and the MLP's shift, scale and gate."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.modulation(emb)
        y = self.norm(x) * (1 + scale_msa[:, None]) + shift_msa[:, None]
        return y, gate_msa, shift_mlp, scale_mlp, gate_mlp


class AdaLayerNormZero_Final(nn.Module):
    """Last layer norm of the transformer (`AdaLayerNormZero_Final`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.silu = nn.SiLU()
        self.linear = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, affine=False)

    def modulation(self, emb: mx.array) -> tuple[mx.array, ...]:
        """Scale, then shift (the blocks have them the other way round), (b, d) each, from the embedding (b, d)."""
        return tuple(mx.split(self.linear(self.silu(emb)).astype(mx.float32), 2, axis=-1))

    def __call__(self, x: mx.array, emb: mx.array) -> mx.array:
        """Normalise `x` (b, n, d) by `emb` (b, d)."""
        scale, shift = self.modulation(emb)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None]


class FeedForward(nn.Module):
    """Two-layer MLP with GELU (`FeedForward`)."""

    def __init__(self, dim: int, mult: int = 2, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, dim * mult)
        self.gelu = nn.GELU(approximate)
        self.linear_2 = nn.Linear(dim * mult, dim)

    def __call__(self, x: mx.array) -> mx.array:
        """Map (b, n, d) to (b, n, d)."""
        return self.linear_2(self.gelu(self.linear_1(x)))


class Attention(nn.Module):
    """Self-attention (`Attention` with `AttnProcessor`)."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * dim_head)
        self.to_k = nn.Linear(dim, heads * dim_head)
        self.to_v = nn.Linear(dim, heads * dim_head)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def project(self, x: mx.array, rope: Rope | None = None) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values of `x` (b, n, d), (b, n, h * c) each."""
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if rope is not None:
            # The projections are flat, so only the first head's channels turn; the other heads see no positions.
            q, k = apply_rotary_pos_emb(q, rope), apply_rotary_pos_emb(k, rope)
        return q, k, v

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        """Attend with flat queries, keys and values, (b, n, h * c); shapes of `mask` as in `__call__`."""
        q, k, v = (mx.unflatten(t, -1, (self.heads, -1)).swapaxes(1, 2) for t in (q, k, v))
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None]
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        if mask is not None:
            # Where a query may see nothing torch gives zeros, MLX the mean of all values.
            y = mx.where(mask.any(axis=-1, keepdims=True), y, 0.0)
        return self.to_out(y.swapaxes(1, 2).flatten(-2))

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None = None,
        rope: Rope | None = None,
        kept: Kept | None = None,
    ) -> mx.array:
        """Attend within `x` (b, n, d).

        Args:
            mask: (b, n) valid frames, or (b or 1, 1, n or 1, n) queries by keys, bool, True = attend.
            rope: cosines and sines, (1, n, c) each.
            kept: keys and values of a stream, whose chunk `x` is; `mask` then has the keys of all frames so far.
        """
        q, k, v = self.project(x, rope)
        if kept is not None:
            k, v = kept.extend(k, v)
        y = self.attend(q, k, v, mask)
        if mask is None:
            return y
        # AttnProcessor uses the last query's row of a 4-d mask as the mask of valid frames.
        frames = mask if mask.ndim == 2 else mask[:, 0, -1]
        return mx.where(frames[:, -x.shape[1] :, None], y, 0.0)


class DiTBlock(nn.Module):
    """Attention and MLP, both steered by the time embedding (`DiTBlock`)."""

    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        self.attn_norm = AdaLayerNormZero(dim)
        self.attn = Attention(dim, heads, dim_head)
        self.ff_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS, affine=False)
        self.ff = FeedForward(dim, mult=ff_mult, approximate="tanh")

    def __call__(
        self,
        x: mx.array,
        t: mx.array,
        mask: mx.array | None = None,
        rope: Rope | None = None,
        kept: Kept | None = None,
    ) -> mx.array:
        """Map `x` (b, n, d) to (b, n, d); `t` is the time embedding (b, d), the rest as in `Attention`."""
        y, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.attn_norm(x, emb=t)
        x = x + gate_msa[:, None] * self.attn(y, mask=mask, rope=rope, kept=kept)
        y = self.ff_norm(x) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        return x + gate_mlp[:, None] * self.ff(y)
