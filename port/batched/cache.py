"""Keys and values of requests of unlike length that decode together.

B rows, k key-value heads, S positions, d head width
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..llm.qwen2 import KVCache


class BatchCache:
    """Keys and values of several rows, one pair of buffers (B, k, S, d) a layer.

    All rows end at the same position of the buffers, so that a step writes one slice. A shorter row has padding in
    front, which the mask hides.

    Args:
        layers: of the language model.

    Attributes:
        lengths: positions of each row.
        layers: what `Qwen2Model` takes as its cache.
    """

    def __init__(self, layers: int) -> None:
        self.lengths: list[int] = []
        self.layers = [BatchLayer(self) for _ in range(layers)]

    @property
    def end(self) -> int:
        """Position at which the next key of every row is written."""
        return max(self.lengths)

    def take(self, rows: Sequence[int], entering: Sequence[Sequence[KVCache]] = ()) -> None:
        """Keep these rows in this order, append new ones behind them, and let go of the others.

        Args:
            rows: places of the rows that stay.
            entering: the caches of the new rows, each as `Qwen2Model` has filled it.
        """
        starts = [self.end - length for length in self.lengths]
        lengths = [*(self.lengths[i] for i in rows), *(kept[0].offset for kept in entering)]
        for at, layer in enumerate(self.layers):
            parts = [layer.row(i, starts[i]) for i in rows] + [_own(kept[at]) for kept in entering]
            layer.fill(parts, max(lengths, default=0))
        self.lengths = lengths

    def begin(self) -> None:
        """Before the step that gives every row one more position."""
        starts = np.array([self.end - length for length in self.lengths])
        self.offset = np.array(self.lengths)[:, None, None]
        self.mask = mx.array(np.arange(self.end + 1) >= starts[:, None, None, None]) if starts.any() else None

    def commit(self) -> None:
        """After that step; one that broke off is made again over what it wrote."""
        self.lengths = [length + 1 for length in self.lengths]


class BatchLayer:
    """One layer of a `BatchCache`, in the place of a `KVCache`."""

    def __init__(self, batch: BatchCache) -> None:
        self._batch, self._kept = batch, KVCache()

    @property
    def offset(self) -> np.ndarray:
        """Position of each row's next key, (B, 1, 1)."""
        return self._batch.offset

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array | None]:
        """Append (B, k, 1, d) keys and values; return all S of them, and which of them a row sees, (B, 1, 1, S)."""
        self._kept.offset = self._batch.end
        keys, values, _ = self._kept.update(keys, values)
        return keys, values, self._batch.mask

    def row(self, at: int, start: int) -> list[mx.array]:
        """Keys and values (k, n, d) of one row."""
        end = self._batch.end
        return [t[at, :, start:end] for t in (self._kept.keys, self._kept.values)]

    def fill(self, rows: Sequence[Sequence[mx.array]], end: int) -> None:
        """Hold these rows and no others, with room for the next position."""
        self._kept = KVCache()
        if rows:
            self._kept.keys, self._kept.values = (_stacked(kind, end) for kind in zip(*rows, strict=True))
            # Layer by layer, so that old and new are there together for one layer only.
            mx.eval(self._kept.keys, self._kept.values)


def _stacked(rows: Sequence[mx.array], end: int) -> mx.array:
    """Rows (k, n, d) that end at the same position, (B, k, S, d)."""
    k, _, d = rows[0].shape
    size = KVCache.step * (end // KVCache.step + 1)
    stacked = mx.zeros((len(rows), k, size, d), rows[0].dtype)
    for at, row in enumerate(rows):
        stacked[at, :, end - row.shape[1] : end] = row
    return stacked


def _own(kept: KVCache) -> list[mx.array]:
    return [t[0, :, : kept.offset] for t in (kept.keys, kept.values)]
