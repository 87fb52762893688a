"""Arrays on disk: all intermediate results of a whole model are too large for memory."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from mlx_parity.tree import mapped


@dataclass(frozen=True)
class Stored:
    """An array in a spool: where it starts, in bytes, and what it is; `digest` is of its bytes."""

    start: int
    digest: bytes
    dtype: np.dtype
    shape: tuple[int, ...]


class Spool:
    """A temporary file that stores equal arrays once (a part's result is the next one's input); deleted on closing."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="spool-")  # noqa: SIM115 (closed on leaving)
        self._starts: dict[bytes, int] = {}
        self.size = 0  # bytes on disk

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def store(self, array: np.ndarray) -> Stored:
        """Write an array unless one of the same bytes is there."""
        content = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest not in self._starts:
            self._starts[digest] = self._file.seek(self.size)
            self.size += self._file.write(content)
        return Stored(self._starts[digest], digest, array.dtype, array.shape)

    def load(self, value: Any) -> Any:
        """The stored arrays in the same containers; anything else unchanged."""
        return mapped(value, lambda item: self._load(item) if isinstance(item, Stored) else item)

    def _load(self, value: Stored) -> np.ndarray:
        array = np.empty(value.shape, value.dtype)
        self._file.seek(value.start)
        if array.size:
            self._file.readinto(array.data.cast("B"))
        return array
