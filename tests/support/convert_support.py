"""Helpers that the tests of a conversion share: refusals in one line, and checkpoints changed in place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
import torch

from port.files.errors import Refused
from reference.synthesize import tiny_config
from tests.fuzz.__main__ import CPU_LIMIT, MEMORY_LIMIT, peak

CONFIG = tiny_config()


def resave(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace a saved state dict by what `change` makes of it."""
    torch.save(change(torch.load(path, weights_only=True)), path)


def arrays_of(folder: Path) -> dict[str, mx.array]:
    """The arrays of a folder's model.safetensors."""
    return cast(dict[str, mx.array], mx.load(str(folder / "model.safetensors")))


def refused(read: Callable[[Path], Any], path: Path) -> str:
    """The line with which a reader refuses a file, quickly and without allocating the memory that the file claims."""
    before, started = peak(), time.process_time()
    with pytest.raises(Refused) as error:
        read(path)
    assert time.process_time() - started < CPU_LIMIT
    assert peak() - before < MEMORY_LIMIT
    line = str(error.value)
    assert str(path) in line
    assert line.isprintable()
    assert len(line) < 1000
    return line


def refused_by(result: tuple[int, str, str], *words: str) -> None:
    """Check that a command ended with code 1 and a line that contains `words`."""
    code, line, _ = result
    assert code == 1
    assert [said for said in words if said not in line] == [], line
