"""The isolated cases, a file a stage, and how to write one on a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from mlx_parity.case import Case, Draw
from parity_tests.parts import PARTS

Input = Draw | np.ndarray


def all_cases() -> list[Case]:
    """Every isolated case in the order of the pipeline, smallest parts first."""
    stages = ("frontend", "llm", "flow", "vocoder")
    return [case for stage in stages for case in import_module(f"{__name__}.{stage}").CASES]


def marked(cases: Iterable[Case]) -> list[Any]:
    """Cases as parameters of a test, named by part and case, and marked with their part."""
    return [pytest.param(c, id=f"{c.part.name}-{c.name}", marks=pytest.mark.part(c.part.path)) for c in cases]


def case(
    name: str,
    part: str,
    config: Mapping[str, Any] | None = None,
    call: Mapping[str, Any] | None = None,
    dead: Mapping[str, str] | None = None,
    **inputs: Input,
) -> Case:
    """Write a case on one line; `part` is a path of the registry (parts.py).

    case("flow.attention", "flow.layers.Attention", dict(dim=48, heads=3, dim_head=16), x=normal(2, 23, 48))
    """
    again = f"python -m parity_tests.trace {name}"
    return Case(name, PARTS[part], config or {}, inputs, call or {}, dead or {}, reproduce=again)


def cases_of(stage: str, module: str) -> Callable[..., Case]:
    """`case` for one module: `stage` is put before each name and `module` before each part."""

    def of_module(name: str, part: str, *more: Mapping[str, Any] | None, **inputs: Any) -> Case:
        return case(f"{stage}.{name}", f"{module}.{part}", *more, **inputs)

    return of_module


def valid(n: int, *lengths: int) -> np.ndarray:
    """(b, 1, n) float32 mask: 1 for as many first frames of each row as `lengths` says."""
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
