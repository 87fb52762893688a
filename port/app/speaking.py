"""Shared by the commands that speak: the mode of a request, and how they end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ..batched.spoken import Spoken
from ..cosyvoice3 import CosyVoice3
from ..files.errors import Misused
from ..files.recording import Recording
from ..files.voices import EMBEDDING
from ..frontend.special_tokens import has_instruction, require_end_of_prompt
from .device import keep_freed_memory

NOTHING_SPOKEN = "the text holds only punctuation, symbols or blanks: nothing to speak"


class Request(Protocol):
    """The fields that decide the mode: a recording with its words, an instruction, or the name of a saved voice."""

    @property
    def prompt_wav(self) -> Recording | None: ...
    @property
    def prompt_text(self) -> str | None: ...
    @property
    def instruct(self) -> str | None: ...
    @property
    def spk(self) -> str | None: ...


def load_voice(model: str, revision: str | None = None, plain: bool = False, lazy: bool = False) -> CosyVoice3:
    """Load a model to speak with; the process also keeps freed memory for it.

    Args:
        lazy: for one request: never read what it does not use. That is the prompt encoders (a fifth of the weights)
            with a saved voice, the language model (nearly half) and the tokenizer in a conversion.
    """
    voice = CosyVoice3.from_pretrained(model, revision, lazy=lazy, plain=plain)
    keep_freed_memory()
    return voice


def check_request(request: Request) -> None:
    """Refuse a request that names no voice, or two.

    Raises:
        Misused: either.
    """
    if not request.prompt_wav and not request.spk:
        raise Misused("say needs a voice: --ref-audio FILE or --voice NAME")
    if request.spk and (request.prompt_wav or request.prompt_text):
        raise Misused("--voice brings its own recording and words; leave out --ref-audio, --ref-text")


def check_instruction(request: Request, text: str) -> None:
    """Refuse a request without an instruction, as the original; a saved voice may bring one.

    Raises:
        ValueError: no `<|endofprompt|>`.
    """
    if not request.spk:
        require_end_of_prompt((request.instruct or request.prompt_text or "") + text)


def speak(request: Request, voice: CosyVoice3, text: str | Iterator[str], common: dict[str, Any]) -> Spoken:
    """Choose the mode by the given fields: an instruction, a text that contains one, a bare or a full prompt."""
    recording = request.prompt_wav or ""
    if request.instruct is not None:
        return voice.inference_instruct2(text, request.instruct, recording, request.spk or "", **common)
    if request.spk:
        saved = voice.frontend.spk2info.get(request.spk)
        if saved is not None and saved.given().keys() == {EMBEDDING}:
            text = text if isinstance(text, str) else "".join(text)  # this mode cannot speak text while it arrives
            return voice.inference_sft(text, request.spk, **common)
        if has_instruction(text):
            return voice.inference_cross_lingual(text, "", request.spk, **common)
        return voice.inference_zero_shot(text, "", "", request.spk, **common)
    if request.prompt_text is not None:
        return voice.inference_zero_shot(text, request.prompt_text, recording, **common)
    return voice.inference_cross_lingual(text, recording, **common)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise KeyboardInterrupt with their number, once: when a rank dies, `mlx.launch` sends
    SIGTERM to the others every second. Ignored signals stay ignored, as under `nohup`."""

    def interrupt(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():  # Python allows no handlers here
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    before = {each: handler for each, handler in before.items() if handler != signal.SIG_IGN}
    for each in before:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
