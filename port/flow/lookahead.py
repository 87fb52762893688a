"""Look-ahead convolutions over token embeddings (`PreLookaheadLayer`, cosyvoice/transformer/upsample_encoder.py).

b batch, T tokens, C channels, H hidden channels, L tokens of look-ahead
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

CONV2_KERNEL_SIZE = 3


class PreLookaheadLayer(nn.Module):
    """A convolution over L tokens ahead and a causal one, with a residual."""

    def __init__(self, in_channels: int, channels: int, pre_lookahead_len: int) -> None:
        super().__init__()
        self.pre_lookahead_len = pre_lookahead_len
        self.conv1 = nn.Conv1d(in_channels, channels, pre_lookahead_len + 1)
        self.conv2 = nn.Conv1d(channels, in_channels, CONV2_KERNEL_SIZE)

    def __call__(self, inputs: mx.array, context: mx.array | None = None) -> mx.array:
        """Map `inputs` (b, T, C) to (b, T, C).

        Args:
            inputs: (b, T, C).
            context: the L tokens after `inputs`, (b, L, C); None or empty means zeros.

        Raises:
            ValueError: the context is not L tokens long.
        """
        if context is None or context.shape[1] == 0:
            context = mx.zeros((inputs.shape[0], self.pre_lookahead_len, inputs.shape[2]), dtype=inputs.dtype)
        elif context.shape[1] != self.pre_lookahead_len:
            raise ValueError(f"context holds {context.shape[1]} tokens, expected {self.pre_lookahead_len}")
        y = mx.concatenate([inputs, context], axis=1)
        y = nn.leaky_relu(self.conv1(y))
        y = mx.pad(y, [(0, 0), (CONV2_KERNEL_SIZE - 1, 0), (0, 0)])
        return self.conv2(y) + inputs
