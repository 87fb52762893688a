"""Layers of the diffusion transformer (cosyvoice/flow/DiT/modules.py; rotary embedding of x-transformers).

b batch, n frames, d width, h heads, c channels per head, f time frequencies, K kernel taps
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
MAX_PERIOD = 10000.0  # of the sinusoidal time embedding
ROTARY_THETA = 10000.0
# By width, where the original's float32 exp on x86 (MKL) is one unit too low, which is 6e-5 rad at 1000 rad.
TORCH_EXP_BELOW = {256: (4,)}
Rope = tuple[Tensor, Tensor]


def sinus_frequencies(dim: int) -> Tensor:
    """Frequencies of the time embedding, (dim / 2,) float32, falling geometrically from 1 to 1 / MAX_PERIOD."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32) * -(math.log(MAX_PERIOD) / (half - 1))
    # Rounded here: torch's float32 exp differs by one unit between processors and builds (torch 2.11 on another x86).
    frequencies = exponents.double().exp().float()
    for place in TORCH_EXP_BELOW.get(dim, ()):
        frequencies[place] = torch.nextafter(frequencies[place], torch.zeros(()))
    return frequencies


class SinusPositionEmbedding(nn.Module):
    """Sines then cosines of a scaled time (`SinusPositionEmbedding`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, scale: float = 1000) -> Tensor:
        """Embed times `x` (b,) as (b, dim), in the dtype of `x`."""
        # The original builds the frequencies in float32 whatever the model's dtype.
        angles = scale * x[:, None] * sinus_frequencies(self.dim).to(x.device)[None]
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(x.dtype)


class TimestepEmbedding(nn.Module):
    """Time to a vector that steers every block (`TimestepEmbedding`)."""

    def __init__(self, dim: int, freq_embed_dim: int = 256) -> None:
        super().__init__()
        self.time_embed = SinusPositionEmbedding(freq_embed_dim)
        self.time_mlp = nn.Sequential(nn.Linear(freq_embed_dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, timestep: Tensor) -> Tensor:
        """Embed times (b,) in 0..1 as (b, d)."""
        return self.time_mlp(self.time_embed(timestep))


class CausalConvPositionEmbedding(nn.Module):
    """Two grouped convolutions that see only the past (`CausalConvPositionEmbedding`)."""

    def __init__(self, dim: int, kernel_size: int = 31, groups: int = 16) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.conv1 = nn.Sequential(nn.Conv1d(dim, dim, kernel_size, groups=groups), nn.Mish())
        self.conv2 = nn.Sequential(nn.Conv1d(dim, dim, kernel_size, groups=groups), nn.Mish())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map `x` (b, n, d) to (b, n, d); frames outside `mask` (b, n) bool are zeroed before and after."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        y = x.transpose(1, 2)
        for conv in (self.conv1, self.conv2):
            y = conv(F.pad(y, (self.kernel_size - 1, 0)))
        y = y.transpose(1, 2)
        return y if mask is None else y.masked_fill(~mask[..., None], 0.0)


def rotary_frequencies(dim: int) -> Tensor:
    """Angular speed of each rotated pair, (dim / 2,) float32."""
    return 1.0 / ROTARY_THETA ** (torch.arange(0, dim, 2).float() / dim)


class RotaryEmbedding(nn.Module):
    """Angles of interleaved rotary pairs (`RotaryEmbedding` of x-transformers)."""

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary_frequencies(dim))

    def forward(self, seq_len: int, offset: int = 0) -> Tensor:
        """Angles (1, n, dim) of `seq_len` positions from `offset` on, the same for both channels of a pair."""
        positions = torch.arange(offset, offset + seq_len, device=self.inv_freq.device).type_as(self.inv_freq)
        return (positions[:, None] * self.inv_freq).repeat_interleave(2, dim=-1)[None]

    def tables(self, seq_len: int, offset: int = 0) -> Rope:
        """Cosines and sines of these angles, (1, n, dim) each."""
        return rotary_tables(self(seq_len, offset))


def rotary_tables(freqs: Tensor) -> Rope:
    """Cosines and sines of the angles `freqs` (1, n, dim)."""
    return freqs.cos(), freqs.sin()


def apply_rotary_pos_emb(t: Tensor, rope: Rope) -> Tensor:
    """Rotate adjacent pairs of the first channels of `t`; channels beyond the tables' width stay unchanged.

    Args:
        t: (..., n, channels).
        rope: cosines and sines, (1, n, dim) each, dim <= channels.
    """
    cos, sin = rope
    rotated, rest = t[..., : cos.shape[-1]], t[..., cos.shape[-1] :]
    even, odd = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return torch.cat((rotated * cos + turned * sin, rest), dim=-1)


class GRN(nn.Module):
    """Global response normalisation over time (`GRN`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, n, d) to (b, n, d)."""
        energy = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return self.gamma * (x * (energy / (energy.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNeXtV2Block(nn.Module):
    """Depthwise convolution and a gated MLP (`ConvNeXtV2Block`); CosyVoice 3 builds none, the original offers it."""

    def __init__(self, dim: int, intermediate_dim: int, dilation: int = 1) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel_size=7, padding=3 * dilation, groups=dim, dilation=dilation)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.pwconv1 = nn.Linear(dim, intermediate_dim)
        self.grn = GRN(intermediate_dim)
        self.pwconv2 = nn.Linear(intermediate_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, n, d) to (b, n, d)."""
        y = self.norm(self.dwconv(x.transpose(1, 2)).transpose(1, 2))
        return x + self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))


