"""The state that a stream carries from chunk to chunk; the networks take it as an argument and change it.

b batch, n frames, C channels, d width, h heads, c channels per head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

Array = TypeVar("Array", mx.array, np.ndarray)


class Tail:
    """The last inputs of one layer, as many as its next chunk needs."""

    def __init__(self) -> None:
        self.frames: Any = None  # an array of MLX; of numpy where a layer computes in float64

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
    """The tails of one stream of the vocoder, by layer; empty before the first chunk.

    Attributes:
        started: true after the first chunk: later chunks must not be padded like the start of a signal.
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


@dataclass
class Span:
    """The frames that a stream of the flow decoder keeps, counted from its first frame.

    Attributes:
        start: frames kept so far; the current chunk begins here.
        whole: frames kept after the current chunk: whole chunks, which no later frame can change.
        prompt: end of the prompt's whole chunks while they must still be stored for later streams, otherwise 0.
    """

    start: int = 0
    whole: int = 0
    prompt: int = 0


class ChunkTail(Tail):
    """The last inputs of a causal convolution up to the end of the whole chunks, and up to that of the prompt's."""

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.span = span
        self.prompt: Any = None

    def extend(self, x: mx.array, zeros: int) -> mx.array:
        """As `Tail.extend`, and keep what the next chunk needs: `zeros` frames, float32."""
        seen, span = super().extend(x, zeros), self.span
        if span.prompt:
            self.prompt = _before(seen, span.prompt - span.start, zeros)
        self.frames = _before(seen, span.whole - span.start, zeros)
        return seen.astype(x.dtype)


class Kept:
    """Keys and values of one attention, of the frames in whole chunks; any layout (..., n, c)."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values of all frames so far (..., n, c), from the new (..., m, c); keeps those in whole chunks."""
        self.keys, keys = self._extend(self.keys, keys)
        self.values, values = self._extend(self.values, values)
        return keys, values

    def _extend(self, held: mx.array | None, new: mx.array) -> tuple[mx.array, mx.array]:
        start, n = self.span.start, self.span.start + new.shape[-2]
        if not start or held is None:
            # First chunk: the result itself becomes the buffer.
            return mx.contiguous(new[..., : self.span.whole, :]), new
        room = min(n, held.shape[-2])
        if room > start:
            held[..., start:room, :] = new[..., : room - start, :]
        return held, held[..., :n, :] if room == n else mx.concatenate([held[..., :start, :], new], axis=-2)


class StepState:
    """The state of whole chunks in one Euler step of the flow decoder's transformer.

    Attributes:
        span: the frames that all of it covers.
        kept: one for each block.
        tails: one for each of the two position convolutions.
    """

    def __init__(self, span: Span, depth: int) -> None:
        self.span = span
        self.kept = [Kept(span) for _ in range(depth)]
        self.tails = [ChunkTail(span) for _ in range(2)]

    @property
    def arrays(self) -> list[mx.array]:
        """Everything kept."""
        kept = [array for kept in self.kept for array in (kept.keys, kept.values)]
        return [array for array in kept + [a for t in self.tails for a in (t.frames, t.prompt)] if array is not None]

    def copy(self, span: Span, capacity: int, prompt: bool = False) -> StepState:
        """A copy of the first `span.start` frames, with room for `capacity` in total.

        Args:
            prompt: these are the prompt's whole chunks.
        """

        def moved(held: Any) -> mx.array:
            room = mx.zeros((*held.shape[:-2], capacity - span.start, held.shape[-1]), held.dtype)
            return mx.concatenate([held[..., : span.start, :], room], axis=-2)

        made = StepState(span, len(self.kept))
        for kept, held in zip(made.kept, self.kept, strict=True):
            kept.keys, kept.values = moved(held.keys), moved(held.values)
        for new, old in zip(made.tails, self.tails, strict=True):
            new.frames = (old.prompt if prompt else old.frames) + 0
        mx.eval(made.arrays)
        return made


class FlowState:
    """The whole chunks of a stream of the flow decoder: one `StepState` an Euler step, and room for `capacity` frames.

    Args:
        steps: Euler steps.
        depth: blocks of the transformer.
    """

    def __init__(self, steps: int, depth: int) -> None:
        self.span = Span()
        self.capacity = 0
        self.steps = [StepState(self.span, depth) for _ in range(steps)]

    def copy(self, frames: int, capacity: int, prompt: bool = False) -> FlowState:
        """A copy of the first `frames` frames with room for `capacity`; see `StepState.copy`."""
        made = FlowState(0, 0)
        made.span, made.capacity = Span(frames, frames), capacity
        made.steps = [step.copy(made.span, capacity, prompt) for step in self.steps]
        return made

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` frames; one Euler step at a time is in memory twice.

        The first frames bring their own.
        """
        if self.span.start:
            for i, step in enumerate(self.steps):
                self.steps[i] = step.copy(self.span, capacity)
        self.capacity = capacity

    def forget_prompt(self) -> None:
        """Drop what is kept only for later streams."""
        self.span.prompt = 0
        for tail in (tail for step in self.steps for tail in step.tails):
            tail.prompt = None

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(array.nbytes for step in self.steps for array in step.arrays)


def _before(seen: mx.array, frames: int, taps: int) -> mx.array:
    """(b, taps, d) float32: of `seen`, which begins with `taps` frames, those before frame `frames` of the rest."""
    return mx.contiguous(seen[:, frames : frames + taps].astype(mx.float32))
