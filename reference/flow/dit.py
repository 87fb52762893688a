"""Diffusion transformer: the velocity of the flow at one time (cosyvoice/flow/DiT/dit.py).

b batch, n frames, d width, C mel channels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from port.config import DiTConfig
from reference.flow.layers import (
    AdaLayerNormZero_Final,
    CausalConvPositionEmbedding,
    DiTBlock,
    RotaryEmbedding,
    TimestepEmbedding,
)
from reference.flow.masks import add_optional_chunk_mask


class InputEmbedding(nn.Module):
    """Mixes state, prompt mel, token features and speaker into one sequence (`InputEmbedding`)."""

    def __init__(
        self, mel_dim: int, text_dim: int, out_dim: int, spk_dim: int, kernel_size: int = 31, groups: int = 16
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(mel_dim * 2 + text_dim + spk_dim, out_dim)
        self.conv_pos_embed = CausalConvPositionEmbedding(out_dim, kernel_size, groups)

    def forward(self, x: Tensor, cond: Tensor, text_embed: Tensor, spks: Tensor) -> Tensor:
        """Embed `x`, `cond` (b, n, mel_dim), `text_embed` (b, n, text_dim) and `spks` (b, spk_dim) as (b, n, d)."""
        spks = spks[:, None].expand(-1, x.shape[1], -1)
        y = self.proj(torch.cat((x, cond, text_embed, spks), dim=-1))
        return self.conv_pos_embed(y) + y


class DiT(nn.Module):
    """Estimator of the flow's velocity (`DiT`)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = TimestepEmbedding(config.dim, config.freq_embed_dim)
        self.input_embed = InputEmbedding(
            config.mel_dim,
            config.mu_dim,
            config.dim,
            config.spk_dim,
            config.conv_pos_kernel_size,
            config.conv_pos_groups,
        )
        self.rotary_embed = RotaryEmbedding(config.dim_head)
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(config.dim, config.heads, config.dim_head, config.ff_mult) for _ in range(config.depth)
        )
        self.norm_out = AdaLayerNormZero_Final(config.dim)
        self.proj_out = nn.Linear(config.dim, config.mel_dim)

    def attention_mask(self, mask: Tensor, n: int, streaming: bool = False) -> Tensor:
        """Queries by keys, (b, 1, n, n) bool, from the valid frames (b, 1, n).

        With `streaming` a frame sees the past and its own chunk of `static_chunk_size` frames, otherwise all frames.
        """
        chunk_size = self.config.static_chunk_size if streaming else 0
        masks = add_optional_chunk_mask(mask.bool(), chunk_size)
        return masks.expand(-1, n, -1)[:, None]

    def forward(
        self, x: Tensor, mask: Tensor, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor, streaming: bool = False
    ) -> Tensor:
        """Velocity at time `t`. Frames outside `mask` hold finite numbers without meaning.

        Args:
            x: state, (b, C, n).
            mask: valid frames, (b, 1, n), non-zero or True = valid.
            mu: token features, (b, mu_dim, n).
            t: time in 0..1, (b,) or 0-d for all rows.
            spks: speaker, (b, spk_dim).
            cond: prompt mel and zeros, (b, C, n).
            streaming: use the chunk mask.

        Returns:
            (b, C, n).
        """
        x, mu, cond = (value.transpose(1, 2) for value in (x, mu, cond))
        t = t.repeat(x.shape[0]) if t.ndim == 0 else t
        t = self.time_embed(t)
        x = self.input_embed(x, cond, mu, spks)
        rope = self.rotary_embed.tables(x.shape[1])
        mask = self.attention_mask(mask, x.shape[1], streaming)
        for block in self.transformer_blocks:
            x = block(x, t, mask=mask, rope=rope)
        return self.proj_out(self.norm_out(x, t)).transpose(1, 2)
