"""The command `say`: from a written text to audible speech."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
from collections.abc import Iterator
from typing import Any

from ..batched.spoken import Speech
from ..files.disk import MAX_TEXT_BYTES, decode_text, read_text
from ..files.recording import check_recording
from ..frontend.special_tokens import END_OF_PROMPT
from ..frontend.text import ZERO_WIDTH, is_silent
from . import arriving
from .output import bar, check_output, give, how, tell
from .speaking import NOTHING_SPOKEN, check_instruction, check_request, load_voice, speak
from .subtitles import subtitled

logger = logging.getLogger(__name__)


def say(options: argparse.Namespace) -> None:
    """Speak a text.

    Raises:
        Misused, ValueError: something cannot be used; one line.
    """
    check_request(options)
    check_output(options)
    text = None if _comes(options) else _text(options)
    if text and is_silent(text.rpartition(END_OF_PROMPT)[2]) and not options.no_text_frontend:
        raise ValueError(NOTHING_SPOKEN)
    if options.raw_prompt:
        check_instruction(options, text or "")
    if options.prompt_wav:
        options.prompt_wav = check_recording(options.prompt_wav)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    voice = load_voice(options.model, options.revision, options.plain, lazy=True)
    ended: dict[str, Any] = {}
    spoken: str | Iterator[str] = text or ""
    if text is None:
        options.stream = True
        spoken, ended = arriving.as_it_comes(voice, arriving.read())
    with bar(desc="speech tokens", unit="token") as progress:
        common = how(options) | {
            "text_frontend": not options.no_text_frontend,
            "split_long": not options.raw_prompt,
            "raw_prompt": options.raw_prompt,
            "pause": options.pause,
            "seed": seed,
            "strict_min_length": options.strict_min_length,
            "progress": lambda _: progress.update(),
            **ended,
        }

        def ask() -> Speech:
            speech = speak(options, voice, spoken, common)
            return subtitled(speech, voice.sample_rate, options.subtitles) if options.subtitles else speech

        told = give(options, voice, ask, seed=seed)
    tell(options, told)


def _comes(options: argparse.Namespace) -> bool:
    """Whether to speak the text while it arrives: it comes from a pipe, is played or streamed, and needs no pieces."""
    heard = options.stream or (options.play and options.speed == 1)
    whole = options.pause or options.subtitles or options.text is not None or options.text_file is not None
    if whole or not heard or not arriving.is_pipe():
        return False
    if options.instruct is not None or (options.prompt_text is None and not options.spk):
        logger.warning(
            "the text is read to its end first; to speak it as it comes, give --ref-text or a --voice, no --instruct"
        )
        return False
    return True


def _text(options: argparse.Namespace) -> str:
    if options.text is not None:
        text = options.text
    elif options.text_file is not None:
        text = read_text(options.text_file)
    elif sys.stdin is None:
        raise ValueError("standard input is closed; give --text or --text-file")
    else:  # as bytes, because the locale might decode them wrongly
        text = decode_text(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "standard input")
    text = text.strip().strip(ZERO_WIDTH).strip()
    if not text:
        raise ValueError("the text is empty: nothing to speak")
    return text
