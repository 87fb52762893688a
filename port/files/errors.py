"""Errors, and text from files made safe for terminals and logs: one short line without control characters."""

from __future__ import annotations

LIMIT = 600  # characters
# The command that makes a folder.
CONVERTER = "convert/run.py" if __package__ == "port.files" else "cosyvoice3-mlx convert"


def printable(text: object, limit: int = LIMIT) -> str:
    """`text` in one line of at most `limit` characters: unprintable characters are escaped, the middle is cut out.

    Escape sequences can rewrite a terminal, line breaks can forge log lines, and direction marks can hide both.
    """
    said = str(text)
    if len(said) > 4 * limit:  # before further work on it
        said = said[: 2 * limit] + said[-2 * limit :]
    line = " ".join(said.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) > limit:
        line = f"{line[: limit * 2 // 3]} ... {line[-(limit // 3 - 5) :]}"
    return line


def brief(value: object, limit: int = 60) -> str:
    """A value of a parsed file: text, numbers and constants as written; for anything else its type.

    Deeply nested values cannot be written out again.
    """
    plain = isinstance(value, str | int | float | None)
    return printable(repr(value) if plain else f"a {type(value).__name__}", limit)


class Refused(ValueError):
    """An input cannot be used; the message is one line, which may quote a file (see `printable`)."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class Misused(Refused):
    """Wrong arguments; commands end with exit code 2."""
