"""Causal convolutions of the vocoder (cosyvoice/transformer/convolution.py).

b batch, n frames, C channels in, O channels out, K taps
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CausalType = Literal["left", "right"]


class CausalConv1d(nn.Conv1d):
    """Convolution that sees one side only; as many frames come out as go in.

    Weight (O, C, K), bias (O,).

    Raises:
        ValueError: an even kernel with an even dilation, which the original cannot run either (its padding formula
            gives one frame too many there); an unknown `causal_type`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = True,
        causal_type: CausalType = "left",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation, bias=bias)
        if causal_type not in ("left", "right"):
            raise ValueError(f"causal_type {causal_type!r} is unknown; choose left or right")
        if kernel_size % 2 == 0 and dilation % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} with dilation {dilation}: both are even")
        self.causal_type = causal_type
        self.causal_padding = (kernel_size - 1) * dilation

    def forward(self, x: Tensor, cache: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (b, C, n).
            cache: (b, C, causal_padding), the frames before (left) or after (right) `x`; zeros when None.

        Returns:
            (b, O, n).

        Raises:
            ValueError: `cache` has another number of frames.
        """
        context = _context(x, cache, self.causal_padding)
        x = torch.cat([context, x] if self.causal_type == "left" else [x, context], dim=2)
        return super().forward(x)


class CausalConv1dDownSample(nn.Conv1d):
    """Convolution with a stride, padded by `stride - 1` frames on the left.

    Weight (O, C, K), bias (O,).

    Raises:
        ValueError: `stride` is 1 or does not divide `kernel_size`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        if stride == 1 or kernel_size % stride:
            raise ValueError(f"stride {stride} must be above 1 and divide kernel_size {kernel_size}")
        self.causal_padding = stride - 1

    def forward(self, x: Tensor, cache: Tensor | None = None) -> Tensor:
        """Convolve (b, C, n) to (b, O, (n + stride - 1 - K) // stride + 1); `cache` (b, C, stride - 1) goes before `x`.

        Raises:
            ValueError: `cache` has another number of frames.
        """
        return super().forward(torch.cat([_context(x, cache, self.causal_padding), x], dim=2))


class CausalConv1dUpsample(nn.Conv1d):
    """Repeat each frame `stride` times, then convolve, left-causal (not a transposed convolution).

    Weight (O, C, K), bias (O,).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.upsample_stride = stride
        self.causal_padding = kernel_size - 1

    def forward(self, x: Tensor, cache: Tensor | None = None) -> Tensor:
        """Convolve (b, C, n) to (b, O, n * stride); `cache` (b, C, K - 1) is at the upsampled rate.

        Raises:
            ValueError: `cache` has another number of frames.
        """
        x = F.interpolate(x, scale_factor=float(self.upsample_stride), mode="nearest")
        return super().forward(torch.cat([_context(x, cache, self.causal_padding), x], dim=2))


def _context(x: Tensor, cache: Tensor | None, frames: int) -> Tensor:
    if cache is None:
        return x.new_zeros(x.shape[0], x.shape[1], frames)
    if cache.shape[2] != frames:
        raise ValueError(f"cache has {cache.shape[2]} frames, this convolution needs {frames}")
    return cache
