"""A case is one line of data; weights, oracle, liveness, trace and report row all follow from it.

    case("flow.attention", "flow.layers.Attention", dict(dim=48, heads=3, dim_head=16), x=normal(2, 23, 48))

Shapes and layouts are the reference's. The values come from the case's name, so a case is the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from parity_tests.harness.targets import TARGETS, Target

Draw = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One isolated comparison.

    Args:
        name: `stage.what`, unique; report rows and pytest ids use it.
        target: what is compared.
        config: constructor arguments.
        inputs: tensors by argument name, or how to draw them.
        call: further arguments that are no tensors.
        dead: tensor name (weight or input) -> why a change of it cannot move the result.
        weights: the state dict to use; drawn from the name when None.
        seed: further values under the same name, for the measurement of false alarms.
    """

    name: str
    target: Target
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Draw | np.ndarray] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    dead: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] | None = None
    seed: int = 0

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self.name}/{purpose}".encode()) + (self.seed << 32))

    def draw(self) -> dict[str, np.ndarray]:
        """The inputs' values, float32 or integers."""
        return {k: v(self.rng(k)) if callable(v) else v for k, v in self.inputs.items()}


def all_cases() -> list[Case]:
    """Every isolated case, in the order of the pipeline and smallest parts first."""
    stages = ("frontend", "llm", "flow", "vocoder")
    return [case for stage in stages for case in import_module(f"parity_tests.cases.{stage}").CASES]


def marked(cases: Iterable[Case]) -> list[Any]:
    """Cases as parameters of a test: named, and marked with the part that a failure speaks of."""
    return [pytest.param(case, id=case.name, marks=pytest.mark.part(case.target.path)) for case in cases]


def case(
    name: str,
    target: str,
    config: Mapping[str, Any] | None = None,
    call: Mapping[str, Any] | None = None,
    dead: Mapping[str, str] | None = None,
    **inputs: Draw | np.ndarray,
) -> Case:
    """Write a case on one line; `target` is a path of `targets.TARGETS`."""
    return Case(name, TARGETS[target], config or {}, inputs, call or {}, dead or {})


def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Draw:
    return lambda rng: (mean + scale * rng.standard_normal(shape)).astype(np.float32)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Draw:
    return lambda rng: rng.uniform(low, high, shape).astype(np.float32)


def tokens(*shape: int, high: int) -> Draw:
    return lambda rng: rng.integers(0, high, shape).astype(np.int32)


def values(*items: Any, dtype: type = np.float32) -> np.ndarray:
    return np.array(items, dtype=dtype)


def valid(n: int, *lengths: int) -> np.ndarray:
    """(b, 1, n) float mask of the original: 1 for the first `length` frames of each row."""
    return (np.arange(n) < np.array(lengths)[:, None]).astype(np.float32)[:, None]


def chunked(n: int, chunk: int, *lengths: int) -> np.ndarray:
    """(b, 1, n, n) bool attention mask: keys up to the end of the query's chunk, and never padding."""
    position = np.arange(n)
    causal = position[None, :] < (position[:, None] // chunk + 1) * chunk
    return causal[None, None] & valid(n, *lengths).astype(bool)[:, :, None]


def angles(n: int, dim: int) -> np.ndarray:
    """(1, n, dim) rotary angles, adjacent pairs equal, computed in float32 as the original does."""
    frequencies = (1.0 / 10000.0 ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(np.float32)
    return np.repeat(np.arange(n, dtype=np.float32)[:, None] * frequencies, 2, axis=-1)[None]


def voiced_and_unvoiced(batch: int, frames: int, hop: int = 480) -> Draw:
    """(b, frames * hop, 1) f0 in Hz, one value a frame: runs of speech pitch and runs under the 10 Hz threshold."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        f0 = rng.uniform(90, 390, (batch, frames))
        f0[rng.uniform(size=f0.shape) < 0.3] = 0.0
        f0[:, :1] = 10.5
        f0[:, 1:2] = 9.5  # both sides of the threshold, whatever the draw
        return np.repeat(f0.astype(np.float32), hop, axis=1)[:, :, None]

    return draw
