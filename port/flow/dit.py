"""Diffusion transformer: the velocity of the flow at one time (cosyvoice/flow/DiT/dit.py).

b batch, n frames, d width, C mel channels
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import DiTConfig
from ..stream.state import StepState, Tail
from .layers import (
    AdaLayerNormZero_Final,
    CausalConvPositionEmbedding,
    DiTBlock,
    RotaryEmbedding,
    TimestepEmbedding,
)
from .masks import add_optional_chunk_mask


class InputEmbedding(nn.Module):
    """Mixes state, prompt mel, token features and speaker into one sequence (`InputEmbedding`)."""

    def __init__(
        self, mel_dim: int, text_dim: int, out_dim: int, spk_dim: int, kernel_size: int = 31, groups: int = 16
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(mel_dim * 2 + text_dim + spk_dim, out_dim)
        self.conv_pos_embed = CausalConvPositionEmbedding(out_dim, kernel_size, groups)

    def __call__(
        self,
        x: mx.array,
        cond: mx.array,
        text_embed: mx.array,
        spks: mx.array,
        tail: Sequence[Tail] | None = None,
    ) -> mx.array:
        """Embed a state as (b, n, d).

        Args:
            x, cond: (b, n, mel_dim).
            text_embed: (b, n, text_dim).
            spks: (b, spk_dim).
            tail: of a stream, as in `CausalConvPositionEmbedding`.
        """
        spks = mx.broadcast_to(spks[:, None], (*x.shape[:2], spks.shape[-1]))
        y = self.proj(mx.concatenate([x, cond, text_embed, spks], axis=-1))
        return self.conv_pos_embed(y, tail=tail) + y


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
        self.transformer_blocks = [
            DiTBlock(config.dim, config.heads, config.dim_head, config.ff_mult) for _ in range(config.depth)
        ]
        self.norm_out = AdaLayerNormZero_Final(config.dim)
        self.proj_out = nn.Linear(config.dim, config.mel_dim)

    def attention_mask(self, mask: mx.array | None, n: int, streaming: bool = False, start: int = 0) -> mx.array | None:
        """Queries by keys, (b or 1, 1, n - start or 1, n) bool, from the valid frames (b, n).

        None where every frame sees all. The queries are the frames from `start` on.

        With `streaming` a frame sees the past and its own chunk of `static_chunk_size` frames, otherwise all frames.
        """
        chunk_size = self.config.static_chunk_size if streaming else 0
        if mask is None or mask.all():
            if not 0 < chunk_size < n:
                return None
            mask = mx.ones((1, n), dtype=mx.bool_)
        return add_optional_chunk_mask(mask[:, None], chunk_size)[:, None, -(n - start) :]

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None,
        mu: mx.array,
        t: mx.array | np.ndarray | np.floating | float,
        spks: mx.array,
        cond: mx.array,
        streaming: bool = False,
        state: StepState | None = None,
    ) -> mx.array:
        """Velocity at time `t`. Frames outside `mask` hold finite numbers without meaning.

        Args:
            x: state, (b, n, C).
            mask: valid frames, (b, n), non-zero or True = valid; None = all are valid, and then no mask is built
                unless streaming needs one.
            mu: token features, (b, n, mu_dim).
            t: time in 0..1, (b,) or 0-d for all rows.
            spks: speaker, (b, spk_dim).
            cond: prompt mel and zeros, (b, n, C).
            streaming: use the chunk mask.
            state: of a stream, whose chunk the frames are; all are valid then.

        Returns:
            (b, n, C), in the dtype of `proj_out`.
        """
        b, n, _ = x.shape
        start = state.span.start if state else 0
        t = self.time_embed(np.broadcast_to(np.asarray(t, np.float32), (b,)))
        # A sum over all blocks, which outgrows float16: it stays float32, whatever the weights are.
        x = self.input_embed(x, cond, mu, spks, state.tails if state else None).astype(mx.float32)
        rope = self.rotary_embed.tables(n, start)
        mask = self.attention_mask(None if mask is None else mask.astype(mx.bool_), start + n, streaming, start)
        for i, block in enumerate(self.transformer_blocks):
            x = block(x, t, mask=mask, rope=rope, kept=state.kept[i] if state else None)
        return self.proj_out(self.norm_out(x, t))
