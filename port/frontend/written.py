"""Text as people write it: in paragraphs, or word by word while somebody else is still writing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .special_tokens import END_OF_PROMPT
from .text import BREAKS, COMMAS, ZERO_WIDTH

_BLANK_LINES = re.compile(r"\n\s*\n")
MARKS = frozenset(c for c in BREAKS["zh"] | COMMAS if not c.isascii())  # no blank follows them


def paragraphs(text: str) -> list[str]:
    """Parts of a text between blank lines, each behind the text's instruction."""
    instruction, mark, said = text.rpartition(END_OF_PROMPT)
    return [instruction + mark + part for part in _BLANK_LINES.split(said.strip()) if part.strip()]


def words(chunks: Iterable[str]) -> Iterator[str]:
    """The parts of a text in which an `inference_*` method takes it, however it was cut on its way here.

    A part is a word with the blank before it, as the tokenizer has words, or what ends in a full-width mark; it comes
    once its end is known. Blanks and ends of lines are one blank each.
    """
    blank, word, started = "", "", False
    for character in (c for chunk in chunks for c in chunk):
        if not (ends := character.isspace() or character in ZERO_WIDTH):
            word += character
        if word and (ends or character in MARKS):
            yield blank + word
            blank, word, started = "", "", True
        if ends and started:
            blank = " "
    if word:
        yield blank + word
