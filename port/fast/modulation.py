"""Tables of what is the same in every request: the norms' modulations at the fixed times, and the rotary angles.

Speech takes the same ten times for every request, and 42 % of the transformer's weights see nothing but the time. Their
results can stand in place of the weights (`bake`, or a folder of `convert/run.py --bake-timesteps`): then the model
knows these times only.

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

MAX_TIMES = 64  # of a folder, 0.5 MB each at the official size; more than any schedule in use has steps
NOT_BAKED = "time {:.4f} is not among the timesteps that were baked; load or convert the model without baking them"
POSITIONS = 4096  # 82 s; a longer request makes its rotary tables in each step, a thousandth of its work
# Float32 steps round differently from machine to machine; the times of any schedule are much further apart.
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
    """In place of the time embedding: the rows of times in the tables.

    Args:
        times: (N,) float32.
        embedding: of any other time; None where its weights are gone.
    """

    def __init__(self, times: mx.array, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.times = times
        if embedding is not None:
            self.embedding = embedding

    def __call__(self, timestep: mx.array | np.ndarray) -> mx.array:
        """Rows (b,) int32 of the times (b,); where one has none, the embedding (b, d) of all.

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
    """In place of a norm's SiLU and linear: the vectors that they make of a time's embedding.

    Args:
        table: (N, k, d) float32.
        linear: for any other time; None where its weights are gone.
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
    """`RotaryEmbedding` with the tables of its first positions made before.

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
    """The norms that the time steers, one a block and the last one."""
    return [*(block.attn_norm for block in dit.transformer_blocks), dit.norm_out]


def is_baked(dit: DiT) -> bool:
    """Whether tables stand in place of the weights, which are gone."""
    return isinstance(dit.time_embed, TimeTable) and "embedding" not in dit.time_embed


def tabulate(dit: DiT, times: Sequence[float]) -> list[mx.array]:
    """What each norm makes of `times`, (N, k, d) float32 each."""
    emb = dit.time_embed(np.array(times, np.float32))
    return [mx.stack(norm.modulation(emb), axis=1) for norm in norms(dit)]


def tables(model: nn.Module) -> nn.Module:
    """Put the tables of the schedule's times and of the rotary angles beside the layers that make them."""

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
    """Put the tables of `n_timesteps` steps, by default the configuration's, in place of the weights that make them.

    At the official size 42 % of the decoder's weights go. Whatever asks for another time ends in a ValueError.

    Raises:
        ValueError: they are gone already, and one of these times has no row.
    """
    times = step_times(cosine_schedule(n_timesteps or cfm.config.n_timesteps))
    made = tabulate(cfm.estimator, times)
    mx.eval(made)
    _put(cfm.estimator, mx.array(times, mx.float32), made)


def make_room(dit: DiT, count: int) -> None:
    """Put empty tables for `count` times in place of the weights, to be loaded.

    Raises:
        ValueError: more times than a folder may have, or none.
    """
    if not 1 <= count <= MAX_TIMES:
        raise ValueError(f"{count} baked timesteps; a model has 1 to {MAX_TIMES}")
    shapes = [norm.linear.weight.shape for norm in norms(dit)]  # (k * d, d)
    _put(dit, mx.zeros(count), [mx.zeros((count, outputs // d, d)) for outputs, d in shapes])


def _put(dit: DiT, times: mx.array, made: Sequence[mx.array], keep: bool = False) -> None:
    """Put tables in place; `keep` the layers that make them, for other times."""
    dit.time_embed = TimeTable(times, dit.time_embed if keep else None)
    for norm, table in zip(norms(dit), made, strict=True):
        norm.silu, norm.linear = nn.Identity(), VectorTable(table, norm.linear if keep else None)
