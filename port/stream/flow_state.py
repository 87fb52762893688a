"""What a stream of the flow decoder keeps, how much memory that takes, and a count of its work.

h heads, c channels per head, d width of the transformer; 2 rows: the conditional and the unconditional half of the
guidance
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from ..config import FlowConfig
from ..fast.precision import layer_dtype
from ..flow.decoder import CausalMaskedDiffWithDiT

if TYPE_CHECKING:
    from .flow import StreamingFlow

ROWS = 2


@dataclass
class Work:
    """What the transformer has computed.

    Attributes:
        frames: frames, each once for every time it went through the Euler steps.
        pairs: queries times the keys they met, in one layer of one step.
    """

    frames: int = 0
    pairs: int = 0

    def add(self, frames: int, chunk_size: int = 0, start: int = 0) -> None:
        """Count `frames` frames on top of `start` others, in chunks, or with 0 all seeing all."""
        for first in range(0, frames, chunk_size or frames or 1):
            last = min(first + chunk_size, frames) if chunk_size else frames
            self.pairs += (last - first) * (start + last)
        self.frames += frames


@dataclass
class StepState:
    """What whole chunks leave behind in one Euler step.

    Attributes:
        keys, values: for each layer (2, h, capacity, c), rotated; places past the whole chunks hold nothing of use.
        tails: last inputs of the two position convolutions, (2, taps - 1, d) float32 each, zeros at the
            start.
        prompt_tails: the same at the end of the prompt's whole chunks, while these are to be kept for later streams.
    """

    keys: list[mx.array]
    values: list[mx.array]
    tails: list[mx.array]
    prompt_tails: list[mx.array] = field(default_factory=list)

    @property
    def arrays(self) -> list[mx.array]:
        return [*self.keys, *self.values, *self.tails, *self.prompt_tails]


@dataclass
class FlowState:
    """Whole chunks of a stream: `frames` of them, room for `capacity`, one `StepState` an Euler step."""

    frames: int
    capacity: int
    steps: list[StepState]

    @classmethod
    def empty(cls, flow: CausalMaskedDiffWithDiT) -> FlowState:
        """Before the first frame, with no room yet."""
        dit, dtype = flow.config.dit, key_dtype(flow)

        def step() -> StepState:
            keys, values = (
                [mx.zeros((ROWS, dit.heads, 0, dit.dim_head), dtype) for _ in range(dit.depth)] for _ in range(2)
            )
            return StepState(keys, values, [mx.zeros((ROWS, dit.conv_pos_kernel_size - 1, dit.dim)) for _ in range(2)])

        return cls(0, 0, [step() for _ in range(flow.config.cfm.n_timesteps)])

    def copy(self, capacity: int) -> FlowState:
        """The same chunks in memory of their own, with room for `capacity` frames."""
        return FlowState(self.frames, capacity, [_moved(step, self.frames, capacity) for step in self.steps])

    def prompt(self, frames: int) -> FlowState:
        """The first `frames` frames, at whose end the `prompt_tails` are, in memory of their own."""
        steps = (replace(step, tails=step.prompt_tails) for step in self.steps)
        return FlowState(frames, frames, [_moved(step, frames, frames) for step in steps])

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` frames; one Euler step at a time is there twice.

        The first frames bring their own.
        """
        if self.frames:
            for i, step in enumerate(self.steps):
                self.steps[i] = _moved(step, self.frames, capacity)
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(array.nbytes for step in self.steps for array in step.arrays)


def _moved(step: StepState, frames: int, capacity: int) -> StepState:
    """The first `frames` frames of `step` in buffers with room for `capacity`."""

    def moved(held: mx.array) -> mx.array:
        room = mx.zeros((*held.shape[:2], capacity - frames, held.shape[3]), held.dtype)
        return mx.concatenate([held[:, :, :frames], room], axis=2)

    made = StepState([moved(k) for k in step.keys], [moved(v) for v in step.values], [t + 0 for t in step.tails])
    mx.eval(made.arrays)
    return made


def key_dtype(flow: CausalMaskedDiffWithDiT) -> mx.Dtype:
    """Dtype of keys and values."""
    return layer_dtype(flow.decoder.estimator.transformer_blocks[0].attn.to_k)


def state_bytes(config: FlowConfig, frames: int, dtype: mx.Dtype = mx.float32) -> int:
    """Memory of a `FlowState` with room for `frames` frames, prompt included.

    At the official size 3.6 MB a frame and 180 MB a second of audio in float32, half of it in float16.
    """
    dit = config.dit
    keys_and_values = 2 * dit.depth * dit.heads * dit.dim_head * frames * dtype.size
    tails = 2 * (dit.conv_pos_kernel_size - 1) * dit.dim * mx.float32.size
    return ROWS * config.cfm.n_timesteps * (keys_and_values + tails)


Keep = Callable[[FlowState], None]


class Memory(Protocol):
    """Who says how much a stream may hold, and keeps the chunks of prompts for later streams."""

    def reserve(self, owner: object, nbytes: int) -> bool:
        """Whether `owner` may hold `nbytes` in all from now on."""

    def find(self, stream: StreamingFlow, frames: int) -> FlowState | None:
        """The first `frames` frames of the stream's prompt, if an earlier stream left them; not to be changed."""

    def keeper(self, stream: StreamingFlow, frames: int) -> Keep:
        """Asked when the prompt is computed: a function that copies its first `frames` frames, if there is room."""


class Unbounded:
    """A `Memory` without limits that keeps nothing."""

    def reserve(self, owner: object, nbytes: int) -> bool:
        """Always."""
        return True

    def find(self, stream: StreamingFlow, frames: int) -> FlowState | None:
        """Nothing is kept."""

    def keeper(self, stream: StreamingFlow, frames: int) -> Keep:
        """Nothing is kept."""
        return lambda state: None
