"""Text as people write it: in paragraphs, or word by word while somebody else is still writing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..request import Options
from .special_tokens import END_OF_PROMPT, has_instruction, require_end_of_prompt, with_preamble
from .text import BREAKS, COMMAS, ZERO_WIDTH, arriving

_BLANK_LINES = re.compile(r"\n\s*\n")
MARKS = frozenset(c for c in BREAKS["zh"] | COMMAS if not c.isascii())  # no blank follows them


def cut(
    text: str | Iterator[str], prompt_text: str | None, normalize: Callable[[Any], list[Any]], options: Options
) -> list[Any]:
    """Pieces of a text, in order; one that still arrives is one piece, and None stands for a pause.

    Args:
        text: what to say.
        prompt_text: what the language model gets before it, None when that is a saved voice's.
        normalize: reads and cuts a text, as `CosyVoiceFrontEnd.text_normalize`.
        options: `pause`, `raw_prompt`.

    Raises:
        TypeError: the text is none.
        ValueError: it is empty, or there is no `<|endofprompt|>` where none can be put.
    """
    parts = paragraphs(text) if options.pause and isinstance(text, str) else [text]
    read = [normalize(arriving(part) if isinstance(part, Iterator) else part) for part in parts]
    pieces = [piece for part in read if part for piece in (None, *part)][1:]
    if isinstance(text, str) and not text.strip().strip(ZERO_WIDTH):
        raise ValueError("the text is empty: nothing to speak")
    if prompt_text is None or has_instruction(prompt_text, text):
        return pieces
    if options.raw_prompt:
        require_end_of_prompt(prompt_text)
    if not isinstance(text, str):
        raise ValueError("text that still arrives needs a prompt text or an instruction")
    # After reading and cutting, which leave a text with <|...|> in it alone.
    return [piece and with_preamble(piece) for piece in pieces]


def require_string(name: str, text: object) -> None:
    """Refuse what is no text.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, not {type(text).__name__}")


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
