"""What the command `say` does, from the text that people write to the speech that they hear."""

from __future__ import annotations

import argparse
import secrets
import sys

from ..files.disk import MAX_TEXT_BYTES, decode_text, read_text
from ..files.recording import check_recording
from ..frontend.special_tokens import END_OF_PROMPT
from ..frontend.text import ZERO_WIDTH, is_silent
from .output import bar, check_output, give, how, tell
from .speaking import NOTHING_SPOKEN, check_instruction, check_request, load_voice, speak


def say(options: argparse.Namespace) -> None:
    """Speak a text.

    Raises:
        Misused, ValueError: in one line, what cannot be used.
    """
    check_request(options)
    check_output(options)
    text = _text(options)
    if is_silent(text.rpartition(END_OF_PROMPT)[2]) and not options.no_text_frontend:
        raise ValueError(NOTHING_SPOKEN)
    if options.raw_prompt:
        check_instruction(options, text)
    if options.prompt_wav:
        options.prompt_wav = check_recording(options.prompt_wav)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    voice = load_voice(options.model, options.revision, options.plain)
    with bar(desc="speech tokens", unit="token") as progress:
        common = how(options) | {
            "text_frontend": not options.no_text_frontend,
            "split_long": not options.raw_prompt,
            "raw_prompt": options.raw_prompt,
            "seed": seed,
            "strict_min_length": options.strict_min_length,
            "progress": lambda _: progress.update(),
        }
        told = give(options, voice, lambda: speak(options, voice, text, common), seed=seed)
    tell(options, told)


def _text(options: argparse.Namespace) -> str:
    if options.text is not None:
        text = options.text
    elif options.text_file is not None:
        text = read_text(options.text_file)
    elif sys.stdin is None:
        raise ValueError("standard input is closed; give --text or --text-file")
    else:  # as bytes: what the locale makes of them may be other characters
        text = decode_text(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "standard input")
    text = text.strip().strip(ZERO_WIDTH).strip()
    if not text:
        raise ValueError("the text is empty: nothing to speak")
    return text
