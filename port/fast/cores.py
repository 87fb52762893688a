"""Matrix products divided among the cores of a CPU. MLX computes what belongs to one stream in one thread.

So does the BLAS of its Linux wheel with a product. Each core gets a stream, and each stream a piece of a product: some
output channels of a linear layer, frames of a convolution, or heads of an attention.

b batch, n frames in, C channels in, O channels out
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .arithmetic import on_cpu
from .attention import FastAttention
from .convolution import (
    ProductCausalConv1d,
    ProductConv1d,
    ProductDownSample,
    ProductUpsample,
    adds_whole_products,
)
from .modulation import TimeTable, VectorTable
from .modules import recast, replace

LEAST_WEIGHTS = 1 << 16  # of a layer that is divided: a smaller one takes no longer than streams need to meet
LEAST_FRAMES = 16  # of a convolution's piece


def count() -> int:
    """Cores that this process may use; OMP_NUM_THREADS limits them, as it does elsewhere."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(found, int(limit)) if limit.isdecimal() and int(limit) else found


def suit() -> bool:
    """Whether the default device gains: a CPU with several cores, and a BLAS that computes a product in one thread."""
    several = on_cpu() and count() > 1 and hasattr(mx, "new_thread_local_stream")
    return several and not adds_whole_products(mx.default_device().type)


@lru_cache(maxsize=1)
def streams_of(cores: int) -> tuple[Any, ...]:
    """A stream for each core, the same for all models: a stream is a thread. Each caller's thread has its own."""
    return tuple(mx.new_thread_local_stream(mx.cpu) for _ in range(cores))


def pieces(n: int, streams: Sequence[Any], least: int = 1) -> list[tuple[Any, int, int]]:
    """Stream, first place and end of parts of 0..n that are about as long as each other, at least `least`."""
    size = max(least, -(-n // len(streams)))
    starts = range(0, n, size)
    return [(stream, first, min(first + size, n)) for stream, first in zip(streams, starts, strict=False)]


class DividedLinear(nn.Module):
    """A linear layer whose output channels are divided.

    Attributes:
        parts: linear layers, one for each stream.
    """

    def __init__(self, plain: nn.Linear, streams: Sequence[Any]) -> None:
        super().__init__()
        self.parts, self._streams = [], streams
        for _, first, end in pieces(plain.weight.shape[0], streams):
            part = recast(plain, nn.Linear)
            for name in plain:
                part[name] = plain[name][first:end]
            self.parts.append(part)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., C) -> (..., O)."""
        done = []
        for part, stream in zip(self.parts, self._streams, strict=False):
            with mx.stream(stream):
                done.append(part(x))
        return mx.concatenate(done, axis=-1)


class DividedConv1d(ProductConv1d):
    """`ProductConv1d` whose output frames are divided."""

    def __call__(self, x: mx.array) -> mx.array:
        """As in `ProductConv1d`."""
        span = self.dilation * (self.weight.shape[1] - 1) + 1
        m = (x.shape[1] + 2 * self.padding - span) // self.stride + 1
        if self.padding or m <= LEAST_FRAMES:
            return super().__call__(x)
        done = []
        for stream, first, end in pieces(m, self._streams, LEAST_FRAMES):
            with mx.stream(stream):
                done.append(super().__call__(x[:, first * self.stride : (end - 1) * self.stride + span]))
        return mx.concatenate(done, axis=1)


class DividedCausalConv1d(ProductCausalConv1d, DividedConv1d):
    """`ProductCausalConv1d` in pieces."""


class DividedDownSample(ProductDownSample, DividedConv1d):
    """`ProductDownSample` in pieces."""


class DividedUpsample(ProductUpsample, DividedConv1d):
    """`ProductUpsample` in pieces."""


CONVOLUTIONS: dict[type[nn.Module], type[Any]] = {
    ProductConv1d: DividedConv1d,
    ProductCausalConv1d: DividedCausalConv1d,
    ProductDownSample: DividedDownSample,
    ProductUpsample: DividedUpsample,
}


def by_heads(
    softmax: Callable[..., mx.array],
    streams: Sequence[Any],
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: mx.array | None = None,
) -> mx.array:
    """`softmax` with some heads on each stream; shapes as for `attention.attention`, one mask for all heads."""
    done = []
    for stream, first, end in pieces(q.shape[1], streams):
        with mx.stream(stream):
            done.append(softmax(*(t[:, first:end] for t in (q, k, v)), scale, mask))
    return mx.concatenate(done, axis=1)


def divided(model: nn.Module) -> nn.Module:
    """Divide large linear layers of float32, `ProductConv1d` and `FastAttention`."""
    streams = streams_of(max(2, count()))

    def linear(plain: nn.Linear) -> nn.Module:
        worth = plain.weight.dtype == mx.float32 and plain.weight.size >= LEAST_WEIGHTS
        return DividedLinear(plain, streams) if worth else plain

    def convolution(whole: ProductConv1d) -> nn.Module:
        made = recast(whole, CONVOLUTIONS[type(whole)])
        made._streams = streams
        return made

    def attention(whole: FastAttention) -> nn.Module:
        whole.softmax = partial(by_heads, whole.softmax, streams)
        return whole

    forms: dict[type[nn.Module], Callable[[Any], nn.Module]] = dict.fromkeys(CONVOLUTIONS, convolution)
    forms |= {nn.Linear: linear, FastAttention: attention}
    return replace(model, forms, leave=(TimeTable, VectorTable, DividedLinear))
