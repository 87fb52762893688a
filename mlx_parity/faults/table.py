r"""Reads catalogues of faults: plain text, one line a fault, under a header that names the function.

    [flow.masks:make_pad_mask]
    pad_mask_one_short  off by one  >= lengths[:, None] => > lengths[:, None]
        seen in: project 12

    [flow.layers:MAX_PERIOD] flow.layers.SinusPositionEmbedding
    time_period_off  constant  => 10010.0

Two spaces or more stand between name, family and change. The part that must be named first follows from the header, or
is written after it. Without an old text, the header names a constant, and the new text is its value, a Python literal.
`\n` is a line end, `\s` a space where one would be stripped, `\\` a backslash. `seen in:` and `equivalent:` belong to
the row above; lines that begin with # are comments.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from mlx_parity.faults.patch import Fault, FaultError

PartOf = Callable[[str], str | None]

_HEADER = re.compile(r"\[([\w.]+:[\w.]+)\](?:\s+(\S+))?")
_ROW = re.compile(r"(\S+)\s{2,}(\S+(?: \S+)*)\s{2,}(.*?)(?:^|(?<=\s))=>(?:\s+(.*))?")
_NOTE = re.compile(r"(seen in|equivalent):\s+(\S.*)")
_ESCAPES = {"n": "\n", "s": " ", "\\": "\\"}


def read_tables(files: Iterable[Path], part_of: PartOf) -> tuple[Fault, ...]:
    """All faults of some tables.

    Args:
        part_of: the part that `module:qualified.name` belongs to; None where that does not follow.

    Raises:
        FaultError: a line that cannot be read, a part that is not known, a name that stands twice; names file and line.
    """
    found: dict[str, Fault] = {}
    for file in files:
        for fault in _read(file, part_of):
            if fault.name in found:
                raise FaultError(f"{fault.line}: {fault.name} stands at {found[fault.name].line} too")
            found[fault.name] = fault
    return tuple(found.values())


def _read(file: Path, part_of: PartOf) -> list[Fault]:
    rows: list[Fault] = []
    where = part = ""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FaultError(f"{file}: {getattr(error, 'strerror', None) or 'no text'}") from None
    for number, line in enumerate((text.strip() for text in lines), 1):
        at = f"{file.name}:{number}"
        try:
            if not line or line.startswith("#"):
                continue
            if line.startswith("["):
                where, part = _header(line, part_of)
            elif (note := _NOTE.fullmatch(line)) and rows:
                key = note[1].replace(" ", "_")
                rows[-1] = replace(rows[-1], **{key: note[2]})
            else:
                rows.append(_row(line, where, part, at))
        except ValueError as error:
            raise FaultError(f"{at}: {error}") from None
    return rows


def _header(line: str, part_of: PartOf) -> tuple[str, str]:
    header = _HEADER.fullmatch(line)
    if header is None:
        raise ValueError("a header is [module:function], and perhaps the part that must be named first")
    if (part := header[2] or part_of(header[1])) is None:
        raise ValueError(f"no part follows from {header[1]}; name it behind the header")
    return header[1], part


def _row(line: str, where: str, part: str, at: str) -> Fault:
    row = _ROW.fullmatch(line)
    if row is None:
        raise ValueError("a row is `name  family  old => new`, two spaces apart")
    if not where:
        raise ValueError("a row stands under a header")
    name, family, old, new = row[1], row[2], row[3].strip(), row[4] or ""
    if old:
        return Fault(name, family, part, where, _text(old), _text(new), line=at)
    try:
        return Fault(name, family, part, where, None, ast.literal_eval(new), line=at)
    except (ValueError, SyntaxError):
        raise ValueError(f"{new!r} is no Python literal") from None


def _text(written: str) -> str:
    def unescaped(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise ValueError(f"\\{match[1]} is no escape: a backslash is written \\\\")
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.?)", unescaped, written)
