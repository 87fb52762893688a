"""What the commands `python -m port say|vc|batch ...` do; `arguments.py` has their arguments.

Speech goes to a file that is written beside its place and renamed at the end; of a run that breaks off, what is there
stays as NAME.partial.wav. Progress goes to standard error, the summary to standard output. Exit codes: 0 done, 1
something could not be used, 2 wrong arguments; either way one line says what.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import tqdm_logging_redirect

from ..cosyvoice3 import CosyVoice3, Speech
from ..files.disk import MAX_TEXT_BYTES, decode_text, read_text
from ..files.errors import Misused
from ..files.recording import check_recording
from ..frontend.special_tokens import END_OF_PROMPT
from ..frontend.text import ZERO_WIDTH, is_silent
from ..request import Stream
from . import benchmark, suite
from . import voice as voice_commands
from .arguments import parser
from .batch import RESULTS_FILE, run_batch
from .device import use_device
from .server.serve import serve
from .speaking import (
    NOTHING_SPOKEN,
    check_instruction,
    check_request,
    ended_by_signals,
    load_voice,
    sound_file,
    speak,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; returns the exit code."""
    return run(parser().parse_args(argv))


def run(options: argparse.Namespace) -> int:
    """Run the command that was parsed; returns the exit code."""
    try:
        use_device(options.device)
        return COMMANDS[options.run](options) or 0
    except Misused as error:
        return _complain(error, 2)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt as error:
        return _complain(error, 1, "interrupted")


def _complain(error: BaseException, code: int, said: str = "") -> int:
    parts = [said or str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    print("error: " + " ".join("; ".join(parts).split()), file=sys.stderr)
    return code


def _say(options: argparse.Namespace) -> None:
    check_request(options)
    _check_output(options)
    text = _text(options)
    if is_silent(text.rpartition(END_OF_PROMPT)[2]) and not options.no_text_frontend:
        raise ValueError(NOTHING_SPOKEN)
    if options.raw_prompt:
        check_instruction(options, text)
    if options.prompt_wav:
        options.prompt_wav = check_recording(options.prompt_wav)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    voice = load_voice(options.model, options.revision, options.plain)
    with _bar(desc="speech tokens", unit="token") as progress:
        common = _common(options) | {
            "text_frontend": not options.no_text_frontend,
            "split_long": options.split_long,
            "raw_prompt": options.raw_prompt,
            "seed": seed,
            "strict_min_length": options.strict_min_length,
            "progress": lambda _: progress.update(),
        }
        started = time.perf_counter()
        told = _write(options, voice, speak(options, voice, text, common), started)
    print(f"{told}, seed {seed}")


def _vc(options: argparse.Namespace) -> None:
    _check_output(options)
    options.source_wav = check_recording(options.source_wav, voice=False)
    options.prompt_wav = check_recording(options.prompt_wav)
    voice = load_voice(options.model, options.revision, options.plain)
    with _bar(desc="audio", unit="s", unit_scale=True) as progress:
        started = time.perf_counter()
        speech = voice.inference_vc(
            options.source_wav, options.prompt_wav, align_prompt=options.align_prompt, **_common(options)
        )
        told = _write(options, voice, _measured(speech, progress, voice.sample_rate), started)
    print(told)


def _batch(options: argparse.Namespace) -> None:
    failed, total = run_batch(
        options.manifest, options.out, options.model, options.seed, options.revision, options.split_long
    )
    if failed:
        raise RuntimeError(f"{failed} of {total} utterances failed; {options.out / RESULTS_FILE} says why")
    print(f"{options.out}: {total} utterances, {RESULTS_FILE}")


# ---- in and out


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


def _common(options: argparse.Namespace) -> dict[str, Any]:
    how = Stream(options.reset_hop, options.causal_final, not options.no_incremental, options.max_cache_bytes)
    return {"stream": how if options.stream else False, "speed": options.speed}


def _bar(**how: Any) -> AbstractContextManager[tqdm]:
    """Progress on a terminal, above which warnings get lines of their own."""
    return tqdm_logging_redirect(**how, file=sys.stderr, disable=None)


def _measured(speech: Speech, progress: tqdm, sample_rate: int) -> Speech:
    """The same speech, with its seconds on the progress bar."""
    for result in speech:
        progress.update(round(result["tts_speech"].shape[1] / sample_rate, 2))
        yield result


def _check_output(options: argparse.Namespace) -> None:
    """Before minutes of work: a place that can be written, in a format that is known."""
    if options.stream and options.speed != 1.0:
        raise Misused("--speed changes whole pieces only; leave out --stream")
    if not np.isfinite(options.speed) or options.speed <= 0:
        raise Misused(f"--speed {options.speed:g} is no tempo; give a number above 0")
    path = options.output
    if path.suffix.lower() not in (".wav", ".flac"):
        raise Misused(f"{path}: give a name that ends in .wav or .flac")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise Misused(f"{path}: cannot be written there")


def _write(options: argparse.Namespace, voice: CosyVoice3, speech: Speech, started: float) -> str:
    """Write the speech; returns what there is to tell of it."""
    first, samples = None, 0
    with ended_by_signals(), sound_file(options.output, voice.sample_rate, keep_unfinished=True) as file:
        for result in speech:
            wave = np.array(result["tts_speech"])[0]
            first = time.perf_counter() - started if first is None else first
            samples += len(wave)
            file.write(wave)
            file.flush()
        if not samples:
            raise ValueError(NOTHING_SPOKEN)
    seconds, audio = time.perf_counter() - started, samples / voice.sample_rate
    told = [f"{audio:.2f} s of audio", f"made in {seconds:.2f} s"]
    if options.stream:
        told += [f"first audio after {first:.2f} s", f"real-time factor {seconds / audio:.2f}"]
    return f"{options.output}: " + ", ".join(told)


COMMANDS = {
    "say": _say,
    "vc": _vc,
    "batch": _batch,
    **voice_commands.COMMANDS,
    **benchmark.COMMANDS,
    **suite.COMMANDS,
    "serve": serve,
}
