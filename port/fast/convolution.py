"""1-d convolution over channels-last arrays, with a back end for each kind of device.

b batch, n frames in, m frames out, C channels in, O channels out, K taps, g groups
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Literal, TypeVar

import mlx.core as mx
import mlx.nn as nn

from .arithmetic import on_cpu
from .paths import active

# Terms in one matrix product. The BLAS of MLX's Linux wheel adds them one after another: a sum over 1024 channels was 6
# times the reference's error.
LONGEST_SUM = 256
# Metal's implicit convolution takes so many channels in and out, or multiples of 16 (`conv_1D_gpu` in MLX's sources).
FEW_IN, FEW_OUT, STEP = 4, 16, 16

Made = TypeVar("Made")
ConvBackend = Literal["auto", "native", "matmul"]
_backend: ContextVar[ConvBackend] = ContextVar("conv_backend", default="auto")


@contextmanager
def conv_backend(name: ConvBackend) -> Iterator[None]:
    """Choose the back end of `conv1d` inside a `with` block.

    Args:
        name: `native` is `mx.conv1d`, `matmul` a sum of shifted matrix products, `auto` (the default outside any block)
            takes `native` on a GPU (but for groups on CUDA) and `matmul` on a CPU, by the default device at the time
            of the call.

    Raises:
        ValueError: any other name.
    """
    if name not in ("auto", "native", "matmul"):
        raise ValueError(f"conv back end {name!r} is unknown; choose auto, native or matmul")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def conv1d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> mx.array:
    """Convolve without padding.

    Args:
        x: (b, n, C), already padded.
        weight: (O, K, C / g).
        bias: (O,) or None.

    Returns:
        (b, m, O) with m = (n - dilation * (K - 1) - 1) // stride + 1, in the dtype of `x`.

    Raises:
        ValueError: channels do not fit the weight, or `x` has fewer frames than the kernel spans.
    """
    (_, n, channels), (out_channels, taps, group_channels) = x.shape, weight.shape
    if channels != group_channels * groups or out_channels % groups:
        raise ValueError(f"conv1d: weight {weight.shape} with {groups} groups does not fit {channels} channels")
    if n <= dilation * (taps - 1):
        raise ValueError(f"conv1d: {n} frames are fewer than the {dilation * (taps - 1) + 1} the kernel spans")
    if uses_matmul(groups):
        return _conv1d_matmul(x, weight, bias, stride, dilation, groups)
    if active().padded_channels and groups == 1:
        x, weight = _padded(x, weight)
    y = mx.conv1d(x, weight, stride=stride, dilation=dilation, groups=groups)[..., :out_channels]
    return y if bias is None else y + bias


def tap_order(weight: mx.array, groups: int = 1) -> mx.array:
    """The same weight (O, K, C / g), laid out in memory as the sum of products reads it: by tap, then channel in.

    Of several groups the channels out come before, as each group's lie together. Read in another layout, each tap is
    copied at each call.
    """
    if groups > 1:
        return mx.contiguous(weight.swapaxes(0, 1)).swapaxes(0, 1)
    return mx.contiguous(weight.transpose(1, 2, 0)).transpose(2, 0, 1)


def made_once(owner: Any, name: str, source: object, make: Callable[[], Made]) -> Made:
    """What `make` gives for `source`, kept by `owner` under `name` as long as the source is the same object."""
    kept = getattr(owner, name, None)  # read once: another thread may keep its own
    if kept is None or kept[0] is not source:
        kept = source, make()
        mx.eval(kept[1])  # before another thread can see it
        setattr(owner, name, kept)
    return kept[1]


def weight_of(conv: nn.Conv1d, groups: int = 1) -> mx.array:
    """The weight (O, K, C / g) of a module; where it will be read tap by tap it is first laid out so, once."""
    weight = conv.weight
    if uses_matmul(groups) and getattr(conv, "_in_tap_order", None) is not weight:
        weight = tap_order(weight, groups)
        mx.eval(weight)  # before another thread can see it
        conv.weight = conv._in_tap_order = weight
    return weight


def uses_matmul(groups: int = 1) -> bool:
    """Whether `conv1d` is a sum of shifted matrix products here and now; see `conv_backend`."""
    name = _backend.get()
    if name != "auto":
        return name == "matmul"
    if on_cpu():
        return True  # MLX's CPU kernel for a dilated or grouped conv1d is a scalar loop, some 80 times slower
    # MLX 0.32.4 on CUDA leaves its memory in a grouped conv1d of the flow's size (1024 channels, 16 groups, 60 frames).
    return groups > 1 and not mx.metal.is_available()


def _conv1d_matmul(
    x: mx.array, weight: mx.array, bias: mx.array | None, stride: int, dilation: int, groups: int
) -> mx.array:
    (b, n, _), (out_channels, taps, group_channels) = x.shape, weight.shape
    m = (n - dilation * (taps - 1) - 1) // stride + 1
    if groups > 1:
        # A group's frames lie together, or each tap would be copied: (b, g, n, C/g).
        x = mx.contiguous(x.reshape(b, n, groups, group_channels).swapaxes(1, 2))
        weight = weight.reshape(groups, out_channels // groups, taps, group_channels)
    y = None if bias is None else mx.broadcast_to(bias.astype(x.dtype), (b, m, out_channels))
    if y is not None and groups > 1:
        y = y.reshape(b, m, groups, -1).swapaxes(1, 2)
    whole = _adds_whole_products(mx.default_device().type)
    for tap in range(taps):
        start = tap * dilation
        # A tap is taken before the axes change: MLX 0.31.2 forgets that they did where there is only one.
        mixing = weight[..., tap, :].swapaxes(-1, -2)  # ([g,] C/g, O/g)
        frames = x[..., start : start + (m - 1) * stride + 1 : stride, :]
        for first in range(0, group_channels, LONGEST_SUM):
            part = slice(first, first + LONGEST_SUM)
            factors = frames[..., part], mixing[..., part, :]
            if y is None:
                y = factors[0] @ factors[1]
            else:
                y = mx.addmm(y, *factors) if whole else y + factors[0] @ factors[1]
    return y.swapaxes(1, 2).reshape(b, m, out_channels) if groups > 1 else y


def _padded(x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    """Zeros in place of missing channels, where Metal would otherwise unfold the input in memory."""
    (out_channels, _, channels) = weight.shape
    more_in = -channels % STEP if channels > FEW_IN else 0
    more_out = -out_channels % STEP if out_channels > FEW_OUT else 0
    if more_in:
        x = mx.pad(x, [(0, 0), (0, 0), (0, more_in)])
    return x, mx.pad(weight, [(0, more_out), (0, 0), (0, more_in)]) if more_in or more_out else weight


@lru_cache(maxsize=2)
def _adds_whole_products(device: mx.DeviceType) -> bool:
    """Whether `addmm` forms a product first and then adds it, as an exact sum over taps needs.

    The reference BLAS in MLX's Linux wheel adds term after term to what is there, so that small terms drown: of these
    256, each half a unit in the last place of 1, none would be left.
    """
    one, terms = mx.ones((STEP, STEP)), mx.full((STEP, LONGEST_SUM), 2.0**-25)
    return mx.addmm(one, terms, mx.ones((LONGEST_SUM, STEP)), stream=mx.Device(device)).min().item() > 1
