"""What a prompt text promises of poor speech: a transcript that cannot be that of its recording."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import regex

from ..files.strict import TOKENS_PER_SECOND
from .special_tokens import END_OF_PROMPT, TOKEN

# Read speech has 5.2 (Mandarin) to 7.8 (Japanese) syllables a second, English 6.2 (Pellegrino, Coupe and Marsico 2011,
# "Across-language perspective on speech information rate"). A syllable is one character where scripts write syllables,
# and about 2.5 letters elsewhere (Spanish 2.3, English and German 3.1). What is below a third of a usual rate, pauses
# included, or beyond the fastest readers is no transcript.
SYLLABLES_PER_SECOND = (2.0, 10.0)
LETTERS_OF_A_SYLLABLE = 2.5
SPARE_SECONDS = 1.0  # silence at both ends, which short recordings have too
_SYLLABLE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{N}]")
_LETTER = regex.compile(r"\p{L}")

logger = logging.getLogger(__name__)


def syllables(text: str) -> float:
    """About how many syllables a text has; a special token counts as a letter."""
    text, spoken = _SYLLABLE.subn("", TOKEN.sub("x", text))
    return spoken + len(_LETTER.findall(text)) / LETTERS_OF_A_SYLLABLE


def warn_of_transcript(prompt_text: str, tokens: np.ndarray, pieces: Sequence[object] = ()) -> None:
    """Log what may sound poor: a transcript too long or too short for its recording, a text much shorter than it.

    Args:
        prompt_text: the transcript, behind its instruction.
        tokens: (1, P) speech tokens of the recording.
        pieces: of the text; what still arrives is not looked at.
    """
    said = prompt_text.rpartition(END_OF_PROMPT)[2]
    for piece in pieces:
        if isinstance(piece, str) and 2 * len(piece) < len(said):
            logger.warning("the text %.40r is much shorter than the prompt text; this may sound poor", piece)
    count, seconds = syllables(said), tokens.shape[1] / TOKENS_PER_SECOND
    slowest, fastest = SYLLABLES_PER_SECOND
    if count > fastest * seconds:
        then = "more than can be said in it, so the speech may begin with what is left of them"
    elif seconds > SPARE_SECONDS + count / slowest:
        then = "too few for it, so words of the text may be lost"
    else:
        return
    said = "the recording has %.1f s and its transcript about %.0f syllables, %s; give exactly what is said in it"
    logger.warning(said, seconds, count, then)
