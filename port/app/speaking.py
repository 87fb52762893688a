"""Shared by the commands that speak: the mode of a request, and sound files that appear complete or not at all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import soundfile

from ..batched.spoken import Spoken
from ..cosyvoice3 import CosyVoice3
from ..files.disk import beside
from ..files.errors import Misused, Refused
from ..files.voices import EMBEDDING
from ..frontend.special_tokens import has_instruction, require_end_of_prompt
from .device import keep_freed_memory

NOTHING_SPOKEN = "the text holds only punctuation, symbols or blanks: nothing to speak"
KEPT_SECONDS = 1  # interrupted runs keep audio from this length on


class Request(Protocol):
    """The fields that decide the mode: a recording with its words, an instruction, or the name of a saved voice."""

    @property
    def prompt_wav(self) -> str | Path | None: ...
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


def sound_format(path: Path) -> dict[str, str] | None:
    """Arguments of SoundFile for the ending of a name; None if libsndfile cannot write it."""
    kind = path.suffix[1:].upper()
    how = {"format": "OGG", "subtype": "OPUS"} if kind == "OPUS" else {"format": kind}
    return how if kind and soundfile.check_format(**how) else None


@contextmanager
def sound_file(path: Path, sample_rate: int, keep_unfinished: bool = False) -> Iterator[soundfile.SoundFile]:
    """A mono file of the format that its name ends in, 16-bit where possible; renamed to `path` at the end.

    On an error it is removed. With `keep_unfinished` it is kept as NAME.partial.wav if it has at least a second of
    audio, and a note on the error says so.

    Raises:
        Refused: the disk does not take it.
    """
    unfinished = path.with_name(f"{path.stem}.partial{path.suffix}")
    with beside(path) as partial:
        file = None
        try:
            with soundfile.SoundFile(partial, "w", sample_rate, channels=1, **(sound_format(path) or {})) as file:
                yield file
        except BaseException as error:
            told: BaseException = error
            if isinstance(error, soundfile.LibsndfileError):  # its message is just "System error"
                told = Refused(f"{path}: cannot be written (is the disk full?)")
            # By the frames written: libsndfile reports 2^63 samples for an unfinished flac.
            seconds = file.frames / sample_rate if keep_unfinished and file is not None else 0.0
            if seconds >= KEPT_SECONDS:
                partial.replace(unfinished)
                told.add_note(f"the first {seconds:.1f} s are kept in {unfinished}")
            raise told from error.__cause__
