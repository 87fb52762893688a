"""Place of a class or function in its source, and temporary replacement of one line of a function."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any


class SourceError(ValueError):
    """A line is not where it should be; the message is one line."""


def place_of(thing: Any, line: str = "") -> str | None:
    """`file:line` of a class or function, or of a line within it; None for what has no source.

    The file is named relative to site-packages or the current folder: no local path is shown.

    Raises:
        SourceError: it does not hold the line exactly once.
    """
    thing = inspect.unwrap(thing)
    try:
        file, first = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):
        return None
    if file is None:
        return None
    return f"{_short(Path(file))}:{_number(thing, line) if line else first}"


@contextmanager
def exchanged(function: Any, line: str, other: str) -> Iterator[None]:
    """A context in which one line of a function is replaced by another of the same indentation.

    Raises:
        SourceError: the function does not hold the line exactly once, or cannot be changed so.
    """
    function = inspect.unwrap(function)
    number = _number(function, line)
    file = inspect.getsourcefile(function) or ""
    lines = Path(file).read_text("utf-8").splitlines()
    old = lines[number - 1]
    lines[number - 1] = old[: len(old) - len(old.lstrip())] + other
    usual: Any = getattr(function, "__code__", None)
    try:
        made = next(_same(compile("\n".join(lines), file, "exec", dont_inherit=True), usual))
        function.__code__ = made
    except (SyntaxError, StopIteration, ValueError, AttributeError) as error:
        raise SourceError(f"{place_of(function, line)}: cannot be exchanged ({error}); give a mend instead") from None
    try:
        yield
    finally:
        function.__code__ = usual


def _number(thing: Any, line: str) -> int:
    """The line number, in its file, of `line`, which may be several consecutive lines."""
    lines, first = inspect.getsourcelines(thing)
    texts, wanted = [text.strip() for text in lines], [text.strip() for text in line.strip().splitlines()]
    found = [n for n in range(len(texts)) if texts[n : n + len(wanted)] == wanted]
    if len(found) != 1:
        raise SourceError(
            f"{thing.__qualname__} in {thing.__module__} has the line {line!r} {len(found)} times, not once"
        )
    return max(first, 1) + found[0]


def _same(code: CodeType, usual: CodeType) -> Iterator[CodeType]:
    """The code object of one function within that of its file."""
    if (code.co_qualname, code.co_firstlineno) == (usual.co_qualname, usual.co_firstlineno):
        yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _same(inner, usual)


def _short(file: Path) -> str:
    parts = file.parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(folder) :])
    here = Path.cwd()
    return file.relative_to(here).as_posix() if file.is_relative_to(here) else file.name
