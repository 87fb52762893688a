"""Files that appear whole or not at all, and text files of people."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import Refused, printable

MAX_JSON_BYTES = 16 << 20
LFS_POINTER = b"version https://git-lfs"


def require_regular(path: Path) -> None:
    """Before a file is read: a pipe or a device might never end, or never begin, and a pointer is not the file.

    Raises:
        OSError: not there, or no file.
        Refused: what Git leaves in the place of a large file that was not fetched.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "a folder, a pipe or a device is no file", str(path))
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise Refused(f"{path}: a Git LFS pointer in the place of the file; run `git lfs pull` in its folder")


def take_lock(file: IO[Any]) -> bool:
    """Whether this process has the lock of an open file from now on; the system frees it when the file is closed."""
    import fcntl  # here, as Windows has none

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_json(path: Path, remedy: str = "", limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: what to do where there is no such file.
        limit: bytes that the file may have.

    Raises:
        Refused: not there, no file, too large, not JSON, or no object.
    """
    try:
        require_regular(path)
        if path.stat().st_size > limit:
            raise Refused(f"{path}: larger than {limit} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except Refused:
        raise
    except FileNotFoundError:
        raise Refused("; ".join(filter(None, (f"{path}: not found", remedy)))) from None
    except (OSError, ValueError, RecursionError) as error:
        why = printable(getattr(error, "strerror", None) or error, 160)
        raise Refused(f"{path}: not readable as JSON ({why})") from None
    if not isinstance(content, dict):
        raise Refused(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; the file takes the place of `path` at the end, and is gone on an error."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, with "\\n" between its lines and without the mark that Windows puts first.

    Raises:
        Refused: not readable.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # a pipe too: shells hand over <(command) as one
    except FileNotFoundError:
        raise Refused(f"{path}: not readable, no such file") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: not readable as UTF-8 text ({error})") from None
