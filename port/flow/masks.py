"""Frame masks of the flow decoder (cosyvoice/utils/mask.py). True = valid frame, or key that may be attended to.

b batch, n frames
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np


def make_pad_mask(lengths: Sequence[int] | np.ndarray | mx.array, max_len: int = 0) -> mx.array:
    """Mark padding, True beyond each length (`make_pad_mask`).

    Args:
        lengths: (b,) integers, frames per row.
        max_len: width of the mask; 0 takes the longest length.

    Returns:
        (b, max_len) bool.
    """
    lengths = np.asarray(lengths)
    max_len = max_len if max_len > 0 else int(lengths.max())
    return mx.array(np.arange(max_len)[None] >= lengths[:, None])


def subsequent_chunk_mask(size: int, chunk_size: int, num_left_chunks: int = -1) -> mx.array:
    """Let each frame see every frame up to the end of its own chunk (`subsequent_chunk_mask`).

    Args:
        size: frames n; the last chunk may be short.
        chunk_size: frames per chunk, >= 1.
        num_left_chunks: has no effect, as in the original: the left context is unlimited.

    Returns:
        (n, n) bool, rows are queries.
    """
    frames = mx.arange(size)
    return frames[None] < (frames[:, None] // chunk_size + 1) * chunk_size


def add_optional_chunk_mask(masks: mx.array, static_chunk_size: int, num_left_chunks: int = -1) -> mx.array:
    """Combine key padding with the chunk mask (`add_optional_chunk_mask` with its dynamic options off).

    A query row that could see nothing may see everything instead. `masks` itself is never edited; the original does so
    when `static_chunk_size` is 0.

    Args:
        masks: (b, 1, n) bool, valid keys.
        static_chunk_size: frames per chunk, 0 for none.
        num_left_chunks: has no effect, as in the original.

    Returns:
        (b, n, n) bool, or (b, 1, n) when there are no chunks.
    """
    chunk_masks = masks
    if static_chunk_size > 0:
        chunk_masks = masks & subsequent_chunk_mask(masks.shape[-1], static_chunk_size, num_left_chunks)
    return chunk_masks | ~chunk_masks.any(axis=-1, keepdims=True)
