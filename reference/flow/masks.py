"""Frame masks of the flow decoder (cosyvoice/utils/mask.py). True = valid frame, or key that may be attended to.

b batch, n frames
"""

from __future__ import annotations

import torch
from torch import Tensor


def make_pad_mask(lengths: Tensor, max_len: int = 0) -> Tensor:
    """Mark padding, True beyond each length (`make_pad_mask`).

    Args:
        lengths: (b,) integers, frames per row.
        max_len: width of the mask; 0 takes the longest length.

    Returns:
        (b, max_len) bool.
    """
    max_len = max_len if max_len > 0 else int(lengths.max())
    return torch.arange(max_len, device=lengths.device)[None] >= lengths[:, None]


def subsequent_chunk_mask(size: int, chunk_size: int, num_left_chunks: int = -1) -> Tensor:
    """Let each frame see every frame up to the end of its own chunk (`subsequent_chunk_mask`).

    Args:
        size: frames n; the last chunk may be short.
        chunk_size: frames per chunk, >= 1.
        num_left_chunks: has no effect, as in the original: the left context is unlimited.

    Returns:
        (n, n) bool, rows are queries.
    """
    frames = torch.arange(size)
    return frames[None] < (frames[:, None] // chunk_size + 1) * chunk_size


def add_optional_chunk_mask(masks: Tensor, static_chunk_size: int, num_left_chunks: int = -1) -> Tensor:
    """Combine key padding with the chunk mask (`add_optional_chunk_mask` with its dynamic options off).

    A query that may see no key gets to see all of them. With `static_chunk_size` 0 the result is `masks` itself, so
    this repair changes the caller's tensor, as in the original.

    Args:
        masks: (b, 1, n) bool, valid keys.
        static_chunk_size: frames per chunk, 0 for none.
        num_left_chunks: has no effect, as in the original.

    Returns:
        (b, n, n) bool, or `masks` when there are no chunks.
    """
    chunk_masks = masks
    if static_chunk_size > 0:
        chunks = subsequent_chunk_mask(masks.shape[-1], static_chunk_size, num_left_chunks)
        chunk_masks = masks & chunks.to(masks.device)
    chunk_masks[~chunk_masks.any(dim=-1)] = True
    return chunk_masks
