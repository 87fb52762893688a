"""A case is one line of data; weights, oracle, liveness, trace and report row all follow from it.

    Case("attention", part, dict(dim=48, heads=3, dim_head=16), dict(x=normal(2, 23, 48)))

Shapes and layouts are the reference's. The values come from the case's name, so a case is the same on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_parity.part import Part

Draw = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One isolated comparison.

    Args:
        name: `stage.what`, unique; report rows and pytest ids use it.
        part: what is compared.
        config: constructor arguments.
        inputs: tensors by argument name, or how to draw them.
        call: other arguments, which are not tensors.
        dead: tensor name (weight or input) -> why a change of it cannot move the result.
        weights: the state dict to use; drawn from the name when None.
        reproduce: command that runs the case alone.
        seed: other values under the same name, to measure false alarms.
    """

    name: str
    part: Part
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Draw | np.ndarray] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    dead: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] | None = None
    reproduce: str = ""
    seed: int = 0

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self.name}/{purpose}".encode()) + (self.seed << 32))

    def draw(self) -> dict[str, np.ndarray]:
        """The inputs' values, float32 or integers."""
        return {k: v(self.rng(k)) if callable(v) else v for k, v in self.inputs.items()}


def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Draw:
    return lambda rng: (mean + scale * rng.standard_normal(shape)).astype(np.float32)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Draw:
    return lambda rng: rng.uniform(low, high, shape).astype(np.float32)


def tokens(*shape: int, high: int) -> Draw:
    return lambda rng: rng.integers(0, high, shape).astype(np.int32)


def values(*items: Any, dtype: type = np.float32) -> np.ndarray:
    return np.array(items, dtype=dtype)
