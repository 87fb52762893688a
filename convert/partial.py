"""A folder that appears complete or not at all, even when the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from convert.official import YAML_FILE
from port.files.disk import take_lock
from port.files.errors import Misused

MARK = ".converting"  # in a folder that is being written; its writer holds the lock


def partial_folder(out: Path) -> Path:
    """The folder in which `out` is written until it is complete."""
    return out.with_name(f"{out.name}.partial")


def refuse_existing(out: Path) -> None:
    """Raises:
    Misused: `out` exists.
    """
    if (out / YAML_FILE).exists() or (out / "llm.pt").exists():
        raise Misused(f"{out}: is a checkpoint; give it to --hf-path, and a new folder to --mlx-path")
    if out.exists() or out.is_symlink():
        raise Misused(f"{out}: already exists; choose another --mlx-path")


def clear_leftover(out: Path) -> None:
    """Remove what a killed conversion to `out` left behind.

    Raises:
        Misused: another conversion is writing it, or it is not a leftover.
    """
    partial = partial_folder(out)
    if not partial.exists() and not partial.is_symlink():
        return
    if partial.is_symlink() or not partial.is_dir() or (any(partial.iterdir()) and not (partial / MARK).is_file()):
        raise Misused(f"{partial}: exists and is no leftover of a conversion; move it or choose another --mlx-path")
    if (partial / MARK).exists():
        with (partial / MARK).open("rb") as mark:
            _lock(mark, partial)
            shutil.rmtree(partial)
    else:
        partial.rmdir()


def _lock(mark: IO[Any], partial: Path) -> None:
    if not take_lock(mark):
        raise Misused(f"{partial}: another conversion is writing it; wait for it or choose another --mlx-path")


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`: renamed to `out` at the end, or removed on failure with the parents made for it.

    Raises:
        Misused: `out` exists, or nothing can be written there.
    """
    refuse_existing(out)
    clear_leftover(out)
    partial = partial_folder(out)
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        mark = (partial / MARK).open("wb")
        _lock(mark, partial)
    except OSError as error:
        raise Misused(f"{out.parent}: cannot be written to ({error.strerror or error})") from None
    try:
        with mark:
            yield partial
            _to_disk(partial)
            (partial / MARK).unlink()
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def _to_disk(folder: Path) -> None:
    """Flush to disk before the rename, so that after a power cut the name never refers to partial files."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
