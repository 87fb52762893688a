"""Numbers and symbols to words by wetext, as the original's front end calls it.

Source: `text_normalize` in cosyvoice/cli/frontend.py with wetext 0.0.4, the version that the original pins: it leaves a
text without a digit alone, and takes one for Chinese when a Chinese character is in it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import groupby
from typing import Any, Literal

from .special_tokens import TOKEN, outside_tokens

Language = Literal["zh", "en"]
Normalizer = Callable[[str], str]

_CHINESE = re.compile("[\u4e00-\u9fff]")
_DIGIT = re.compile(r"\d")
_ESCAPED = re.compile(r'\\(["\\])')
# What is read on its own when a text as a whole cannot be: clauses, then words. Blanks stay with what follows them.
_PARTS = (re.compile(r"(?<=[.?!;:,。？！；：，、])(?=\s)|(?=\n)"), re.compile(r"(?=\s)"))
_SENTENCES = re.compile(r"(?<=[.?!])(?=\s)|(?=\n)|(?<=[。？！])")
MAX_STRETCH = 500  # characters given to wetext at once: its time grows with the square, 7 s for 10 000
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)+")

logger = logging.getLogger(__name__)


def contains_chinese(text: str) -> bool:
    """Whether any character is in U+4E00..U+9FFF (Japanese kanji are)."""
    return _CHINESE.search(text) is not None


def stretches(text: str, cuts: Sequence[re.Pattern[str]] = (_SENTENCES, *_PARTS)) -> list[str]:
    """Parts of at most `MAX_STRETCH` characters, cut at sentences, else at clauses, else at words, else anywhere."""
    if len(text) <= MAX_STRETCH:
        return [text]
    if not cuts:
        return [text[i : i + MAX_STRETCH] for i in range(0, len(text), MAX_STRETCH)]
    made = [""]
    for part in cuts[0].split(text):
        if len(made[-1]) + len(part) <= MAX_STRETCH:
            made[-1] += part
        else:
            made.append(part)
    return [stretch for part in made if part for stretch in stretches(part, cuts[1:])]


class WeTextNormalizer:
    """Numbers and symbols to words by wetext, in the language that the original takes, guarded against its failures.

    The original asserts on "5€", "[12]" or "[breath]3". Here what wetext can read around such a spot is read, the spot
    itself is left to the plain rules, and one line a text says so. Special tokens are kept from it: it would read the
    digit of "[AH0]".

    Raises:
        ModuleNotFoundError: wetext is not installed.
    """

    def __init__(self) -> None:
        if find_spec("wetext") is None:
            raise ModuleNotFoundError("wetext")
        self._lock = threading.Lock()

    @cached_property
    def _normalizers(self) -> dict[Language, Any]:
        """wetext's own by language, read when the first digit comes: they take as long as all other imports."""
        try:
            import wetext

            # Language "auto" of 0.1.8 would take digits alone for Chinese.
            return {lang: wetext.Normalizer(lang=lang, remove_erhua=False) for lang in ("zh", "en")}
        except Exception as error:
            logger.warning("wetext cannot be used (%s), so plain rules read numbers and symbols", error)
            return {}

    def __call__(self, text: str) -> str:
        lang: Language = "zh" if contains_chinese(text) else "en"
        if not _DIGIT.search(TOKEN.sub("", text)):
            return text.strip() if lang == "zh" else " ".join(text.split())
        if not self._normalizers:
            return text
        unread: list[str] = []
        text = outside_tokens(lambda part: "".join(self._read(s, lang, _PARTS, unread) for s in stretches(part)), text)
        if unread:
            named = ", ".join(f"{word!r:.40}" for word in unread[:5])
            logger.warning("wetext cannot read %s; plain rules are used there", named)
        return text.strip()

    def _read(self, text: str, lang: Language, finer: Sequence[re.Pattern[str]], unread: list[str]) -> str:
        """As much of the text as wetext can read; words that it cannot are left and added to `unread`."""
        if (done := self._attempt(text, lang)) is not None:
            return done
        if not finer:
            if not _DIGIT.search(text):
                return text
            unread.append(text.strip())
            return _NUMBER.sub(lambda number: self._attempt(number[0], lang) or number[0], text)
        made: list[str] = []
        # Neighbours that can be read are read together: "Jan 5," belongs to "2024".
        for readable, run in groupby(finer[0].split(text), lambda part: self._attempt(part, lang) is not None):
            parts = list(run)
            parts = ["".join(parts)] if readable else parts
            made += [self._read(part, lang, finer[1:], unread) for part in parts]
        return "".join(made)

    def _attempt(self, text: str, lang: Language) -> str | None:
        """What wetext makes of a text, with the blanks at its ends; None where it fails."""
        core = text.strip()
        if not core:
            return text
        try:
            with self._lock:
                read = self._normalizers[lang].normalize(core)
        except Exception:
            return None
        if not read:
            return None
        # wetext 0.1.8 escapes quotes and backslashes in whatever it has touched.
        read = core if read == core else _ESCAPED.sub(r"\1", read)
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        return before + read + after


@cache
def load_normalizer() -> Normalizer | None:
    """The normalizer of the original when wetext is installed, otherwise None (and a line is logged)."""
    try:
        return WeTextNormalizer()
    except ModuleNotFoundError:
        logger.warning("wetext is not installed, so plain rules read numbers and symbols; pip install wetext==0.1.8")
        return None
