"""The command `benchmark`: time a model on this machine, with speech of given lengths.

Weights may be anything, also random: the shortest and the longest speech of the text are the same, so every stage does
all its work and the lengths are equal on every machine. Prompt and text are fixed. The prompt is prepared before:
reading a recording is not timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..config import CosyVoice3Config
from ..cosyvoice3 import CosyVoice3
from ..fast.convolution import adds_whole_products
from ..files.strict import TOKENS_PER_SECOND
from ..llm.sampling import SeededDraws
from ..model import CosyVoice3Model, SynthesisCache
from ..request import Chance, Prompt, Stream
from .device import keep_freed_memory

PROMPT_TOKENS, FIXTURE_TOKENS = 50, 75  # the fixture that others publish: tokens to wave
SPEECH_OF_A_TEXT_TOKEN = 5  # speech tokens, as in real speech; the model allows 20
COLUMNS = {
    "what": "measured",
    "audio_s": "audio, s",
    "time_s": "time, s",
    "real_time_factor": "real-time factor",
    "first_audio_s": "first audio, s",
    "late_s": "latest chunk, s",
    "peak_gb": "peak memory, GB",
}
LATEST = "Latest chunk: delay after the end of the audio before it; negative is in time."
SLOW_BLAS = (
    "MLX's Linux wheel brings a slow BLAS. An OpenBLAS put before it is many times faster "
    "(LD_PRELOAD=.../libopenblas.so.0; Debian has it in libopenblas0-pthread)."
)


def benchmark(options: argparse.Namespace) -> None:
    """Measure and print."""
    voice = CosyVoice3.from_pretrained(options.model, options.revision)
    keep_freed_memory()
    model = voice.model
    made = {"machine": machine(), "model": precision(model)}
    speak(model, options.seconds[0], Stream(reset_hop=True))  # kernels are compiled at first use
    rows = [fixture(model, options.repeats)]
    for seconds in options.seconds:
        rows += [spoken(model, seconds, how, options.repeats) for how in (None, Stream(reset_hop=True))]
    print(json.dumps(made | {"rows": rows}) if options.json else table(made, rows))


def speak(model: CosyVoice3Model, seconds: float, how: Stream | None) -> list[tuple[float, float]]:
    """Speak a text of a given length; returns arrival time and length of each chunk, both in seconds."""
    prompt, count = _prompt(model.config), round(seconds * TOKENS_PER_SECOND)
    text = np.full((1, count // SPEECH_OF_A_TEXT_TOKEN + 1), 1, np.int32)
    speaks(model, count, text.shape[1])
    model.stream_memory.clear()
    started, marks = time.perf_counter(), []
    chance = Chance(SeededDraws(0))
    for chunk in model.tts(prompt, text, stream=how, chance=chance, strict_min_length=True):
        marks.append((time.perf_counter() - started, chunk["tts_speech"].shape[1] / model.config.sample_rate))
    return marks


def speaks(model: CosyVoice3Model, count: int, text_tokens: int) -> None:
    """Make the model speak `count` tokens, no more and no fewer, of a text of `text_tokens`; none is dropped."""
    ratio = (count + 0.5) / text_tokens  # the model rounds the product down
    model.llm.config = replace(model.llm.config, min_token_text_ratio=ratio, max_token_text_ratio=ratio)
    model.config = replace(model.config, streaming=replace(model.config.streaming, silent_tokens=()))


def spoken(model: CosyVoice3Model, seconds: float, how: Stream | None, repeats: int) -> dict[str, Any]:
    """A row: a text, whole or as a stream."""
    mx.reset_peak_memory()
    runs = [speak(model, seconds, how) for _ in range(repeats)]
    audio = sum(length for _, length in runs[0])
    row = _row(f"text, {'streamed' if how else 'whole'}", audio, [marks[-1][0] for marks in runs])
    row["first_audio_s"] = round(median(marks[0][0] for marks in runs), 3)
    if how and len(runs[0]) > 1:
        row["late_s"] = round(median(map(late, runs)), 3)
    return row


def late(marks: Sequence[tuple[float, float]]) -> float:
    """Seconds from the end of the audio before to the arrival of the latest chunk; negative: it was in time."""
    first, out, worst = marks[0][0], 0.0, -float("inf")
    for (_, before), (came, _) in pairwise(marks):
        out += before
        worst = max(worst, came - first - out)
    return worst


def fixture(model: CosyVoice3Model, repeats: int) -> dict[str, Any]:
    """A row: 75 speech tokens after a prompt of 50, through flow decoder and vocoder."""
    tokens, times, length = np.full((1, FIXTURE_TOKENS), 7, np.int32), [], 0
    for measured in (False, *[True] * repeats):
        mx.reset_peak_memory()
        started = time.perf_counter()
        length = model.token2wav(tokens, _prompt(model.config), 0, SynthesisCache(), finalize=True).shape[1]
        times += [time.perf_counter() - started] * measured
    what = f"{PROMPT_TOKENS} prompt tokens, {FIXTURE_TOKENS} tokens to wave"
    return _row(what, length / model.config.sample_rate, times)


def _row(what: str, audio: float, times: Sequence[float]) -> dict[str, Any]:
    took = median(times)
    found = dict(what=what, audio_s=audio, time_s=took, real_time_factor=took / audio)
    found["peak_gb"] = mx.get_peak_memory() / 1e9
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


def _prompt(config: CosyVoice3Config) -> Prompt:
    """Two seconds of a voice, the same on every machine."""
    rng, tokens = np.random.default_rng(0), np.full((1, PROMPT_TOKENS), 5, np.int32)
    mel = rng.standard_normal((1, PROMPT_TOKENS * config.flow.token_mel_ratio, config.flow.output_size))
    embedding = rng.standard_normal((1, config.flow.spk_embed_dim))
    arrays = (mx.array(array.astype(np.float32)) for array in (embedding, mel))
    ended = np.array([[config.llm.end_of_prompt]], np.int32)
    return Prompt(next(arrays), ended, tokens, tokens, next(arrays))


def precision(model: CosyVoice3Model) -> str:
    """The dtype of most weights of each stage."""
    return ", ".join(f"{name} {_stored(getattr(model, name))}" for name in ("llm", "flow", "vocoder"))


def _stored(module: nn.Module) -> str:
    bits = {f"{layer.bits} bits" for layer in module.modules() if hasattr(layer, "bits")}
    sizes: dict[str, int] = {}
    for array in dict(tree_flatten(module.parameters())).values():
        name = str(array.dtype).rpartition(".")[2]
        sizes[name] = sizes.get(name, 0) + array.nbytes
    return "+".join(sorted(bits)) or max(sizes, key=sizes.__getitem__)


def machine() -> str:
    """Chip, system and versions."""
    try:
        own = version("cosyvoice3-mlx")
    except PackageNotFoundError:  # a checkout that was not installed
        own = "checkout"
    device = mx.default_device().type.name
    info: dict[str, Any] = getattr(mx, "device_info", dict)()
    chip = info.get("device_name") or platform.processor() or platform.machine()
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{chip} ({device}), {system}, mlx {version('mlx')}, cosyvoice3-mlx {own}"


def table(made: dict[str, str], rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, to be pasted."""
    lines = [" | ".join(COLUMNS.values()), " | ".join(["---", *["---:"] * (len(COLUMNS) - 1)])]
    lines += [" | ".join(_cell(row.get(name)) for name in COLUMNS) for row in rows]
    notes = [LATEST] if adds_whole_products(mx.default_device().type) else [LATEST, SLOW_BLAS]
    return "\n".join([f"{made['machine']}; {made['model']}", "", *(f"| {line} |" for line in lines), "", *notes])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


COMMANDS = {"benchmark": benchmark}
