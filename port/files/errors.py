"""What a file says, made fit for terminals and logs: one line, no control characters, not too long."""

from __future__ import annotations

LIMIT = 600  # characters
# What makes a folder to speak with.
CONVERTER = "convert/run.py" if __package__ == "port.files" else "cosyvoice3-mlx convert"


def printable(text: object, limit: int = LIMIT) -> str:
    """`text` in one line of at most `limit` characters; what does not print is escaped, the middle is cut out.

    Escape sequences can rewrite a terminal, line breaks can forge lines of a log, and marks of direction can hide both.
    """
    said = str(text)
    if len(said) > 4 * limit:  # before the work on it
        said = said[: 2 * limit] + said[-2 * limit :]
    line = " ".join(said.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) > limit:
        line = f"{line[: limit * 2 // 3]} ... {line[-(limit // 3 - 5) :]}"
    return line


def brief(value: object, limit: int = 60) -> str:
    """A value of a parsed file: a text, a number or a constant as it is written, of anything else its type.

    What is nested as deep as a parser allows cannot be written out again.
    """
    plain = isinstance(value, str | int | float | None)
    return printable(repr(value) if plain else f"a {type(value).__name__}", limit)


class Refused(ValueError):
    """What was given cannot be used; the message is one line, which may quote a file (see `printable`)."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class Misused(Refused):
    """Arguments that cannot work, whatever they are given; commands end with exit code 2."""
