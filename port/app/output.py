"""Where speech goes: to a file of any kind that libsndfile writes, to standard output, to a player."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import tqdm_logging_redirect

from ..batched.spoken import Speech
from ..cosyvoice3 import CosyVoice3
from ..files.errors import Misused, Refused
from ..request import Stream
from .player import Player, sound_device
from .sound import Encoder, ending, formats, sound_file, sound_format
from .speaking import NOTHING_SPOKEN, ended_by_signals

STDOUT = Path("-")
Write = Callable[[np.ndarray], None]


def check_output(options: argparse.Namespace) -> None:
    """Check before minutes of work: the output can be written in a known format, and a device can play it.

    Raises:
        Misused: it cannot.
    """
    if options.stream and options.speed != 1.0:
        raise Misused("--speed changes whole pieces only; leave out --stream")
    if not np.isfinite(options.speed) or options.speed <= 0:
        raise Misused(f"--speed {options.speed:g} is no tempo; give a number above 0")
    if options.play:
        sound_device()
    path = options.output
    if path is None:
        path = None if options.play else Path("speech.wav")
    elif path == STDOUT:
        if options.json:
            raise Misused("-o - and --json both write to standard output; leave out one")
        if sys.stdout is None or sys.stdout.isatty():
            raise Misused("-o - writes sound to standard output, which is a terminal; send it to a player or a file")
    elif sound_format(ending(path)) is None:
        known = ", ".join(f".{name}" for name in formats())
        raise Misused(f"{path}: this libsndfile cannot write such a file; give a name that ends in one of {known}")
    if (subtitles := vars(options).get("subtitles")) and subtitles.suffix.lower() != ".srt":
        raise Misused(f"{subtitles}: give a name that ends in .srt")
    if options.format != "wav" and path != STDOUT:
        raise Misused("--format is that of standard output, -o -; a file's name says its own")
    for file in {path, subtitles} - {None, STDOUT}:
        if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
            raise Misused(f"{file}: cannot be written there")


def how(options: argparse.Namespace) -> dict[str, Any]:
    """Options of the `inference_*` methods, from the arguments about speech."""
    stream = Stream(options.reset_hop, options.causal_final, not options.no_incremental, options.max_cache_bytes)
    return {"stream": stream if options.stream else False, "speed": options.speed}


def bar(**shown: Any) -> AbstractContextManager[tqdm]:
    """A progress bar on a terminal; warnings are printed above it."""
    return tqdm_logging_redirect(**shown, file=sys.stderr, disable=None)


def tell(options: argparse.Namespace, told: str) -> None:
    """Print the last line, unless standard output carries sound."""
    (sys.stderr if options.output == STDOUT else sys.stdout).write(told + "\n")


def give(options: argparse.Namespace, voice: CosyVoice3, ask: Callable[[], Speech], **more: Any) -> str:
    """Write and play the speech as it is made; returns numbers about it.

    Args:
        options: `output`, `format`, `play`, `json`.
        ask: makes the speech with `voice`, which reads the prompt; both are timed.
        more: further entries of the result.

    Raises:
        Refused: nothing was spoken, or the output cannot be written.
    """
    rate, samples, made, first = voice.sample_rate, 0, 0.0, 0.0
    mx.reset_peak_memory()
    with ExitStack() as outputs:
        outputs.enter_context(ended_by_signals())
        player = outputs.enter_context(Player(rate, sound_device())) if options.play else None
        path, write = outputs.enter_context(_place(options, rate))
        for wave, seconds in _timed(ask):
            first = first or seconds
            made, samples = made + seconds, samples + len(wave)
            for to in (write, player and player.write):
                if to:
                    to(wave)
        if player:
            player.end()
        if not samples:
            raise ValueError(NOTHING_SPOKEN)
    audio = samples / rate
    found = {"file": path, "audio_s": audio, "time_s": made, "real_time_factor": made / audio, "first_audio_s": first}
    found |= {"peak_gb": mx.get_peak_memory() / 1e9, **({"ran_dry": player.ran_dry} if player else {}), **more}
    if options.json:
        return json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()})
    told = [f"{audio:.2f} s of audio", f"real-time factor {made / audio:.2f}", f"first audio after {first:.2f} s"]
    told += [f"peak memory {found['peak_gb']:.2f} GB"]
    told += [f"the player ran dry {player.ran_dry} times"] if player else []
    return f"{path or 'played'}: " + ", ".join([*told, *(f"{name} {value}" for name, value in more.items())])


def _timed(ask: Callable[[], Speech]) -> Iterator[tuple[np.ndarray, float]]:
    """Each wave (s,) with the seconds that its synthesis took, without the time to write or play it."""
    started = time.perf_counter()
    for result in ask():
        wave = np.array(result["tts_speech"])[0]
        yield wave, time.perf_counter() - started
        started = time.perf_counter()


@contextmanager
def _place(options: argparse.Namespace, rate: int) -> Iterator[tuple[str | None, Write | None]]:
    """The name of the output and a function that takes samples; neither if speech is only played."""
    if options.output == STDOUT:
        with Encoder("pcm" if options.format == "raw" else options.format, rate, stream=True) as encoder:
            yield "standard output", lambda wave: _to_stdout(encoder.write(wave))
    elif options.output is None and options.play:
        yield None, None
    else:
        with _file(options.output) as path, sound_file(path, rate, keep_unfinished=True) as file:

            def write(wave: np.ndarray) -> None:
                file.write(wave)
                file.flush()

            yield str(path), write


@contextmanager
def _file(path: Path | None) -> Iterator[Path]:
    """The path, or a free name that is reserved."""
    if path is not None:
        yield path
        return
    for i in count(1):
        free = Path(f"speech-{i}.wav" if i > 1 else "speech.wav")
        with suppress(FileExistsError):
            free.touch(exist_ok=False)
            break
    try:
        yield free
    except BaseException:
        free.unlink(missing_ok=True)
        raise


def _to_stdout(sound: bytes) -> None:
    out = sys.stdout.buffer
    try:
        out.write(sound)
        out.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        raise Refused("standard output was closed by its reader") from None
