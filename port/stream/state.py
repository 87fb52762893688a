"""What a stream of the vocoder carries from one chunk to the next.

b batch, n frames, C channels
"""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx
import numpy as np

Array = TypeVar("Array", mx.array, np.ndarray)


class Tail:
    """The end of what one part of the vocoder has seen so far, as far back as its next chunk looks."""

    def __init__(self) -> None:
        self.frames: mx.array | np.ndarray | None = None

    def extend(self, x: mx.array, zeros: int) -> mx.array:
        """(b, k + n, C): the k frames kept, at the start of the stream `zeros` frames of zeros, then `x` (b, n, C)."""
        if self.frames is None:
            self.frames = mx.zeros((x.shape[0], zeros, x.shape[2]), x.dtype)
        return mx.concatenate([self.frames, x], axis=1)

    def keep(self, frames: Array) -> Array:
        """Keep (b, k, C) for the next chunk, in memory of its own."""
        self.frames = mx.contiguous(frames) if isinstance(frames, mx.array) else frames.copy()
        return frames


class State:
    """The tails of one stream, by the part of the vocoder that they belong to; empty until the first chunk.

    Attributes:
        started: a chunk has been through the filter, so that the start of this one is no start of the signal.
    """

    def __init__(self) -> None:
        self.started = False
        self._tails: dict[int, Tail] = {}

    def tail(self, part: object) -> Tail:
        """The tail of `part`, which must outlive the state."""
        return self._tails.setdefault(id(part), Tail())

    @property
    def arrays(self) -> list[mx.array | np.ndarray]:
        """Everything kept."""
        return [tail.frames for tail in self._tails.values() if tail.frames is not None]


def tail_of(state: State | None, part: object) -> Tail | None:
    """The tail of `part`; None outside a stream."""
    return None if state is None else state.tail(part)
