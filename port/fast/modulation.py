"""Tables of everything that is equal in all requests: modulations of the norms at the fixed timesteps, rotary angles.

Every request uses the same ten timesteps, and 42 % of the transformer's weights only process the timestep. Tables can
replace these weights (`bake`, or a folder of `convert/run.py --bake-timesteps`); the model then supports no other
timesteps.

N times, k vectors of a norm, b batch, d width
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..flow.dit import DiT
from ..flow.layers import RotaryEmbedding
from ..flow.matching import CausalConditionalCFM, cosine_schedule
from .modules import recast, replace

MAX_TIMES = 64  # most timesteps of a folder, 0.5 MB each at the official size; no schedule in use has more steps
NOT_BAKED = "time {:.4f} is not among the timesteps that were baked; load or convert the model without baking them"
POSITIONS = 4096  # 82 s; a longer request makes its rotary tables in each step, a thousandth of its work
# Float32 rounding of the steps differs between machines; timesteps of any schedule are much further apart.
SAME_TIME = 1e-6


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


class TimeTable(nn.Module):
    """Replaces the time embedding: gives the rows of timesteps in the tables.

    Args:
        times: (N,) float32.
        embedding: for other timesteps; None if its weights were dropped.
    """

    def __init__(self, times: mx.array, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.times = times
        if embedding is not None:
            self.embedding = embedding

    def __call__(self, timestep: mx.array | np.ndarray) -> mx.array:
        """Rows (b,) int32 of the times (b,); if one has no row, the embedding (b, d) of all.

        Raises:
            ValueError: a time without a row, and there is no embedding.
        """
        asked = np.asarray(timestep, np.float32)
        apart = np.abs(np.array(self.times) - asked[:, None])
        if (unknown := apart.min(axis=1) > SAME_TIME).any():
            if "embedding" in self:
                return self.embedding(timestep)
            raise ValueError(NOT_BAKED.format(asked[int(unknown.argmax())]))
        return mx.array(apart.argmin(axis=1).astype(np.int32))


class VectorTable(nn.Module):
    """Replaces a norm's SiLU and linear: the vectors that they compute from a timestep's embedding.

    Args:
        table: (N, k, d) float32.
        linear: for other timesteps; None if its weights were dropped.
    """

    def __init__(self, table: mx.array, linear: nn.Module | None = None) -> None:
        super().__init__()
        self.table = table
        if linear is not None:
            self.linear = linear

    def __call__(self, emb: mx.array) -> mx.array:
        """(b, k * d), from rows (b,) int32 or embeddings (b, d)."""
        return self.table[emb].flatten(1) if emb.dtype == mx.int32 else self.linear(nn.silu(emb))


class RotaryTables(RotaryEmbedding):
    """`RotaryEmbedding` with precomputed tables of its first positions.

    Attributes:
        cos, sin: (1, positions, dim) float32.
    """

    def tables(self, seq_len: int, offset: int = 0) -> tuple[mx.array, mx.array]:
        """As in `RotaryEmbedding`."""
        end = offset + seq_len
        if end > self.cos.shape[1]:
            return super().tables(seq_len, offset)
        return self.cos[:, offset:end], self.sin[:, offset:end]


def norms(dit: DiT) -> list[nn.Module]:
    """The norms modulated by the timestep: one per block, and the last one."""
    return [*(block.attn_norm for block in dit.transformer_blocks), dit.norm_out]


def is_baked(dit: DiT) -> bool:
    """Whether tables have replaced the weights."""
    return isinstance(dit.time_embed, TimeTable) and "embedding" not in dit.time_embed


def tabulate(dit: DiT, times: Sequence[float]) -> list[mx.array]:
    """The modulations of each norm at `times`, (N, k, d) float32 each."""
    emb = dit.time_embed(np.array(times, np.float32))
    return [mx.stack(norm.modulation(emb), axis=1) for norm in norms(dit)]


def tables(model: nn.Module) -> nn.Module:
    """Add tables of the schedule's timesteps and of the rotary angles; the layers behind them stay."""

    def timed(cfm: CausalConditionalCFM) -> CausalConditionalCFM:
        if not isinstance(cfm.estimator.time_embed, TimeTable):
            times = step_times(cosine_schedule(cfm.config.n_timesteps))
            _put(cfm.estimator, mx.array(times, mx.float32), tabulate(cfm.estimator, times), keep=True)
        return cfm

    def turned(plain: RotaryEmbedding) -> RotaryTables:
        made = recast(plain, RotaryTables)
        made.cos, made.sin = plain.tables(POSITIONS)
        return made

    return replace(model, {CausalConditionalCFM: timed, RotaryEmbedding: turned})


def bake(cfm: CausalConditionalCFM, n_timesteps: int | None = None) -> None:
    """Replace weights by tables for `n_timesteps` steps, by default the configuration's.

    This drops 42 % of the decoder's weights at the official size. Other timesteps then raise ValueError.

    Raises:
        ValueError: the weights were dropped before, and one of these timesteps has no row.
    """
    times = step_times(cosine_schedule(n_timesteps or cfm.config.n_timesteps))
    made = tabulate(cfm.estimator, times)
    mx.eval(made)
    _put(cfm.estimator, mx.array(times, mx.float32), made)


def make_room(dit: DiT, count: int) -> None:
    """Replace the weights by empty tables for `count` timesteps, to be loaded.

    Raises:
        ValueError: more times than a folder may have, or none.
    """
    if not 1 <= count <= MAX_TIMES:
        raise ValueError(f"{count} baked timesteps; a model has 1 to {MAX_TIMES}")
    shapes = [norm.linear.weight.shape for norm in norms(dit)]  # (k * d, d)
    _put(dit, mx.zeros(count), [mx.zeros((count, outputs // d, d)) for outputs, d in shapes])


def _put(dit: DiT, times: mx.array, made: Sequence[mx.array], keep: bool = False) -> None:
    """Put tables in place; `keep` the layers behind them, for other timesteps."""
    dit["time_embed"] = TimeTable(times, dit.time_embed if keep else None)
    for norm, table in zip(norms(dit), made, strict=True):
        norm.silu, norm.linear = nn.Identity(), VectorTable(table, norm.linear if keep else None)
