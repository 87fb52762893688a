"""Utterances as rows of one batch: which of them go together, and how the shorter ones are filled up.

b rows, n frames, C channels
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


def padded(rows: Sequence[mx.array]) -> mx.array:
    """Arrays (1, n_i, C) as one (b, n, C), n the longest; zeros follow the end of a shorter one."""
    longest = max(row.shape[1] for row in rows)
    return mx.concatenate([mx.pad(row, ((0, 0), (0, longest - row.shape[1]), (0, 0))) for row in rows])


def groups(lengths: Sequence[int], max_frames: int, max_padding: float = 0.0) -> list[list[int]]:
    """Which rows go together: places in `lengths`, each once, in groups of like length from the longest down.

    Args:
        lengths: frames of each row.
        max_frames: that a group may have, padding included. A longer row is a group of its own.
        max_padding: share of a group's frames that may be padding, 0 to 1.
    """
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found:
            joined = [*found[-1], place]
            frames = lengths[joined[0]] * len(joined)
            padding = frames - sum(lengths[i] for i in joined)
            if frames <= max_frames and padding <= max_padding * frames:
                found[-1] = joined
                continue
        found.append([place])
    return found
