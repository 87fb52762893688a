"""Text normalisation and splitting, as the original's front end does them.

Sources: `text_normalize` in cosyvoice/cli/frontend.py and cosyvoice/utils/frontend_utils.py. Where the original fails
or says nonsense (blanks at the ends, a text that starts with a mark and a quote, squares in English, endless numbers),
the text is read in the obvious way; every other quirk is kept. ttsfrd, the original's first choice, is not supported.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import cache
from itertools import groupby
from typing import Any
from unicodedata import is_normalized

import regex

from .normalizer import Language, Normalizer, contains_chinese
from .special_tokens import END_OF_PROMPT, TOKEN, mistaken_tokens, outside_tokens

Tokenize = Callable[[str], Sized]

TOKEN_MAX_N = 80  # a piece may not grow past this ...
TOKEN_MIN_N = 60  # ... once it is longer than this
MERGE_LEN = 20  # a last piece shorter than this is glued to the one before

BREAKS: dict[str, frozenset[str]] = {"zh": frozenset("。？！；：、.?!;"), "en": frozenset(".?!;:")}
COMMAS = frozenset("，,")
ZERO_WIDTH = "\ufeff\u200b"  # the first starts many files
CLOSING_QUOTES = frozenset('"”')

_ONLY_MARKS = regex.compile(r"[\p{P}\p{S}]*")
_SILENT = regex.compile(r"[\p{P}\p{S}\p{M}\p{Z}\p{C}\p{Default_Ignorable_Code_Point}]*")
_FULL_STOP = regex.compile(r"\p{Sentence_Terminal}")
_SENTENCE = regex.compile(r"(?<=\p{Sentence_Terminal})")
_LINE_END = regex.compile(r"(?<![\p{P}\s])[^\S\n]*\n")
_COMMA = regex.compile(r"(?<=\p{Terminal_Punctuation})(?!\d)")
_BLANK = regex.compile(r"(?<=\s)")
_UNIT = regex.compile(TOKEN.pattern + r"|\X")
_TRAILING_COMMAS = re.compile("[，,、]+$")

logger = logging.getLogger(__name__)


def text_normalize(
    text: str | Iterator[str],
    tokenize: Tokenize,
    split: bool = True,
    text_frontend: bool = True,
    normalizer: Normalizer | None = None,
    split_long: bool = False,
) -> Any:
    """Spell out, clean and split `text` for synthesis (`CosyVoiceFrontEnd.text_normalize`).

    Special tokens stay as they are. What looks like one and is none is pointed out in one logged line.

    Args:
        text: the text, or an iterator of text parts, which is passed on untouched.
        tokenize: text to token ids; its length measures pieces that are not Chinese.
        split: False returns one string instead of pieces, without the full stop that splitting appends.
        text_frontend: False returns the text as it is; so does a text with both "<|" and "|>" in it.
        normalizer: numbers and symbols to words, as `load_normalizer` gives it; None for the plain rules alone.
        split_long: also read and split what the original leaves in one piece: what follows an instruction (each piece
            gets the instruction), all text at the full stops of any script, and a sentence that is too long for a piece
            at commas and ends of lines, else at blanks, else anywhere.

    Returns:
        A list of pieces when `split`, empty when nothing in the text can be spoken; otherwise a string. An iterator
        comes back in a list of one.

    Raises:
        TypeError: `text` is neither.
    """
    if isinstance(text, Iterator):
        return [text]
    if not isinstance(text, str):
        hint = "; pass iter(...) of its strings" if isinstance(text, Iterable) else ""
        raise TypeError(f"text must be a string or an iterator of strings, not {type(text).__name__}{hint}")
    if mistaken := mistaken_tokens(text):
        # A decomposed "ǐ" looks like the composed one.
        shown = {found: repr(found) if is_normalized("NFC", found) else ascii(found) for found in mistaken}
        names = ", ".join(f"{shown[found]} (nearest: {real})" for found, real in mistaken.items())
        logger.warning("the model has no such tokens and gets them as text: %s", names)
    if text and split and text_frontend and is_silent(text.rpartition(END_OF_PROMPT)[2]):
        return []
    raw = "<|" in text and "|>" in text and not split_long
    if not text or not text_frontend or raw:
        return [text] if split else text
    instruction, mark, text = text.rpartition(END_OF_PROMPT)
    lang: Language = "zh" if contains_chinese(text) else "en"
    text = text.strip().strip(ZERO_WIDTH).strip()
    if split_long:
        text = _lines_to_clauses(text, lang, tokenize)
    if normalizer is not None and text:
        text = normalizer(text)
    text = _chinese_rules(text) if lang == "zh" else outside_tokens(_english_rules, text).strip()
    if not split:
        return instruction + mark + text
    pieces = split_paragraph(text, tokenize, lang, split_long=split_long)
    pieces = [piece for piece in pieces if not is_only_punctuation(piece)]
    # Each piece is spoken on its own and needs the instruction.
    return [instruction + mark + piece.lstrip() for piece in pieces] if mark else pieces


def arriving(parts: Iterator[str]) -> Iterator[str]:
    """The same parts of a text; refuses what is none.

    Raises:
        TypeError: a part is no string.
        ValueError: at the end, when there was nothing to speak.
    """
    silent = True
    for part in parts:
        if not isinstance(part, str):
            raise TypeError(f"a part of the text must be a string, not {type(part).__name__}")
        silent = silent and is_silent(part)
        yield part
    if silent:
        raise ValueError("the parts of the text held nothing to speak")


def _lines_to_clauses(text: str, lang: Language, tokenize: Tokenize) -> str:
    """A comma for each end of a line, which nothing later sees, in a sentence that is too long for a piece."""
    comma = "，\n" if lang == "zh" else ",\n"
    made = (_LINE_END.sub(comma, s) if len(tokenize(s)) > TOKEN_MAX_N else s for s in _SENTENCE.split(text))
    return "".join(made)


def _english_rules(text: str) -> str:
    return spell_out_number(_spell_out_corner_mark(text))


def _chinese_rules(text: str) -> str:
    text = replace_blank(text.replace("\n", ""))
    text = replace_corner_mark(text)
    # The full stop of a decimal number changes too when no normalizer has read it, as in the original.
    text = text.replace(".", "。").replace(" - ", "，")
    return _TRAILING_COMMAS.sub("。", remove_bracket(text))


def replace_blank(text: str) -> str:
    """Delete each space that does not stand between two ASCII characters other than spaces."""

    def keeps(i: int) -> bool:
        beside = text[i - 1 : i] + text[i + 1 : i + 2]
        return len(beside) == 2 and beside.isascii() and " " not in beside

    return "".join(c for i, c in enumerate(text) if c != " " or keeps(i))


def replace_corner_mark(text: str) -> str:
    """² and ³ to Chinese words."""
    return text.replace("²", "平方").replace("³", "立方")


def remove_bracket(text: str) -> str:
    """Delete full-width brackets and backticks; a Chinese dash becomes a space."""
    return re.sub("[（）【】`]", "", text).replace("——", " ")


def spell_out_number(text: str) -> str:
    """Each run of digits to English words; signs between them stay ("3.14" is "three.fourteen")."""
    runs = ((is_number, "".join(run)) for is_number, run in groupby(text, str.isdigit))
    return "".join(_number_words(run) if is_number else run for is_number, run in runs)


def _number_words(digits: str) -> str:
    import inflect  # takes seconds, and most texts never need it

    try:
        return str(_inflect_engine().number_to_words(digits))
    except inflect.NumOutOfRangeError:  # 37 digits or more: one by one
        return " ".join(str(_inflect_engine().number_to_words(digit)) for digit in digits)


@cache
def _inflect_engine() -> Any:
    import inflect

    return inflect.engine()


def _spell_out_corner_mark(text: str) -> str:
    """² and ³ to English words, other digits that are no decimals (₂, ①) to plain ones; inflect reads them as zero."""
    if text.isascii():
        return text

    def plain(character: str) -> str:
        if character in "²³":
            return " squared" if character == "²" else " cubed"
        if character.isdigit() and not character.isdecimal():
            return str(unicodedata.digit(character))
        return character

    return "".join(map(plain, text))


def split_paragraph(
    text: str,
    tokenize: Tokenize,
    lang: Language = "zh",
    token_max_n: int = TOKEN_MAX_N,
    token_min_n: int = TOKEN_MIN_N,
    merge_len: int = MERGE_LEN,
    comma_split: bool = False,
    split_long: bool = False,
) -> list[str]:
    """Split into sentences and join them to pieces of a good length for the language model.

    Lengths are characters for "zh" and tokens for "en". A full stop is appended when the text ends without a mark. A
    piece ends once it is longer than `token_min_n` and the next sentence would take it past `token_max_n`. With
    `split_long` the full stops of any script end sentences, and one past `token_max_n` is cut at its commas, what is
    still too long at blanks, and what then is, anywhere.
    """
    if not text:
        return []
    breaks = BREAKS[lang] | COMMAS if comma_split else BREAKS[lang]
    if split_long:
        breaks = breaks | BREAKS["zh"] | set(_FULL_STOP.findall(text))
    if text[-1] not in breaks:
        text += "。" if lang == "zh" else "."

    def length(part: str) -> int:
        return len(part) if lang == "zh" else len(tokenize(part))

    sentences = split_sentences(text, breaks)
    if split_long:
        cuts = (_COMMA.split, _BLANK.split, lambda part: [unit[0] for unit in _UNIT.finditer(part)])
        sentences = [
            part for sentence in sentences for part in _cut(sentence, lambda s: length(s) <= token_max_n, cuts)
        ]
    pieces: list[str] = []
    current = ""
    for sentence in sentences:
        if length(current + sentence) > token_max_n and length(current) > token_min_n:
            pieces.append(current)
            current = ""
        current += sentence
    if pieces and current and length(current) < merge_len:
        pieces[-1] += current
    elif current:
        pieces.append(current)
    return pieces


def _cut(text: str, fits: Callable[[str], bool], cuts: Sequence[Callable[[str], list[str]]]) -> list[str]:
    """Parts that fit, by the first cut; of those that do not, by the next."""
    if not cuts or fits(text):
        return [text]
    return [made for part in cuts[0](text) if part for made in _cut(part, fits, cuts[1:])]


def split_sentences(text: str, breaks: frozenset[str]) -> list[str]:
    """Cut after every break character, together with a closing quote right behind it.

    A break character with nothing before it is dropped, so that of "..." one point stays. Text after the last break
    character is dropped too; `split_paragraph` makes sure that there is none.
    """
    sentences: list[str] = []
    start = 0
    for i, character in enumerate(text):
        if character not in breaks:
            continue
        if i > start:
            sentences.append(text[start : i + 1])
        start = i + 1
        # With no sentence yet to close, the quote opens the next one (the original fails there).
        if sentences and text[start : start + 1] in CLOSING_QUOTES:
            sentences[-1] += text[start]
            start += 1
    return sentences


def is_only_punctuation(text: str) -> bool:
    """Whether the text holds nothing but punctuation and symbols (an empty text does)."""
    return _ONLY_MARKS.fullmatch(text) is not None


def is_silent(text: str) -> bool:
    """Whether nothing in the text can be spoken: emoji, marks, blanks, invisible characters (an empty text too)."""
    return _SILENT.fullmatch(text) is not None
