"""Switches of the fast paths: exact rewritings of the plain modules that an auditor reads beside the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class FastPaths:
    """One switch a path; each gives the plain modules' result up to rounding, held to the suite's budget.

    Attributes:
        modulation_tables: the DiT's scales, shifts and gates of the fixed timesteps, made once.
        fused_qkv: one matrix product for queries, keys and values.
        chunked_attention: under the chunk mask each chunk of queries meets its keys only, and needs no mask.
        fast_gelu: GELU without the CPU's scalar tanh.
        fast_mish: Mish without the CPU's scalar exponential, logarithm and tanh.
        fast_silu: SiLU of the language model without the CPU's scalar exponential.
        fast_softmax: attention without the CPU's scalar exp.
        fast_snake: Snake without the CPU's scalar sine.
        polyphase: repeat and convolution of the vocoder's upsampling at the rate of the input.
        padded_channels: odd channel counts of the vocoder filled up where Metal's fast convolution needs it.
        partition_top_k: the language model's best ids by partition instead of a full sort.
        compiled: `mx.compile` of the graphs that gain by it.
    """

    modulation_tables: bool = True
    fused_qkv: bool = True
    chunked_attention: bool = True
    fast_gelu: bool = True
    fast_mish: bool = True
    fast_silu: bool = True
    fast_softmax: bool = True
    fast_snake: bool = True
    polyphase: bool = True
    padded_channels: bool = True
    partition_top_k: bool = True
    compiled: bool = True


PATHS = tuple(field.name for field in fields(FastPaths))
ALL_FAST = FastPaths()
PLAIN = FastPaths(**dict.fromkeys(PATHS, False))
_paths: ContextVar[FastPaths] = ContextVar("fast_paths", default=ALL_FAST)


def active() -> FastPaths:
    """The switches in force."""
    return _paths.get()


@contextmanager
def fast_paths(base: FastPaths | None = None, **changes: bool) -> Iterator[FastPaths]:
    """Choose the fast paths inside a `with` block.

    Args:
        base: where to start, such as `PLAIN`; None for the switches in force.
        changes: switches by name.

    Raises:
        ValueError: a name that is no switch.
    """
    if unknown := sorted(changes.keys() - set(PATHS)):
        raise ValueError(f"fast path {unknown[0]!r} is unknown; the paths are {', '.join(PATHS)}")
    chosen = replace(base or active(), **changes)
    token = _paths.set(chosen)
    try:
        yield chosen
    finally:
        _paths.reset(token)
