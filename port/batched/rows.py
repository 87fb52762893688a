"""Utterances as rows of one batch: which of them go together, and how the shorter ones are filled up.

b rows, n frames, C channels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..fast.arithmetic import on_cpu
from ..stream.memory import default_cache_bytes


@dataclass(frozen=True)
class Limits:
    """What may go together.

    Attributes:
        max_frames: of a group, padding included; a longer row is a group of its own.
        max_padding: frames that may be added to a row. To run it alone costs as much as so many frames.
    """

    max_frames: int
    max_padding: int


def limits_by_device(frame_bytes: int, cpu: Limits, gpu_padding: int) -> Limits:
    """`cpu` on a CPU; else `gpu_padding`, and as many frames as fit a quarter of the device's memory.

    Args:
        frame_bytes: what a network works on, a frame.
    """
    return cpu if on_cpu() else Limits(default_cache_bytes() // frame_bytes, gpu_padding)


def groups(lengths: Sequence[int], limits: Limits) -> list[list[int]]:
    """Which rows go together: places in `lengths`, each once, in groups of like length from the longest down."""
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[found[-1][0]] if found else 0
        fits = found and longest * (len(found[-1]) + 1) <= limits.max_frames
        if fits and longest - lengths[place] <= limits.max_padding:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def padded(rows: Sequence[mx.array]) -> mx.array:
    """Arrays (1, n_i, C) as one (b, n, C), n the longest; zeros follow the end of a shorter one."""
    longest = max(row.shape[1] for row in rows)
    return mx.concatenate([mx.pad(row, [(0, 0), (0, longest - row.shape[1]), (0, 0)]) for row in rows])
