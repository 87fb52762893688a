"""Files that appear complete or not at all, and text files written by people."""

from __future__ import annotations

import errno
import io
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
MAX_TEXT_BYTES = 64 << 20


def require_regular(path: Path) -> None:
    """Check a file before reading it: a pipe or device might never end, and a Git LFS pointer is not the file.

    Raises:
        OSError: missing, or not a regular file.
        Refused: a Git LFS pointer in place of the file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "a folder, a pipe or a device is no file", str(path))
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise Refused(f"{path}: a Git LFS pointer in the place of the file; run `git lfs pull` in its folder")


def take_lock(file: IO[Any], shared: bool = False) -> bool:
    """Try to lock an open file; True if this process now has the lock. The system releases it when the file is closed.

    Args:
        shared: a shared lock, which fails if anyone holds an exclusive one.
    """
    import fcntl  # imported here: Windows lacks it

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_regular(path: Path, limit: int) -> str:
    """UTF-8 text of a file, its line ends as they are.

    Raises:
        OSError, UnicodeDecodeError: missing, not a regular file, or not UTF-8.
        Refused: larger than `limit` bytes, or a Git LFS pointer in place of the file.
    """
    require_regular(path)
    with path.open("rb") as file:
        data = file.read(limit + 1)  # and not its size first: a file may grow
    if len(data) > limit:
        raise Refused(f"{path}: larger than {limit} bytes")
    return data.decode("utf-8")


def read_json(path: Path, remedy: str = "", limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: what to do if the file does not exist.
        limit: largest size in bytes.

    Raises:
        Refused: missing, not a file, too large, not JSON, or not an object.
    """
    try:
        content = json.loads(read_regular(path, limit))
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
    """A temporary name in the same folder; renamed to `path` at the end, removed on an error."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Text of a file, see `decode_text`; or of a pipe, such as a shell's `<(command)`.

    Raises:
        Refused: not readable, or see `decode_text`.
    """
    try:
        with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            first = file.read(1)  # None while the writer has not written anything
            if first == b"" and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EPIPE, "a pipe that nobody writes to")
            os.set_blocking(file.fileno(), True)
            data = (first or b"") + io.BufferedReader(file).read(MAX_TEXT_BYTES)
    except FileNotFoundError:
        raise Refused(f"{path}: not readable, no such file") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: not readable as UTF-8 text ({getattr(error, 'strerror', None) or error})") from None
    return decode_text(data, path)


def decode_text(data: bytes, name: object) -> str:
    """UTF-8 text, with "\\n" between its lines and without the mark that Windows puts first.

    Args:
        data: all bytes, or at least one more than `MAX_TEXT_BYTES`.
        name: of their source, for messages.

    Raises:
        Refused: too large, or not UTF-8.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise Refused(f"{name}: larger than {MAX_TEXT_BYTES >> 20} MiB; split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{name}: not readable as UTF-8 text ({error})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