class AdaLayerNormZero(nn.Module):
    """Layer norm whose scale, shift and gates come from the time embedding (`AdaLayerNormZero`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=LAYER_NORM_EPS)

    def modulation(self, emb: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale, gate of the attention, then of the MLP, (b, d) each, from the time embedding (b, d)."""
        return self.linear(F.silu(emb)).chunk(6, dim=-1)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Normalise `x` (b, n, d) by `emb` (b, d); also the attention's gate and the MLP's shift, scale and gate."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.modulation(emb)
        y = self.norm(x) * (1 + scale_msa[:, None]) + shift_msa[:, None]
        return y, gate_msa, shift_mlp, scale_mlp, gate_mlp


class AdaLayerNormZero_Final(nn.Module):
    """Last layer norm of the transformer (`AdaLayerNormZero_Final`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=LAYER_NORM_EPS)

    def modulation(self, emb: Tensor) -> tuple[Tensor, ...]:
        """Scale, then shift (the blocks have them the other way round), (b, d) each, from the embedding (b, d)."""
        return self.linear(F.silu(emb)).chunk(2, dim=-1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Normalise `x` (b, n, d) by `emb` (b, d)."""
        scale, shift = self.modulation(emb)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None]


class FeedForward(nn.Module):
    """Two-layer MLP with GELU (`FeedForward`)."""

    def __init__(self, dim: int, mult: int = 2, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        project_in = nn.Sequential(nn.Linear(dim, dim * mult), nn.GELU(approximate=approximate))
        # The identity replaces the original's dropout, which the checkpoint's names count.
        self.ff = nn.Sequential(project_in, nn.Identity(), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, n, d) to (b, n, d)."""
        return self.ff(x)


class Attention(nn.Module):
    """Self-attention (`Attention` with `AttnProcessor`)."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * dim_head)
        self.to_k = nn.Linear(dim, heads * dim_head)
        self.to_v = nn.Linear(dim, heads * dim_head)
        self.to_out = nn.ModuleList([nn.Linear(heads * dim_head, dim)])

    def project(self, x: Tensor, rope: Rope | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x` (b, n, d), (b, n, h * c) each."""
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if rope is not None:
            # The projections are flat, so only the first head's channels turn; the other heads see no positions.
            q, k = apply_rotary_pos_emb(q, rope), apply_rotary_pos_emb(k, rope)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend with flat queries, keys and values, (b, n, h * c); shapes of `mask` as in `forward`."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None].expand(-1, 1, q.shape[2], -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out[0](y.transpose(1, 2).flatten(-2))

    def forward(self, x: Tensor, mask: Tensor | None = None, rope: Rope | None = None) -> Tensor:
        """Attend within `x` (b, n, d).

        Args:
            x: (b, n, d).
            mask: (b, n) valid frames, or (b, 1, n, n) queries by keys, bool, True = attend.
            rope: cosines and sines, (1, n, c) each.
        """
        y = self.attend(*self.project(x, rope), mask)
        if mask is None:
            return y
        # AttnProcessor uses the last query's row of a 4-d mask as the mask of valid frames.
        frames = mask if mask.ndim == 2 else mask[:, 0, -1]
        return y.masked_fill(~frames[..., None], 0.0)


class DiTBlock(nn.Module):
    """Attention and MLP, both steered by the time embedding (`DiTBlock`)."""

    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: int) -> None:
        super().__init__()
        self.attn_norm = AdaLayerNormZero(dim)
        self.attn = Attention(dim, heads, dim_head)
        self.ff_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=LAYER_NORM_EPS)
        self.ff = FeedForward(dim, mult=ff_mult, approximate="tanh")

    def forward(self, x: Tensor, t: Tensor, mask: Tensor | None = None, rope: Rope | None = None) -> Tensor:
        """Map `x` (b, n, d) to (b, n, d); `t` is the time embedding (b, d), the rest as in `Attention`."""
        y, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.attn_norm(x, emb=t)
        x = x + gate_msa[:, None] * self.attn(y, mask=mask, rope=rope)
        y = self.ff_norm(x) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        return x + gate_mlp[:, None] * self.ff(y)
