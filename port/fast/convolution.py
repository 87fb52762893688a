"""1-d convolution as matrix products, at the rate of the input, with channels that Metal is fast at.

b batch, n frames in, m frames out, C channels in, O channels out, K taps, g groups
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..flow.layers import CausalConvPositionEmbedding
from ..flow.lookahead import PreLookaheadLayer
from ..frontend.speaker import CAMLayer
from ..stream.state import Tail
from ..vocoder.convolution import CausalConv1d, CausalConv1dDownSample, CausalConv1dUpsample
from ..vocoder.f0 import DoubleConv1d
from .arithmetic import on_cpu
from .modules import recast, replace

# Terms in one matrix product. The BLAS of MLX's Linux wheel adds them one by one: a sum over 1024 channels had 6
# times the reference's error.
LONGEST_SUM = 256
# Metal's implicit convolution takes so many channels in and out, or multiples of 16 (`conv_1D_gpu` in MLX's sources).
FEW_IN, FEW_OUT, STEP = 4, 16, 16
# Plain MLX convolutions to replace, by the layer that holds them. Those of the prompt encoders with one group and
# no dilation are already fast.
INSIDE: dict[type[nn.Module], tuple[str, ...]] = {
    CausalConvPositionEmbedding: ("conv1", "conv2"),
    PreLookaheadLayer: ("conv1", "conv2"),
    CAMLayer: ("linear_local",),
}


class ProductConv1d(nn.Conv1d):
    """A sum of shifted matrix products, one per tap. MLX's CPU kernel for dilation or groups is about 80 times slower.

    Attributes:
        weight: (O, K, C / g), in the memory layout in which it is read, see `tap_order`.
        whole: `addmm` forms a product before it adds.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, C) -> (b, m, O), m = (n + 2 padding - dilation * (K - 1) - 1) // stride + 1, in the dtype of `x`.

        Raises:
            ValueError: fewer frames than the kernel spans.
        """
        if self.padding:
            x = mx.pad(x, [(0, 0), (self.padding, self.padding), (0, 0)])
        n, taps = x.shape[1], self.weight.shape[1]
        m = (n - self.dilation * (taps - 1) - 1) // self.stride + 1
        if m < 1:
            raise ValueError(f"{n} frames are fewer than the {self.dilation * (taps - 1) + 1} that the kernel spans")
        return self.summed(x, m)

    def summed(self, x: mx.array, m: int) -> mx.array:
        """The first `m` frames out (b, m, O) of `x` (b, n, C), which has its padding."""
        (b, n, _), (out_channels, taps, group_channels) = x.shape, self.weight.shape
        bias, weight, groups = self.get("bias"), self.weight, self.groups
        if groups > 1:
            # Frames of a group contiguous, or each tap would be copied: (b, g, n, C/g).
            x = mx.contiguous(x.reshape(b, n, groups, group_channels).swapaxes(1, 2))
            weight = weight.reshape(groups, out_channels // groups, taps, group_channels)
        y: Any = None if bias is None else mx.broadcast_to(bias.astype(x.dtype), (b, m, out_channels))
        if y is not None and groups > 1:
            y = y.reshape(b, m, groups, -1).swapaxes(1, 2)
        for tap in range(taps):
            start = tap * self.dilation
            # Take the tap before transposing: MLX 0.31.2 ignores the transposition if there is only one.
            mixing = weight[..., tap, :].swapaxes(-1, -2)  # ([g,] C/g, O/g)
            frames = x[..., start : start + (m - 1) * self.stride + 1 : self.stride, :]
            for first in range(0, group_channels, LONGEST_SUM):
                part = slice(first, first + LONGEST_SUM)
                factors = frames[..., part], mixing[..., part, :]
                if y is None:
                    y = factors[0] @ factors[1]
                else:
                    y = mx.addmm(y, *factors) if self.whole else y + factors[0] @ factors[1]
        return y.swapaxes(1, 2).reshape(b, m, out_channels) if groups > 1 else y


class PaddedConv1d(nn.Conv1d):
    """MLX's convolution with zero channels added; without them Metal would unfold the input in memory.

    Attributes:
        weight, bias: with zeros for the channels that are added.
        out_channels: number without the added ones.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, C) -> (b, m, O)."""
        if more := self.weight.shape[2] - x.shape[2]:
            x = mx.pad(x, [(0, 0), (0, 0), (0, more)])
        return super().__call__(x)[..., : self.out_channels]


# Padding and stream state of the plain layers with another product, by Python's method resolution order.
class ProductCausalConv1d(CausalConv1d, ProductConv1d):
    """`CausalConv1d` by products."""


class ProductDownSample(CausalConv1dDownSample, ProductConv1d):
    """`CausalConv1dDownSample` by products."""


class ProductUpsample(CausalConv1dUpsample, ProductConv1d):
    """`CausalConv1dUpsample` by products."""


class PaddedCausalConv1d(CausalConv1d, PaddedConv1d):
    """`CausalConv1d` with channels that Metal is fast at."""


class PaddedDownSample(CausalConv1dDownSample, PaddedConv1d):
    """`CausalConv1dDownSample` with channels that Metal is fast at."""


class PaddedUpsample(CausalConv1dUpsample, PaddedConv1d):
    """`CausalConv1dUpsample` with channels that Metal is fast at."""


PRODUCTS: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: ProductConv1d,
    CausalConv1d: ProductCausalConv1d,
    CausalConv1dDownSample: ProductDownSample,
    CausalConv1dUpsample: ProductUpsample,
}
PADDED: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: PaddedConv1d,
    CausalConv1d: PaddedCausalConv1d,
    CausalConv1dDownSample: PaddedDownSample,
    CausalConv1dUpsample: PaddedUpsample,
}


class PolyphaseUpsample(CausalConv1dUpsample):
    """`CausalConv1dUpsample` with less work: taps that read copies of the same frame are summed once, in advance.

    Attributes:
        phases: convolution at the rate of the input, (stride * O) channels out: all phases of one input frame.
    """

    def __call__(self, x: mx.array, cache: mx.array | Tail | None = None) -> mx.array:
        """As `CausalConv1dUpsample`; what the tail of a stream keeps is at the rate of the input."""
        if isinstance(cache, mx.array):
            return super().__call__(x, cache)  # no repeated frames are needed
        b, n, _ = x.shape
        return self.phases(x, cache).reshape(b, n * self.upsample_stride, -1)


class HeldDoubleConv1d(DoubleConv1d):
    """`DoubleConv1d` whose weight is one float64 array (O, K, C), summed once."""

    def double(self) -> mx.array:
        """The weight as it is."""
        return self.weight


def products(model: nn.Module) -> nn.Module:
    """Replace convolutions by products; on a GPU only grouped ones.

    MLX 0.32.4 on CUDA leaves its memory in a grouped conv1d of the flow's size (1024 channels, 16 groups, 60 frames).
    """
    grouped_only = not on_cpu()

    def make(conv: nn.Conv1d) -> nn.Conv1d:
        if grouped_only and conv.groups == 1:
            return conv
        made = recast(conv, PRODUCTS[type(conv)])
        made.weight = tap_order(conv.weight, conv.groups)
        made.whole = adds_whole_products(mx.default_device().type)
        return made

    return _convolutions(model, make)


def padded_channels(model: nn.Module) -> nn.Module:
    """Replace convolutions whose channels are few or not a multiple of 16 by ones with padded channels."""

    def make(conv: nn.Conv1d) -> nn.Conv1d:
        out_channels, _, channels = conv.weight.shape
        more_in = -channels % STEP if channels > FEW_IN else 0
        more_out = -out_channels % STEP if out_channels > FEW_OUT else 0
        if conv.groups > 1 or not (more_in or more_out):
            return conv
        made = recast(conv, PADDED[type(conv)])
        made.out_channels = out_channels
        made.weight = mx.pad(conv.weight, [(0, more_out), (0, 0), (0, more_in)])
        if "bias" in conv:
            made.bias = mx.pad(conv.bias, [(0, more_out)])
        return made

    return _convolutions(model, make)


def _convolutions(model: nn.Module, make: Callable[[nn.Conv1d], nn.Conv1d]) -> nn.Module:
    def inside(layer: nn.Module) -> nn.Module:
        for name in INSIDE[type(layer)]:
            layer[name] = make(layer[name]) if type(layer[name]) is nn.Conv1d else layer[name]
        return layer

    forms: dict[type[nn.Module], Callable[[Any], nn.Module]] = dict.fromkeys(INSIDE, inside)
    return replace(model, forms | dict.fromkeys(set(PRODUCTS) - {nn.Conv1d}, make))


def polyphase(model: nn.Module) -> nn.Module:
    """Replace upsampling by `PolyphaseUpsample`."""

    def make(plain: CausalConv1dUpsample) -> PolyphaseUpsample:
        made, stride = recast(plain, PolyphaseUpsample), plain.upsample_stride
        out_channels, taps, channels = plain.weight.shape
        # At phase r, tap j meets the input frame floor((r + j - (taps - 1)) / stride) after the current one.
        frame = (np.arange(stride)[:, None] + np.arange(taps) - (taps - 1)) // stride
        meets = frame[:, None, :] == np.arange(frame.min(), 1)[:, None]  # (stride, input taps, taps)
        weight = mx.array(meets).astype(plain.weight.dtype) @ plain.weight.transpose(1, 0, 2).reshape(taps, -1)
        weight = weight.reshape(stride, -1, out_channels, channels).swapaxes(1, 2)
        made.phases = CausalConv1d(1, 1, 1)
        made.phases.weight = mx.contiguous(weight).reshape(stride * out_channels, -1, channels)
        made.phases.bias = mx.tile(plain.bias, stride)
        made.phases.causal_padding = made.phases.weight.shape[1] - 1
        return made

    return replace(model, {CausalConv1dUpsample: make})


def held_double(model: nn.Module) -> nn.Module:
    """Replace `DoubleConv1d` by `HeldDoubleConv1d`."""

    def make(plain: DoubleConv1d) -> HeldDoubleConv1d:
        made = recast(plain, HeldDoubleConv1d)
        with mx.stream(mx.cpu):
            made.weight = plain.double()
        return made

    return replace(model, {DoubleConv1d: make})


def tap_order(weight: mx.array, groups: int = 1) -> mx.array:
    """The same weight (O, K, C / g) in the memory layout that the sum of products reads: by tap, then input channel.

    With several groups, output channels come first, so that each group's are contiguous. In any other layout each tap
    would be copied at each call.
    """
    if groups > 1:
        return mx.contiguous(weight.swapaxes(0, 1)).swapaxes(0, 1)
    return mx.contiguous(weight.transpose(1, 2, 0)).transpose(2, 0, 1)


@lru_cache(maxsize=2)
def adds_whole_products(device: mx.DeviceType) -> bool:
    """Whether `addmm` computes the product first and then adds it, which an exact sum over taps needs.

    The reference BLAS in MLX's Linux wheel adds the terms one by one to the existing value, which loses small terms:
    all 256 terms of this test, each half an ulp of 1, would be lost.
    """
    one, terms = mx.ones((STEP, STEP)), mx.full((STEP, LONGEST_SUM), 2.0**-25)
    return bool((mx.addmm(one, terms, mx.ones((LONGEST_SUM, STEP)), stream=mx.Device(device)).min() > 1).item())
