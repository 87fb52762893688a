"""Walks through the whole model: each stage on the checkpoint's weights, and all from tokens to samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlx_parity.sides.walk import Ground, Walk
from parity_tests.parts import PARTS, swap
from port.config import CosyVoice3Config
from port.fast.modulation import TimeTable, is_baked
from port.flow.layers import RotaryEmbedding

PROMPT_TOKENS, TOKENS, TEXT, STEPS = 12, 34, 9, 6

BAKED = "the folder holds tables of the fixed timesteps in place of these weights"
# Parts that a port with baked timesteps cannot run alone: in the whole model its tables replace them.
BY_TIME = ("SinusPositionEmbedding", "TimestepEmbedding", "AdaLayerNormZero", "AdaLayerNormZero_Final", "DiTBlock")


@contextmanager
def _without_tables(model: Any) -> Iterator[None]:
    """Replace the tables of fast forms by the layers that compute them, if these are still there."""
    dit = model.flow.decoder.estimator
    times, rotary = dit.time_embed, dit.rotary_embed
    if isinstance(times, TimeTable) and "embedding" in times:
        dit.time_embed = times.embedding
    dit.rotary_embed = RotaryEmbedding(dit.config.dim_head)
    try:
        yield
    finally:
        dit.time_embed, dit.rotary_embed = times, rotary


def _lacking(model: Any) -> dict[str, str]:
    baked = is_baked(model.flow.decoder.estimator)
    return dict.fromkeys((f"flow.layers.{name}" for name in BY_TIME if baked), BAKED)


GROUND = Ground(
    PARTS.values(),
    # Official names, which the reference keeps -> names in the port; MLX puts a sequence's layers under `layers`.
    spelled={
        "llm.llm.model.model": "llm.qwen2",
        "speaker.head.layer1.": "speaker.head.layer1.layers.",
        "speaker.head.layer2.": "speaker.head.layer2.layers.",
    },
    fused=("vocoder.f0_predictor.condnet.",),  # the port computes the pitch in float64, by matrix products
    inside=(".phases",),
    recording=_without_tables,
    lacking=_lacking,
    again=lambda name: f"python -m parity_tests.trace {name}",
)


def teacher_forced(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Scores after the prompt and after each of the given tokens, one step at a time through the cache."""
    llm = model.llm
    cache = llm.qwen2.make_cache()
    prompt = llm.prepare_input(arguments["text"], arguments["prompt_text"], arguments["prompt_speech_token"])
    scores = [llm.step(prompt, cache)]
    tokens = arguments["token"]
    for i in range(STEPS):
        scores.append(llm.step(llm.embed_speech(tokens[:, i : i + 1]), cache))
    return {"scores": scores}


def _tokenize(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    tokens, lengths = model.speech_tokenizer(**arguments)
    return {"tokens": tokens, "lengths": lengths}


def _embed(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"embedding": model.speaker(**arguments)}


def _flow(streaming: bool, finalize: bool, guidance: str = "batched") -> Any:
    def run(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"streaming": streaming, "finalize": finalize, "guidance": guidance}
        return {"feat": model.flow.inference(**arguments, **call)}

    return run


def _vocoder(finalize: bool) -> Any:
    def run(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        wav, s = model.vocoder.inference(**arguments, finalize=finalize)
        return {"wav": wav, "s": s}

    return run


def _whole(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Tokens to samples: the flow's mel goes into the vocoder unchanged."""
    feat = model.flow.inference(**{k: v for k, v in arguments.items() if k != "sine_waves"})
    wav, _ = model.vocoder.inference(feat, sine_waves=arguments["sine_waves"])
    return {"feat": feat, "wav": wav}


def walks(config: CosyVoice3Config, seed: int = 0) -> dict[str, Walk]:
    """All walks for a model of these sizes, by name; small enough for a tiny model, valid for a real one."""
    rng = np.random.default_rng(seed)
    flow, vocoder, llm = config.flow, config.vocoder, config.llm
    mels, frames = flow.output_size, flow.token_mel_ratio * (PROMPT_TOKENS + TOKENS)
    hop = vocoder.hop_samples

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def ids(count: int, high: int) -> np.ndarray:
        return rng.integers(0, high, (1, count)).astype(np.int32)

    text = {
        "text": ids(TEXT, llm.qwen2.vocab_size),
        "prompt_text": np.concatenate(
            [ids(4, llm.qwen2.vocab_size), np.array([[llm.end_of_prompt]], np.int32), ids(3, llm.qwen2.vocab_size)],
            axis=1,
        ),
        "prompt_speech_token": ids(PROMPT_TOKENS, llm.speech_token_size),
        "token": ids(STEPS, llm.speech_token_size),
    }
    spoken = {
        "token": ids(TOKENS, flow.vocab_size),
        "prompt_token": ids(PROMPT_TOKENS, flow.vocab_size),
        "prompt_feat": normal(1, flow.token_mel_ratio * PROMPT_TOKENS, mels),
        "embedding": normal(1, flow.spk_embed_dim),
        "noise": normal(1, mels, frames),
    }
    waves = rng.uniform(0, 1, (1, frames * hop, vocoder.nb_harmonics + 1)).astype(np.float32)
    mel = {"speech_feat": normal(1, mels, 24), "sine_waves": waves}
    to_port, from_port = {"noise": swap, "speech_feat": swap}, {"feat": swap, "s": swap}
    heard = {"mel": normal(1, config.speech_tokenizer.n_mels, 150), "mel_len": np.array([150], np.int32)}
    voice = {"x": normal(1, 230, config.speaker.n_mels)}
    plans = [
        Walk("walk.speech_tokenizer", "speech_tokenizer", _tokenize, heard, GROUND, {"mel": swap}),
        Walk("walk.speaker", "speaker", _embed, voice, GROUND),
        Walk("walk.llm", "llm", teacher_forced, text, GROUND),
    ]
    plans += [
        Walk(f"walk.flow.{name}", "flow", run, spoken, GROUND, to_port, from_port)
        for name, run in (
            ("full", _flow(False, True)),
            ("chunked", _flow(True, False)),
            ("separate", _flow(True, True, "separate")),
        )
    ]
    plans += [
        Walk("walk.vocoder.end", "vocoder", _vocoder(True), mel, GROUND, to_port, from_port),
        Walk("walk.vocoder.more", "vocoder", _vocoder(False), mel, GROUND, to_port, from_port),
        Walk("walk.whole", "whole", _whole, {**spoken, "sine_waves": waves}, GROUND, to_port, from_port),
    ]
    return {plan.name: plan for plan in plans}
