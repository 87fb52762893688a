"""Quality of a port of reduced precision against the original: metrics and their limits.

A ratio to float32's own error says nothing about 4-bit weights. Instead two more runs of the reference bound the error
of the port. All runs get the same tokens, noise and excitation, unless stated:

- rounding: the float32 reference with its own weights rounded like the folder's; in half precision the inputs and
  outputs of their layers too. This is the cost of the precision itself. The port's error may be BUDGET times that, as
  everywhere in the suite; more is a fault of the port.
- variety: the float32 reference with other random numbers (noise of the flow, draws of the sampler; for the prompt's
  tokens another recording; for the divergence its own entropy). If the port differs from the original more than
  this run does, it fails.

Both are measured on the given checkpoint, so no limit is chosen by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import torch

from convert.quantize import precision_of
from mlx_parity.compare import BUDGET
from mlx_parity.sides.mlx import to_mlx
from mlx_parity.sides.mlx import to_numpy as from_mlx
from mlx_parity.sides.truth import Arrays, to_torch
from parity_tests.models import Models
from parity_tests.parts import swap
from parity_tests.rounding import round_reference
from parity_tests.walks import walks
from port.config import CosyVoice3Config
from port.llm.sampling import SeededDraws, ras_sampling
from port.model import CosyVoice3Model as PortModel

STEPS = 64  # speech tokens of the language model that are compared
SPOKEN = ("token", "prompt_token", "prompt_feat", "embedding", "noise")
Kind = Literal["error", "divergence", "snr", "share"]


@dataclass(frozen=True)
class Quality:
    """One number of a variant against the float32 original.

    Args:
        metric, stage, unit: what was measured.
        value: of the port.
        rounding, variety: of the reference, see above.
        limit: the stricter of the two bounds that follow.
        status: PASS or FAIL.
    """

    metric: str
    stage: str
    unit: str
    value: float
    rounding: float
    variety: float
    limit: float
    status: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"value": self.value if math.isfinite(self.value) else None}

    def __str__(self) -> str:
        return f"{self.value:.3g} {self.unit}, limit {self.limit:.3g}"


# Metric -> stage, unit, kind.
METRICS: dict[str, tuple[str, str, Kind]] = {
    "logits KL": ("llm", "nats", "divergence"),
    "logits top-1": ("llm", "share", "share"),
    "sampled tokens": ("llm", "share", "share"),
    "mel SNR": ("flow", "dB", "snr"),
    "log-mel distance": ("flow", "nepers", "error"),
    "waveform SNR": ("whole", "dB", "snr"),
    "prompt tokens": ("speech_tokenizer", "share", "share"),
}


def bound(kind: Kind, rounding: float, variety: float, count: int) -> float:
    """The limit of a metric: BUDGET times the error of rounding, but never beyond the original's variety.

    Args:
        count: how many items a share counts. One may differ by chance, and the variety is lowered by two standard
            errors.
    """
    if kind == "share":
        variety -= 2 * math.sqrt(variety * (1 - variety) / count)
    budget = {
        "error": BUDGET * rounding,
        "divergence": BUDGET**2 * rounding,  # it grows with the square of the error
        "snr": rounding - 20 * math.log10(BUDGET),
        "share": 1 - BUDGET * max(1 - rounding, 1 / count),
    }[kind]
    return max(budget, variety) if kind in ("snr", "share") else min(budget, variety)


# Parts that are measured together: the flow's mel is the vocoder's input.
SPEECH = ("flow", "vocoder")
GROUPS: tuple[tuple[str, ...], ...] = (("speech_tokenizer",), ("llm",), SPEECH)


def measure(models: Models, group: tuple[str, ...] | None = None) -> list[Quality]:
    """Compare the port of `models` with its float32 reference, in the stages of reduced precision.

    Args:
        models: both sides; only parts of the group are used.
        group: one of `GROUPS`; all of them when None.
    """
    if group is None:
        return [row for each in GROUPS for row in measure(models, each)]
    found = precision_of(models.folder)
    stages = set(found.stages) | ({"whole"} if found.stages & {"flow", "vocoder"} else set())
    if not found.stages & set(group):
        return []
    material = _material(models, group)
    original, other = (_reference(models.single, material, group, other) for other in (False, True))
    rounded = _reference(round_reference(models.single, models.folder, models.config, group), material, group)
    sides = {"value": _port(models.port, material, group), "rounding": rounded, "variety": other}
    fixed = material.get("spoken"), models.config
    numbers = {side: _numbers(original, results, *fixed) for side, results in sides.items()}
    numbers["variety"] |= _variety(original, *fixed)
    rows = []
    for metric, (stage, unit, kind) in METRICS.items():
        if stage not in stages or metric not in numbers["value"]:
            continue
        value, rounding = numbers["value"][metric], numbers["rounding"][metric]
        variety, count = (
            numbers["variety"][metric],
            original["prompt_tokens"].size if "prompt_tokens" in original else STEPS,
        )
        limit = bound(kind, rounding, variety, count)
        kept = value >= limit if kind in ("snr", "share") else value <= limit  # False for NaN
        rows.append(Quality(metric, stage, unit, value, rounding, variety, limit, "PASS" if kept else "FAIL"))
    return rows


# ---- runs


def _material(models: Models, group: tuple[str, ...]) -> Arrays:
    """Inputs, and the original's sampled tokens and excitation, which all runs use."""
    single: Any = models.single
    plans, rng = walks(models.config), np.random.default_rng(1)
    inputs = {**plans["walk.llm"].inputs, **plans["walk.whole"].inputs, **plans["walk.speech_tokenizer"].inputs}
    inputs |= {f"other_{k}": rng.standard_normal(inputs[k].shape).astype(np.float32) for k in ("noise", "mel")}
    m = {name: to_torch(value, torch.float32) for name, value in inputs.items()}
    with torch.inference_mode():
        if "llm" in group:
            inputs["spoken"] = _speak(single.llm, models.config, m)
        if group == SPEECH:
            mel = single.flow.inference(**{name: m[name] for name in SPOKEN})
            inputs["s"] = single.vocoder.inference(mel, sine_waves=m["sine_waves"])[1].numpy()
    return inputs


