"""Files that appear whole or not at all, and text files of people."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_regular(path: Path) -> None:
    """Before a file is opened: a pipe or a device might never end, or never begin.

    Raises:
        OSError: not there, or no file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "a folder, a pipe or a device is no file", str(path))


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; the file takes the place of `path` at the end, and is gone on an error."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class TextError(ValueError):
    """A text file that cannot be read; the message is one line and names it."""


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, with "\\n" between its lines and without the mark that Windows puts first.

    Raises:
        TextError: not readable.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # a pipe too: shells hand over <(command) as one
    except FileNotFoundError:
        raise TextError(f"{path}: not readable, no such file") from None
    except (OSError, ValueError) as error:
        raise TextError(f"{path}: not readable as UTF-8 text ({error})") from None
