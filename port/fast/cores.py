"""Matrix products divided among the cores of a CPU. MLX computes what belongs to one stream in one thread.

So does the BLAS of its Linux wheel with a product. Each core gets a stream, and each stream a piece of a product: some
output channels of a linear layer, frames of a convolution, or heads of an attention.

b batch, n frames in, m frames out, C channels in, O channels out
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
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

LEAST_WORK = 1 << 21  # multiplications: fewer take the wheel's BLAS no longer than the streams need to meet
FEW_ROWS = 32  # a linear layer that is too small with these stays whole, with its weight and bias


def count(found: int, limit: str) -> int:
    """Cores to use: those `found`, or the `limit` if that is a smaller number above 0."""
    return min(found, int(limit)) if limit.isdecimal() and int(limit) else found


def available() -> int:
    """Cores that this process may use; OMP_NUM_THREADS limits them, as it does elsewhere."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count(found, os.environ.get("OMP_NUM_THREADS", ""))


def gains(cores: int, whole_products: bool) -> bool:
    """Whether a CPU gains: with several cores, where the BLAS is the wheel's, which adds term by term in one thread."""
    return cores > 1 and not whole_products


def suit() -> bool:
    """Whether the default device gains."""
    if not on_cpu() or not hasattr(mx, "new_thread_local_stream"):
        return False
    return gains(available(), adds_whole_products(mx.default_device().type))


@lru_cache(maxsize=1)
def streams_of(cores: int) -> tuple[Any, ...]:
    """A stream for each core, the same for all models: a stream is a thread. Each caller's thread has its own."""
    return tuple(mx.new_thread_local_stream(mx.cpu) for _ in range(cores))


def pieces(n: int, parts: int) -> list[tuple[int, int]]:
    """First place and end of at most `parts` parts of 0..n, as long as each other but for the last."""
    size = -(-n // parts)
    return [(first, min(first + size, n)) for first in range(0, n, size)]


class Cores:
    """A stream for each core, for products of `least` multiplications and more."""

    def __init__(self, number: int, least: int) -> None:
        self.streams, self.least = streams_of(number), least

    def pieces(self, n: int, work: int) -> list[tuple[int, int]]:
        """`pieces` for a product of `work` multiplications: one if these are few."""
        return pieces(n, len(self.streams) if work >= self.least else 1)

    def joined(self, parts: Iterable[Callable[[], mx.array]], axis: int, work: int) -> mx.array:
        """The results of `parts`, each computed on a stream of its own; on the caller's if `work` is little."""
        done = []
        for part, stream in zip(parts, self.streams, strict=False):
            with mx.stream(stream) if work >= self.least else nullcontext():
                done.append(part())
        return mx.concatenate(done, axis=axis)


class DividedLinear(nn.Module):
    """A linear layer whose output channels are divided.

    Attributes:
        parts: linear layers, one for each core.
    """

    def __init__(self, plain: nn.Linear, cores: Cores) -> None:
        super().__init__()
        self.parts, self._cores, self._size = [], cores, plain.weight.size
        for first, end in pieces(plain.weight.shape[0], len(cores.streams)):
            part = copy.copy(plain)
            for name in plain:
                part[name] = plain[name][first:end]
            self.parts.append(part)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., C) -> (..., O)."""
        work = x.size // x.shape[-1] * self._size
        return self._cores.joined([partial(part, x) for part in self.parts], -1, work)


class DividedConv1d(ProductConv1d):
    """`ProductConv1d` whose output frames are divided."""

    def summed(self, x: mx.array, m: int) -> mx.array:
        """As in `ProductConv1d`."""
        work = x.shape[0] * m * self.weight.size
        whole, stride, seen = super().summed, self.stride, self.dilation * (self.weight.shape[1] - 1) + 1

        def part(first: int, end: int) -> mx.array:
            return whole(x[:, first * stride : (end - 1) * stride + seen], end - first)

        return self._cores.joined([partial(part, *piece) for piece in self._cores.pieces(m, work)], 1, work)


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
    cores: Cores,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: mx.array | None = None,
) -> mx.array:
    """`softmax` with some heads on each core; shapes as for `attention.attention`, one mask for all heads."""
    work = 2 * q.size * k.shape[2]

    def part(first: int, end: int) -> mx.array:
        return softmax(*(t[:, first:end] for t in (q, k, v)), scale, mask)

    return cores.joined([partial(part, *piece) for piece in cores.pieces(q.shape[1], work)], 1, work)


def divided(model: nn.Module, number: int | None = None, least: int = LEAST_WORK) -> nn.Module:
    """Divide large linear layers of float32, `ProductConv1d` and `FastAttention`.

    Args:
        number: of cores; None for those that are available, but two at least.
        least: multiplications from which a product is divided.
    """
    cores = Cores(number or max(2, available()), least)

    def linear(plain: nn.Linear) -> nn.Module:
        large = plain.weight.size * FEW_ROWS >= least and plain.weight.shape[0] >= len(cores.streams)
        return DividedLinear(plain, cores) if large and plain.weight.dtype == mx.float32 else plain

    def convolution(whole: ProductConv1d) -> nn.Module:
        made = recast(whole, CONVOLUTIONS[type(whole)])
        made._cores = cores
        return made

    def attention(whole: FastAttention) -> nn.Module:
        whole.softmax = partial(by_heads, whole.softmax, cores)
        return whole

    forms: dict[type[nn.Module], Callable[[Any], nn.Module]] = dict.fromkeys(CONVOLUTIONS, convolution)
    forms |= {nn.Linear: linear, FastAttention: attention}
    return replace(model, forms, leave=(TimeTable, VectorTable, DividedLinear))
