"""Argument types: each parses one word of the command line, or says in one line what is expected."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

from ..request import MOST_ROWS

MAX_DIGITS = 500  # of a whole number: beyond float64; Python refuses to read one of some thousand


def text(word: str) -> str:
    """A text, without a byte order mark at its start."""
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"not readable as UTF-8 text ({error.reason})") from None
    return word.removeprefix("\ufeff")


def size(word: str) -> int:
    """A number of bytes, such as 500M or 2G."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", word.strip(), re.IGNORECASE)
    count = float(match[1]) * 1024 ** ("KMGT".find(match[2].upper() or "-") + 1) if match else math.inf
    if count == math.inf:
        raise argparse.ArgumentTypeError(f"{word!r:.40} is no size; give a number of bytes such as 0, 500M or 2G")
    return int(count)


def whole(least: int, most: int, refused: str, digits: int | None = None) -> Callable[[str], int]:
    """A whole number in least..most.

    Args:
        refused: the message for any other word.
        digits: most digits, leading zeros included; None: as many as `most` has.
    """

    def read(word: str) -> int:
        if not word.isdecimal() or len(word) > (digits or len(str(most))) or not least <= int(word) <= most:
            raise argparse.ArgumentTypeError(f"{word!r:.40} {refused}")
        return int(word)

    return read


def seconds(least: float, most: float, refused: str) -> Callable[[str], float]:
    """A number in least..most; `refused` is the message for any other word."""

    def read(word: str) -> float:
        try:
            found = float(word)
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"{word!r:.40} {refused}")
        return found

    return read


BATCH_SIZE = whole(1, 999, "is no number of requests in 1..999")
BY_DEFAULT = "(default: {cpu} on a CPU, {gpu} on a GPU, fewer where memory is short)".format(**MOST_ROWS)