def _speak(llm: Any, config: CosyVoice3Config, m: Mapping[str, torch.Tensor]) -> np.ndarray:
    """(1, STEPS) tokens that the original samples; never a stop token."""
    cache, step = llm.qwen2.make_cache(), llm.prepare_input(m["text"], m["prompt_text"], m["prompt_speech_token"])
    draws, tokens = SeededDraws(0), list[int]()
    for _ in range(STEPS):
        scores = llm.step(step, cache)[: config.llm.speech_token_size].numpy().copy()
        tokens.append(ras_sampling(scores, tokens, draws, config.llm.sampling))
        step = llm.embed_speech(torch.tensor([tokens[-1:]]))
    return np.array([tokens], np.int32)


def _reference(model: Any, material: Arrays, group: tuple[str, ...], other: bool = False) -> Arrays:
    m, found = {name: to_torch(value, torch.float32) for name, value in material.items()}, {}
    with torch.inference_mode():
        if "speech_tokenizer" in group:
            found["prompt_tokens"] = model.speech_tokenizer(m["other_mel" if other else "mel"], m["mel_len"])[0]
        if "llm" in group:
            prompt = model.llm.prepare_input(m["text"], m["prompt_text"], m["prompt_speech_token"])
            sequence = torch.cat((prompt, model.llm.embed_speech(m["spoken"])), dim=1)
            found["scores"] = model.llm.scores(model.llm.qwen2(sequence)[0, prompt.shape[1] - 1 : -1])
        if group == SPEECH:
            noise = {"noise": m["other_noise"]} if other else {}
            found["mel"] = model.flow.inference(**{name: m[name] for name in SPOKEN} | noise)
            found["wav"] = model.vocoder.decode(found["mel"], m["s"])
    return {name: value.numpy().astype(np.float64) for name, value in found.items()}


