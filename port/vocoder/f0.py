"""Pitch from mel frames (cosyvoice/hifigan/f0_predictor.py).

b batch, n mel frames, C mel bins
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..fast.convolution import conv_backend, made_once, tap_order
from ..stream.state import State, tail_of
from .convolution import CausalConv1d, causal_conv


class CausalConvRNNF0Predictor(nn.Module):
    """Five causal convolutions and a linear layer (the name is the original's; nothing in it is recurrent).

    The first convolution looks `look_right` frames ahead, the others see the past only. Their weights are float64, as
    the original folds its weight norm in float64: kept as two float32 summands (2, O, K, C), which every file and
    device can hold.
    """

    def __init__(self, num_class: int, in_channels: int, cond_channels: int, look_right: int = 3) -> None:
        super().__init__()
        self.look_right = look_right
        self.condnet = [CausalConv1d(in_channels, cond_channels, look_right + 1, causal_type="right")]
        self.condnet += [CausalConv1d(cond_channels, cond_channels, 3, causal_type="left") for _ in range(4)]
        for conv in self.condnet:
            conv.weight = mx.stack([conv.weight, mx.zeros_like(conv.weight)])
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
        with mx.stream(mx.cpu), conv_backend("matmul"):
            x, cache = x.astype(mx.float64), None
            if not finalize:
                x, cache = x[:, : -self.look_right], x[:, -self.look_right :]
            for i, conv in enumerate(self.condnet):
                cache = tail_of(state, conv) if i else cache
                weight, bias = _in_float64(conv), conv.bias.astype(mx.float64)
                x = causal_conv(x, weight, bias, causal_type=conv.causal_type, cache=cache)
                x = mx.where(x > 0, x, mx.expm1(x))
            weight, bias = self.classifier.weight.astype(mx.float64), self.classifier.bias.astype(mx.float64)
            return mx.abs((x @ weight.T + bias).squeeze(-1)).astype(mx.float32)


def _in_float64(conv: CausalConv1d) -> mx.array:
    """The weight (O, K, C) of a convolution as one float64 array, made once."""

    def make() -> mx.array:
        summands = conv.weight.astype(mx.float64)
        return tap_order(summands[0] + summands[1])

    return made_once(conv, "_double", conv.weight, make)
