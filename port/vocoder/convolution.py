"""Causal convolutions of the vocoder (cosyvoice/transformer/convolution.py).

b batch, n frames, C channels in, O channels out, K taps
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from ..stream.state import Tail

CausalType = Literal["left", "right"]


class CausalConv1d(nn.Conv1d):
    """Convolution that sees one side only; as many frames come out as go in.

    Weight (O, K, C), bias (O,).

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

    def __call__(self, x: mx.array, cache: mx.array | Tail | None = None) -> mx.array:
        """Convolve.

        Args:
            x: (b, n, C).
            cache: (b, causal_padding, C), the frames before (left) or after (right) `x`; zeros when None; or the tail
                of a stream (left only).

        Returns:
            (b, n, O).

        Raises:
            ValueError: `cache` has another number of frames.
        """
        if isinstance(cache, Tail):
            x = cache.extend(x, self.causal_padding)
            cache.keep(x[:, x.shape[1] - self.causal_padding :])
        else:
            context = _context(x, cache, self.causal_padding)
            x = mx.concatenate([context, x] if self.causal_type == "left" else [x, context], axis=1)
        return super().__call__(x)


class CausalConv1dDownSample(nn.Conv1d):
    """Convolution with a stride, padded by `stride - 1` frames on the left.

    Weight (O, K, C), bias (O,).

    Raises:
        ValueError: `stride` is 1 or does not divide `kernel_size`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        if stride == 1 or kernel_size % stride:
            raise ValueError(f"stride {stride} must be above 1 and divide kernel_size {kernel_size}")
        self.causal_padding = stride - 1

    def __call__(self, x: mx.array, cache: mx.array | Tail | None = None) -> mx.array:
        """Convolve (b, n, C) to (b, (n + stride - 1 - K) // stride + 1, O); `cache` (b, stride - 1, C) goes before `x`.

        The tail of a stream may stand for `cache`; it keeps every frame that the next result needs.

        Raises:
            ValueError: `cache` has another number of frames.
        """
        if isinstance(cache, Tail):
            x = cache.extend(x, self.causal_padding)
            results = (x.shape[1] - self.weight.shape[1]) // self.stride + 1
            cache.keep(x[:, results * self.stride :])
        else:
            x = mx.concatenate([_context(x, cache, self.causal_padding), x], axis=1)
        return super().__call__(x)


class CausalConv1dUpsample(nn.Conv1d):
    """Repeat each frame `stride` times, then convolve, left-causal (not a transposed convolution).

    Weight (O, K, C), bias (O,).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.upsample_stride = stride
        self.causal_padding = kernel_size - 1

    def __call__(self, x: mx.array, cache: mx.array | Tail | None = None) -> mx.array:
        """Convolve (b, n, C) to (b, n * stride, O); `cache` (b, K - 1, C) is at the upsampled rate.

        The tail of a stream may stand for `cache`; what it keeps is at the rate of the input.

        Raises:
            ValueError: `cache` has another number of frames.
        """
        stride = self.upsample_stride
        if isinstance(cache, Tail):
            frames = -(-self.causal_padding // stride)
            x = cache.extend(x, frames)
            cache.keep(x[:, x.shape[1] - frames :])
            cache = mx.repeat(x[:, :frames], stride, axis=1)[:, frames * stride - self.causal_padding :]
            x = x[:, frames:]
        x = mx.repeat(x, stride, axis=1)
        return super().__call__(mx.concatenate([_context(x, cache, self.causal_padding), x], axis=1))


def _context(x: mx.array, cache: mx.array | None, frames: int) -> mx.array:
    if cache is None:
        return mx.zeros((x.shape[0], frames, x.shape[2]), x.dtype)
    if cache.shape[1] != frames:
        raise ValueError(f"cache has {cache.shape[1]} frames, this convolution needs {frames}")
    return cache