def _port(model: PortModel, material: Arrays, group: tuple[str, ...]) -> Arrays:
    turned = {name: swap(material[name]) for name in ("mel", "noise", "s") if name in material}
    m, found = {name: to_mlx(value) for name, value in (material | turned).items()}, {}
    if "speech_tokenizer" in group:
        found["prompt_tokens"] = from_mlx(model.speech_tokenizer(m["mel"], m["mel_len"])[0])
    if "llm" in group:
        prompt = model.llm.prepare_input(m["text"], m["prompt_text"], m["prompt_speech_token"])
        sequence = mx.concatenate([prompt, model.llm.embed_speech(m["spoken"])], axis=1)
        found["scores"] = from_mlx(model.llm.scores(model.llm.qwen2(sequence)[0, prompt.shape[1] - 1 : -1]))
    if group == SPEECH:
        mel = model.flow.inference(**{name: m[name] for name in SPOKEN})
        found |= {"mel": swap(from_mlx(mel)), "wav": from_mlx(model.vocoder.decode(mel, m["s"]))}
    return {name: value.astype(np.float64) for name, value in found.items()}


def _sampled(scores: np.ndarray, spoken: np.ndarray, config: CosyVoice3Config, seed: int) -> np.ndarray:
    """The sampler's choice at each position after the spoken tokens, with a seed of its own for each position."""
    history, chosen = spoken[0].tolist(), []
    for i, row in enumerate(scores[:, : config.llm.speech_token_size].astype(np.float32)):
        draws, unknown = SeededDraws(1000 * seed + i), np.isnan(row).any()
        chosen.append(-1 if unknown else ras_sampling(row.copy(), history[:i], draws, config.llm.sampling))
    return np.array(chosen)


# ---- numbers


def _numbers(original: Arrays, found: Arrays, spoken: np.ndarray | None, config: CosyVoice3Config) -> dict[str, float]:
    """Metrics of one run against the original, for the results that the run has."""
    numbers = {}
    if "prompt_tokens" in found:
        numbers["prompt tokens"] = np.mean(found["prompt_tokens"] == original["prompt_tokens"])
    if "scores" in found:
        p, q = original["scores"], found["scores"]
        tokens, others = (_sampled(scores, spoken, config, 0) for scores in (p, q))
        numbers["logits KL"] = np.mean(np.sum(np.exp(p) * (p - q), axis=-1))
        numbers["logits top-1"] = np.mean(p.argmax(axis=-1) == q.argmax(axis=-1))
        numbers["sampled tokens"] = np.mean(tokens == others)
    if "mel" in found:
        numbers["mel SNR"] = _snr(found["mel"], original["mel"])
        numbers["log-mel distance"] = np.mean(np.abs(found["mel"] - original["mel"]))
        numbers["waveform SNR"] = _snr(found["wav"], original["wav"])
    return {metric: float(number) for metric, number in numbers.items()}


def _variety(original: Arrays, spoken: np.ndarray | None, config: CosyVoice3Config) -> dict[str, float]:
    """How far the original's own choices are from each other: its entropy, and two draws from the same scores."""
    if "scores" not in original:
        return {}
    p = original["scores"]
    first, second = (_sampled(p, spoken, config, seed) for seed in (0, 1))
    return {
        "logits KL": float(np.mean(-np.sum(np.exp(p) * p, axis=-1))),
        "logits top-1": float(np.mean(p.argmax(axis=-1) == first)),
        "sampled tokens": float(np.mean(first == second)),
    }


def _snr(found: np.ndarray, original: np.ndarray) -> float:
    """SNR in dB; 320 for equal signals."""
    noise = float(np.mean((found - original) ** 2)) / float(np.mean(original**2))
    return -10 * math.log10(noise) if noise > 1e-32 else 320.0 if noise == noise else math.nan
