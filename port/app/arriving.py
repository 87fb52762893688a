"""Text from standard input that is spoken while it is still being written."""

from __future__ import annotations

import codecs
import io
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from ..config import SamplingConfig
from ..cosyvoice3 import CosyVoice3
from ..files.disk import MAX_TEXT_BYTES
from ..files.errors import Refused
from ..frontend.written import words
from ..llm.sampling import Draws, ras_sampling

SOURCE = "standard input"


def is_pipe() -> bool:
    """Whether a program may still be writing to standard input: it is neither a terminal nor a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, io.UnsupportedOperation):  # closed, or not a file of the system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def read() -> Iterator[str]:
    """Standard input as it arrives; a character is passed on when its last byte is there.

    Raises:
        Refused: not UTF-8, or endless.
    """
    decoder, size = codecs.getincrementaldecoder("utf-8-sig")(), 0
    while True:
        data = cast(io.BufferedReader, sys.stdin.buffer).read1(1 << 16)
        size += len(data)
        if size > MAX_TEXT_BYTES:
            raise Refused(f"{SOURCE}: larger than {MAX_TEXT_BYTES >> 20} MiB; split it")
        try:
            yield decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise Refused(f"{SOURCE}: not readable as UTF-8 text ({error})") from None
        if not data:
            return


def as_it_comes(voice: CosyVoice3, chunks: Iterator[str]) -> tuple[Iterator[str], dict[str, Any]]:
    """A text for `inference_zero_shot`, and the options that make it end well.

    The original has no maximum length here, ends in the middle of a text when the model says so, and fails at stop
    tokens other than the end. These options suppress the end until all text has arrived, suppress other stop tokens,
    and end at the length that the original allows for a whole text.
    """
    config, tokens = voice.model.config.llm, 0

    def counted() -> Iterator[str]:
        nonlocal tokens
        for word in words(chunks):
            tokens += len(voice.frontend.tokenizer.encode(word))
            yield word

    def sample(scores: np.ndarray, decoded: Sequence[int], draws: Draws, settings: SamplingConfig) -> int:
        end = scores[config.eos]
        if end > -np.inf:  # no longer suppressed
            if len(decoded) >= config.max_token_text_ratio * tokens:
                return config.eos
            scores[config.speech_token_size :] = -np.inf
            scores[config.eos] = end
        return ras_sampling(scores, decoded, draws, settings)

    return counted(), {"sampling": sample, "strict_min_length": True}
