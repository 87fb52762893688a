"""What the commands that speak share: which mode a request means, and a sound file that is complete or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import soundfile

from .cosyvoice3 import CosyVoice3, Speech
from .files import beside
from .frontend.special_tokens import END_OF_PROMPT
from .speakers import EMBEDDING

NOTHING_SPOKEN = "the text holds only punctuation: nothing to speak"


class UsageError(ValueError):
    """Arguments that do not go together."""


class Request(Protocol):
    """What decides the mode: a recording with its words, an instruction, or the name of a saved voice."""

    prompt_wav: str | Path | None
    prompt_text: str | None
    instruct: str | None
    spk: str | None


def check_request(request: Request) -> None:
    """Refuse a request that names no voice, or two.

    Raises:
        UsageError: either.
    """
    if not request.prompt_wav and not request.spk:
        raise UsageError("say needs a voice: --prompt-wav FILE or --spk NAME")
    if request.spk and (request.prompt_wav or request.prompt_text or request.instruct):
        raise UsageError(
            "--spk brings its own recording and prompt text; leave out --prompt-wav, --prompt-text, --instruct"
        )


def speech(request: Request, voice: CosyVoice3, text: str, common: dict[str, Any]) -> Speech:
    """The mode follows from what is given: an instruction, a text that carries one, a bare or a whole prompt."""
    if request.instruct is not None:
        return voice.inference_instruct2(text, request.instruct, request.prompt_wav, **common)
    if request.spk:
        info = voice.frontend.spk2info.get(request.spk)
        if info is not None and info.keys() == {EMBEDDING}:
            return voice.inference_sft(text, request.spk, **common)
        if END_OF_PROMPT in text:
            return voice.inference_cross_lingual(text, "", request.spk, **common)
        return voice.inference_zero_shot(text, "", "", request.spk, **common)
    if request.prompt_text is not None:
        return voice.inference_zero_shot(text, request.prompt_text, request.prompt_wav, **common)
    return voice.inference_cross_lingual(text, request.prompt_wav, **common)


@contextmanager
def sound_file(path: Path, sample_rate: int) -> Iterator[soundfile.SoundFile]:
    """A 16-bit mono file that takes the place of `path` at the end, and goes away when anything fails."""
    with (
        beside(path) as partial,
        soundfile.SoundFile(partial, "w", sample_rate, channels=1, subtype="PCM_16") as file,
    ):
        yield file
