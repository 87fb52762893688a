"""What the worker does for a request: generators that run on its thread, one result a turn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from ...batched.decoder import Decoder
from ...cosyvoice3 import CosyVoice3
from ...files.errors import Refused
from ...files.recording import check_recording
from ...files.voices import Voice, check_name, remove_voice, save_voice
from ...request import Stream
from ..sound import Encoder
from ..speaking import NOTHING_SPOKEN, speak
from .asked import Asked, Upload
from .errors import Problem
from .settings import Limits
from .worker import Job

logger = logging.getLogger(__name__)


def spoken(voice: CosyVoice3, decoder: Decoder | None, asked: Asked, seed: int, job: Job[bytes]) -> Iterator[bytes]:
    """The bytes of an answer, as soon as they are made; those of a whole one come last, after an empty one a turn.

    In the first turn the request is checked and takes its row of the decoder, no more: from there on its tokens come
    with those of the others, whoever asks, up to the longest that its text may give.

    Raises:
        ValueError: what cannot be spoken.
        Left: the client is gone, seen after each token of the language model.
    """
    said = SimpleNamespace(prompt_wav=None, prompt_text=None, instruct=asked.instructions, spk=asked.voice)
    common: dict[str, Any] = {
        # The chunks of a stream must not depend on the requests before it.
        "stream": Stream(reset_hop=True) if asked.streams else False,
        "speed": float(asked.speed),
        "seed": seed,
        "split_long": True,
        "progress": lambda _: job.check(),
        "decoder": decoder,
    }
    samples = 0
    with (
        closing(speak(said, voice, asked.input, common)) as speech,
        Encoder(asked.response_format, voice.sample_rate, asked.streams) as encoder,
    ):
        yield b""
        for result in speech:
            wave = np.array(result["tts_speech"])[0]
            samples += len(wave)
            yield encoder.write(wave)
        if not samples:
            raise ValueError(NOTHING_SPOKEN)
        yield encoder.end()


def described(name: str, saved: Voice) -> dict[str, object]:
    """A saved voice as clients see it."""
    return {"id": name, "object": "audio.voice", "name": name, "text": saved.text, "licence": saved.licence}


def added(voice: CosyVoice3, upload: Upload, limits: Limits, _: Job[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Make a voice of a recording and keep it on disk.

    Raises:
        Refused: a name or a recording that cannot be used.
        Problem: a voice of that name is there, or there is no room.
    """
    name, voices = check_name(upload.name), voice.frontend.spk2info
    if name.casefold() in {other.casefold() for other in voices}:
        raise Problem(409, f"a voice named {name!r:.60} is there; delete it first or choose another name", "name")
    if len(voices) >= limits.voices:
        raise Problem(409, f"{limits.voices} voices are there, which is the limit; delete one first")
    voice.add_zero_shot_spk(upload.text, check_recording(upload.audio), name)
    try:
        voices[name] = replace(voices[name], licence=upload.licence)
        save_voice(cast(str, voice.folder), name, voices[name], voice.model.config)
    except (Refused, OSError) as error:
        del voices[name]
        logger.error("a voice could not be saved: %s", error)
        raise Problem(500, "the voice cannot be saved; the server's log says why") from None
    yield described(name, voices[name])


def removed(voice: CosyVoice3, name: str, _: Job[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Forget a voice, on disk too.

    Raises:
        Problem: there is no such voice, or its file stays.
    """
    require_voice(voice, name, 404)
    try:
        remove_voice(cast(str, voice.folder), name)
    except (Refused, OSError) as error:
        logger.error("a voice could not be removed: %s", error)
        raise Problem(500, "the voice cannot be removed; the server's log says why") from None
    del voice.frontend.spk2info[name]
    yield {"id": name, "object": "audio.voice.deleted", "deleted": True}


def require_voice(voice: CosyVoice3, name: str, status: int) -> None:
    """Refuse a name that no voice has.

    Raises:
        Problem: with this status.
    """
    if name not in voice.frontend.spk2info:
        known = ", ".join(list(voice.frontend.spk2info)) or "none; POST /v1/audio/voices adds one"
        raise Problem(status, f"voice {name!r:.60} is not known; known voices: {known}", "voice")
