"""Pitch from mel frames (cosyvoice/hifigan/f0_predictor.py).

b batch, n mel frames, C mel bins
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..stream.state import State, tail_of
from .convolution import CausalConv1d, CausalType


class _Float64Conv1d(nn.Conv1d):
    """One matrix product in float64, of all taps of a frame; no padding, stride or dilation."""

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, C) float64 -> (b, n - K + 1, O)."""
        out_channels, taps, _ = (weight := self.double()).shape
        n = x.shape[1] - taps + 1
        x = mx.concatenate([x[:, tap : tap + n] for tap in range(taps)], axis=2)
        return x @ weight.reshape(out_channels, -1).T + self.bias.astype(mx.float64)


class DoubleConv1d(CausalConv1d, _Float64Conv1d):
    """`CausalConv1d` in float64, on the CPU.

    The original folds the weight norm in float64. Weight (2, O, K, C): two float32 summands, which every file and
    device can hold.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, causal_type: CausalType = "left") -> None:
        super().__init__(in_channels, out_channels, kernel_size, causal_type=causal_type)
        self.weight = mx.stack([self.weight, mx.zeros_like(self.weight)])

    def double(self) -> mx.array:
        """The weight (O, K, C) float64."""
        high, low = self.weight.astype(mx.float64)
        return high + low


class CausalConvRNNF0Predictor(nn.Module):
    """Five causal convolutions and a linear layer (the name is the original's; nothing in it is recurrent).

    The first convolution looks `look_right` frames ahead, the others see the past only.
    """

    def __init__(self, num_class: int, in_channels: int, cond_channels: int, look_right: int = 3) -> None:
        super().__init__()
        self.look_right = look_right
        self.condnet = [DoubleConv1d(in_channels, cond_channels, look_right + 1, causal_type="right")]
        self.condnet += [DoubleConv1d(cond_channels, cond_channels, 3) for _ in range(4)]
        self.classifier = nn.Linear(cond_channels, num_class)

    def __call__(self, x: mx.array, finalize: bool = True, state: State | None = None) -> mx.array:
        """Predict the pitch in float64, on the CPU whatever the default device.

        The original runs in float64 too (`CausalHiFTGenerator.inference`), since a pitch error grows with time in the
        phase; no GPU of MLX has float64. Matrix products and expm1 are the operations that MLX carries out in
        float64 in earnest; its conv1d, exp and elu fall back to float32.

        Args:
            x: (b, n, C) mel.
            finalize: when False the last `look_right` frames are context only.
            state: of a stream, whose chunk `x` is; it begins where the results so far end.

        Returns:
            (b, n), or (b, n - look_right) when not `finalize`; float32, Hz, never negative.
        """
        with mx.stream(mx.cpu):
            x, cache = x.astype(mx.float64), None
            if not finalize:
                x, cache = x[:, : -self.look_right], x[:, -self.look_right :]
            for i, conv in enumerate(self.condnet):
                x = conv(x, tail_of(state, conv) if i else cache)
                x = mx.where(x > 0, x, mx.expm1(x))
            weight, bias = self.classifier.weight.astype(mx.float64), self.classifier.bias.astype(mx.float64)
            return mx.abs((x @ weight.T + bias).squeeze(-1)).astype(mx.float32)
