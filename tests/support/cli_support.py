"""Arguments of the command line, and checks of its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from parity_tests.speech_support import PROMPT_WORDS, SYSTEM, WORDS

MODES = {
    "zero-shot": ("--text", WORDS, "--prompt-text", SYSTEM + PROMPT_WORDS),
    "cross-lingual": ("--text", SYSTEM + WORDS),
    "instruct": ("--text", WORDS, "--instruct", "Please speak slowly.<|endofprompt|>"),
}


def heard(path: Path) -> np.ndarray:
    """The wave of a file, which must be mono, of the right rate and not silent."""
    wave, rate = soundfile.read(path)
    assert rate == 24000
    assert wave.ndim == 1
    assert np.abs(wave).max() > 0
    return wave


def say(model: Path, wavs: Mapping[str, Path], *more: Any, prompt: str = "prompt") -> tuple[Any, ...]:
    """Arguments of `say` with a recording of the voice."""
    return ("say", "--model", model, "--prompt-wav", wavs[prompt], *more)


def assert_one_line(result: tuple[int, str, str], code: int, words: str) -> None:
    """A refusal: exit code, nothing on standard output, one line on standard error with `words` in it."""
    found, out, err = result
    assert (found, out) == (code, "")
    line = err.strip().splitlines()[-1]  # argparse puts its usage before it
    assert words in line
    assert "Traceback" not in err
    assert code == 2 or err.count("\n") == 1
