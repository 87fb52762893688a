"""`generate`: speech in the shape of mlx-audio, for programs that are written for its models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mlx.core as mx

from .app.speaking import speak
from .app.subtitles import clock
from .batched.spoken import Speech
from .cosyvoice3 import CosyVoice3
from .files.recording import Recording
from .request import Stream


@dataclass(frozen=True)
class GenerationResult:
    """A piece of speech, or with `stream` a chunk of one; the fields are those of mlx-audio.

    Attributes:
        audio: (samples,) float32 within +-1.
        segment_idx: counts the results of a text.
        token_count: speech tokens made for it.
        audio_duration: as HH:MM:SS.mmm.
        real_time_factor: processing time over audio time; below 1 is faster than speech.
        prompt, audio_samples: the speech tokens and the samples again, each with how many of them came in a second.
        processing_time_seconds: since the result before, without what the caller did meanwhile.
        peak_memory_usage: of the process so far, in GB (1e9 bytes).
    """

    audio: mx.array
    samples: int
    sample_rate: int
    segment_idx: int
    token_count: int
    audio_duration: str
    real_time_factor: float
    prompt: dict[str, float]
    audio_samples: dict[str, float]
    processing_time_seconds: float
    peak_memory_usage: float
    is_streaming_chunk: bool


def generate(
    model: CosyVoice3,
    text: str | Iterator[str],
    voice: str | None = None,
    speed: float = 1.0,
    ref_audio: Recording | None = None,
    ref_text: str | None = None,
    instruct: str | None = None,
    stream: bool | Stream = False,
    **options: Any,
) -> Iterator[GenerationResult]:
    """Speak; which of the `inference_*` methods does it follows from what is given, as at the command line.

    Args:
        model: speaks.
        text: what to say; an iterator of strings is spoken while it arrives.
        voice: name of a saved voice, in the place of a recording.
        speed: tempo, 1.0 as learnt; not with `stream`.
        ref_audio: recording of the voice, 30 s at most.
        ref_text: what is said in it.
        instruct: how to speak.
        stream: yield each chunk as soon as it is made.
        options: as for the `inference_*` methods: `seed`, `text_frontend`, ...

    Raises:
        ValueError: no voice, or two; and what the methods raise.
    """
    if (voice is None) == (ref_audio is None):
        raise ValueError("generate needs one voice: ref_audio, a recording, or voice, the name of a saved one")
    request = SimpleNamespace(spk=voice, prompt_wav=ref_audio, prompt_text=ref_text, instruct=instruct)
    tokens, told = [0], options.pop("progress", None)

    def count(so_far: int) -> None:
        tokens[0] += 1
        if told is not None:
            told(so_far)

    started = time.perf_counter()  # before the prompt is read
    common = {"stream": stream, "speed": speed, "progress": count, **options}
    return _results(speak(request, model, text, common), model.sample_rate, bool(stream), tokens, started)


def _results(speech: Speech, rate: int, chunks: bool, tokens: list[int], started: float) -> Iterator[GenerationResult]:
    for index, made in enumerate(speech):
        audio = made["tts_speech"][0]
        took, samples, count = time.perf_counter() - started, audio.shape[0], tokens[0]
        yield GenerationResult(
            audio=audio,
            samples=samples,
            sample_rate=rate,
            segment_idx=index,
            token_count=count,
            audio_duration=clock(samples / rate),
            real_time_factor=took * rate / samples if samples else 0.0,
            prompt={"tokens": count, "tokens-per-sec": round(count / took, 2)},
            audio_samples={"samples": samples, "samples-per-sec": round(samples / took, 2)},
            processing_time_seconds=took,
            peak_memory_usage=mx.get_peak_memory() / 1e9,
            is_streaming_chunk=chunks,
        )
        tokens[0], started = 0, time.perf_counter()
