"""Modulations of the diffusion transformer by time, made once: a step of the flow then runs no linear of a norm.

Speech takes the same ten times for every request, and 42 % of the transformer's weights see nothing but the time. Their
results can stand in place of the weights (`bake`, or a folder of `convert/run.py --bake-timesteps`): then the model
knows these times only.

N times, k vectors of a norm, d width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

# Times kept at once, 0.5 MB each at the official size; more than any schedule in use has steps.
MAX_TIMES = 64
NOT_BAKED = "{} is not among the timesteps that were baked; load or convert the model without baking them"
# Float32 steps round differently from machine to machine; the times of any schedule are much further apart.
SAME_TIME = 1e-6
# What steers a norm: the time embedding (b, d), or the vectors made of it before, (b or 1, d) each.
Steering = mx.array | tuple[mx.array, ...]
Rows = dict[float, list[tuple[mx.array, ...]]]


class Estimator(Protocol):
    """The parts of `DiT` that see the time."""

    time_embed: nn.Module
    transformer_blocks: list[nn.Module]
    norm_out: nn.Module
    modulation_tables: ModulationTables


def step_times(t_span: np.ndarray) -> list[float]:
    """Times at which `CausalConditionalCFM.solve_euler` asks for a velocity, from a schedule (N + 1,): N floats.

    Each is the running float32 sum of the steps, as there.
    """
    times = [t_span[0]]
    dt = t_span[1] - t_span[0]
    for following in t_span[2:]:
        times.append(times[-1] + dt)
        dt = following - times[-1]
    return [float(t) for t in times]


def norms(dit: Estimator) -> list[nn.Module]:
    """The norms that the time steers, one a block and the last one."""
    return [*(block.attn_norm for block in dit.transformer_blocks), dit.norm_out]


class ModulationTables:
    """Vectors of every norm at the times that were asked for, as long as the weights stay the same."""

    def __init__(self) -> None:
        # What they were made of, and by time the (1, d) vectors of each norm; one attribute, as threads share it.
        self._kept: tuple[list[mx.array], Rows] = ([], {})

    def __call__(self, dit: Estimator, times: Sequence[float]) -> list[tuple[mx.array, ...]]:
        """The vectors of each norm, (b, d) each, at the times of b rows; one time serves all rows."""
        kept = self.add(dit, times)
        rows = [kept[t] for t in times]
        if len(rows) == 1:
            return rows[0]
        return [tuple(map(mx.concatenate, zip(*norm, strict=True))) for norm in zip(*rows, strict=True)]

    def add(self, dit: Estimator, times: Sequence[float]) -> Rows:
        """Make what is missing for `times`, in one product a norm; returns what is kept then.

        Raises:
            ValueError: a time that a baked model does not know.
        """
        weights = [value for part in (dit.time_embed, *norms(dit)) for _, value in tree_flatten(part.parameters())]
        made_of, rows = self._kept
        if len(weights) != len(made_of) or any(a is not b for a, b in zip(weights, made_of, strict=True)):
            rows = {}
        missing = [t for t in dict.fromkeys(times) if t not in rows]
        if not missing:
            return rows
        if len(rows) + len(missing) > MAX_TIMES:
            rows, missing = {}, list(dict.fromkeys(times))
        made = tabulate(dit, missing)
        found = {t: [tuple(v[i : i + 1] for v in vectors) for vectors in made] for i, t in enumerate(missing)}
        # Evaluated here, so that another thread may use them.
        mx.eval(*found.values())
        self._kept = weights, rows | found
        return rows | found


class _Baked(nn.Module):
    def __call__(self, *arguments: mx.array | np.ndarray) -> NoReturn:
        """Refuse.

        Raises:
            ValueError: always; a time was asked for that is not in the tables.
        """
        raise ValueError(NOT_BAKED.format("this time"))


class BakedTimes(_Baked):
    """In place of the time embedding: the times of the tables.

    Args:
        times: (N,) float32.
    """

    def __init__(self, times: mx.array) -> None:
        super().__init__()
        self.times = times

    def rows(self, times: Sequence[float]) -> mx.array:
        """Where `times` stand in the tables.

        Raises:
            ValueError: a time that is not there.
        """
        apart = np.abs(np.array(self.times) - np.array(times, np.float32)[:, None])
        if (unknown := apart.min(axis=1) > SAME_TIME).any():
            raise ValueError(NOT_BAKED.format(f"time {times[int(unknown.argmax())]:.4f}"))
        return mx.array(apart.argmin(axis=1))


class BakedVectors(_Baked):
    """In place of a norm's linear: what the norm's `modulation` returns at each time.

    Args:
        table: (N, k, d) float32.
    """

    def __init__(self, table: mx.array) -> None:
        super().__init__()
        self.table = table


def is_baked(dit: Estimator) -> bool:
    """Whether tables stand in place of the weights."""
    return isinstance(dit.time_embed, BakedTimes)


def bake(dit: Estimator, times: Sequence[float]) -> None:
    """Put the vectors of all norms at `times` in place of the weights that make them, which are let go.

    Raises:
        ValueError: tables stand there already, and a time is not among theirs.
    """
    tables = [mx.stack(vectors, axis=1) for vectors in tabulate(dit, times)]
    mx.eval(tables)
    _put(dit, mx.array(times, mx.float32), tables)


def make_room(dit: Estimator, count: int) -> None:
    """Put empty tables for `count` times in place of the weights, to be loaded.

    Raises:
        ValueError: more times than are kept at once, or none.
    """
    if not 1 <= count <= MAX_TIMES:
        raise ValueError(f"{count} baked timesteps; a model has 1 to {MAX_TIMES}")
    shapes = [norm.linear.weight.shape for norm in norms(dit)]  # (k * d, d)
    _put(dit, mx.zeros(count), [mx.zeros((count, outputs // d, d)) for outputs, d in shapes])


def _put(dit: Estimator, times: mx.array, tables: Sequence[mx.array]) -> None:
    dit.time_embed = BakedTimes(times)
    for norm, table in zip(norms(dit), tables, strict=True):
        norm.linear = BakedVectors(table)
    dit.modulation_tables = ModulationTables()  # what it kept refers to the weights


def tabulate(dit: Estimator, times: Sequence[float]) -> list[tuple[mx.array, ...]]:
    """The vectors of each norm at `times`, (N, d) each.

    Raises:
        ValueError: a time that a baked model does not know.
    """
    if is_baked(dit):
        rows = dit.time_embed.rows(times)
        return [tuple(mx.moveaxis(norm.linear.table[rows], 1, 0)) for norm in norms(dit)]
    emb = dit.time_embed(np.array(times, np.float32))
    return [norm.modulation(emb) for norm in norms(dit)]
