"""What the commands that speak share: which mode a request means, and a sound file that is complete or not there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import soundfile

from ..cosyvoice3 import CosyVoice3, Speech
from ..files.disk import beside
from ..files.errors import Misused, Refused
from ..files.voices import EMBEDDING
from ..frontend.special_tokens import has_instruction, require_end_of_prompt
from .device import keep_freed_memory

NOTHING_SPOKEN = "the text holds only punctuation, symbols or blanks: nothing to speak"
KEPT_SECONDS = 1  # from here on, audio of a run that broke off is worth keeping


class Request(Protocol):
    """What decides the mode: a recording with its words, an instruction, or the name of a saved voice."""

    prompt_wav: str | Path | None
    prompt_text: str | None
    instruct: str | None
    spk: str | None


def load_voice(model: str, revision: str | None = None, plain: bool = False, lazy: bool = False) -> CosyVoice3:
    """A model to speak with, and memory kept for it: the process does nothing else.

    Args:
        lazy: for one request: what it does not use is never read, the prompt encoders (a fifth of the weights) of a
            saved voice, the language model (near half) and the tokenizer of a conversion.
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


def speak(request: Request, voice: CosyVoice3, text: str | Iterator[str], common: dict[str, Any]) -> Speech:
    """The mode follows from what is given: an instruction, a text that carries one, a bare or a whole prompt."""
    if request.instruct is not None:
        return voice.inference_instruct2(text, request.instruct, request.prompt_wav, request.spk or "", **common)
    if request.spk:
        saved = voice.frontend.spk2info.get(request.spk)
        if saved is not None and saved.given().keys() == {EMBEDDING}:
            text = text if isinstance(text, str) else "".join(text)  # which has no way to speak it as it comes
            return voice.inference_sft(text, request.spk, **common)
        if has_instruction(text):
            return voice.inference_cross_lingual(text, "", request.spk, **common)
        return voice.inference_zero_shot(text, "", "", request.spk, **common)
    if request.prompt_text is not None:
        return voice.inference_zero_shot(text, request.prompt_text, request.prompt_wav, **common)
    return voice.inference_cross_lingual(text, request.prompt_wav, **common)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP are a KeyboardInterrupt of their number within, once: `mlx.launch` sends SIGTERM to all ranks,
    each second, once one died. A signal that is ignored, as `nohup` has it, stays ignored."""

    def interrupt(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():  # where Python sets no handlers
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
    """What libsndfile calls the kind of file that a name ends in, as arguments of SoundFile; None if it writes none."""
    kind = path.suffix[1:].upper()
    how = {"format": "OGG", "subtype": "OPUS"} if kind == "OPUS" else {"format": kind}
    return how if kind and soundfile.check_format(**how) else None


@contextmanager
def sound_file(path: Path, sample_rate: int, keep_unfinished: bool = False) -> Iterator[soundfile.SoundFile]:
    """A mono file of the kind that its name ends in, 16-bit if that has a choice; takes the place of `path` at the end.

    When anything fails it goes away; with `keep_unfinished` it stays as NAME.partial.wav instead, if there is a second
    of audio in it, and a note on the error says so.

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
            if isinstance(error, soundfile.LibsndfileError):  # which knows no more than "System error"
                told = Refused(f"{path}: cannot be written (is the disk full?)")
            # As written: libsndfile gives a flac that was not closed well 2^63 samples.
            seconds = file.frames / sample_rate if keep_unfinished and file is not None else 0.0
            if seconds >= KEPT_SECONDS:
                partial.replace(unfinished)
                told.add_note(f"the first {seconds:.1f} s are kept in {unfinished}")
            raise told from error.__cause__
