"""What an audit compares beyond the isolated cases: the sampler on recorded draws, long audio, a port's own noise.

For this repository's port other tests of the suite cover these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from mlx_parity.adapter import Adapter, NotOffered
from mlx_parity.case import Case, uniform
from mlx_parity.compare import Reading, compare
from mlx_parity.judge import Row
from parity_tests.cases import case, voiced_and_unvoiced
from parity_tests.cases.frontend import voice
from parity_tests.cases.llm import LM
from parity_tests.cases.vocoder import SINE
from parity_tests.parts import PARTS, part
from port import noise
from port.config import LLMConfig, SamplingConfig
from port.llm import sampling as port_sampling
from reference.llm import sampling as reference_sampling

ROWS, VOCABULARY, DRAWS = 48, 60, 40
NOISE_FRAMES, NOISE_SAMPLES, HARMONICS = 400, 4800, 9


def _each_row(choose: Callable[..., int]) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """Run a sampler once for each row of `scores` (k, v), with `draws` (k, calls, v) and perhaps `decoded_tokens`."""

    def run(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        found, rest = [], dict(arguments)
        scores, draws = rest.pop("scores"), np.asarray(rest.pop("draws"))
        decoded = rest.pop("decoded_tokens", None)
        for i in range(len(draws)):
            theirs = isinstance(scores, torch.Tensor)
            package = reference_sampling if theirs else port_sampling
            row = scores[i].clone() if theirs else np.array(scores[i])  # the sampler changes it
            history = [] if decoded is None else np.asarray(decoded)[i].tolist()
            found.append(choose(function, row, package.RecordedDraws(draws[i]), history, package, **rest))
        tokens = np.array(found)
        return {"tokens": torch.from_numpy(tokens) if isinstance(scores, torch.Tensor) else mx.array(tokens)}

    return run


def _nucleus(function: Any, row: Any, draws: Any, history: list[int], package: Any, **rest: Any) -> int:
    return function(row, draws, **rest)


def _ras(function: Any, row: Any, draws: Any, history: list[int], package: Any) -> int:
    return function(row, history, draws, SamplingConfig())


def _ids(function: Any, row: Any, draws: Any, history: list[int], package: Any, ignore_eos: bool) -> int:
    return function(row, history, draws, package.ras_sampling, ignore_eos)


EXTRA_PARTS = (
    part("llm.sampling.nucleus_sampling", ("tokens",), run=_each_row(_nucleus)),
    part("llm.sampling.ras_sampling", ("tokens",), run=_each_row(_ras)),
    part("llm.speech_lm.CosyVoice3LM.sampling_ids", ("tokens",), at="llm:", config=LLMConfig, run=_each_row(_ids)),
)


def _scores(rng: np.random.Generator, loud: int | None = None) -> np.ndarray:
    scores = 1.5 * rng.standard_normal((ROWS, VOCABULARY))
    if loud is not None:
        scores[:, loud] = 4.0
    return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)


def _sampling_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(ROWS, DRAWS, VOCABULARY)).astype(np.float32)
    scores = _scores(rng)
    likely = np.argsort(-scores, axis=1)[:, :3].astype(np.int32)  # as recent tokens they trigger the repetition check
    rare = np.argsort(scores, axis=1)[:, :9].astype(np.int32)
    nucleus, ras, ids = EXTRA_PARTS
    call = dict(top_p=0.8, top_k=25)
    ended = _scores(rng, LM["speech_token_size"] + 1)
    return [
        Case("llm.sampling.nucleus", nucleus, {}, dict(scores=scores, draws=draws), call),
        Case("llm.sampling.ras", ras, {}, dict(scores=scores, draws=draws, decoded_tokens=rare)),
        Case("llm.sampling.ras.repeated", ras, {}, dict(scores=scores, draws=draws, decoded_tokens=likely)),
        Case(
            "llm.sampling.minimum_length",
            ids,
            LM,
            dict(scores=ended, draws=draws, decoded_tokens=rare),
            dict(ignore_eos=True),
        ),
    ]


def _long_source(frames: int = 1500) -> Case:
    """Half a minute: long enough for a phase summed in float32 to drift."""
    return Case(
        "vocoder.sine.half_minute",
        PARTS["vocoder.source.SineGen2"],
        SINE,
        dict(f0=voiced_and_unvoiced(1, frames), sine_waves=uniform(1, frames * 480, HARMONICS)),
    )


def _resample() -> Case:
    """A clip whose length divides evenly, so that the number of samples cannot differ."""
    call = dict(orig_freq=24000, new_freq=16000)
    return case("frontend.resample.even", "frontend.audio.resample", None, call, waveform=voice(7200))


def extra_cases() -> list[Case]:
    """Cases that only an audit runs."""
    return [_resample(), *_sampling_cases(), _long_source()]


def noise_rows(adapter: Adapter) -> list[Row]:
    """The noise that the port draws itself, against the original's fixed buffers."""
    wanted = {"rand_noise": noise.rand_noise(NOISE_FRAMES), "sine_waves": noise.sine_waves(NOISE_SAMPLES)[None]}
    rows = []
    for name, truth in wanted.items():
        try:
            reading = compare(adapter.noise(name, truth.shape), truth, truth.astype(np.float64))
        except NotOffered as reason:
            reading = Reading("SKIP", str(reason))
        except Exception as error:
            reading = Reading("ERROR", f"{adapter.name} raised {type(error).__name__}: {error}")
        rows.append(Row(f"noise.{name}", "noise", "exact", f"noise.{name}", f"noise.{name}", reading))
    return rows
