"""The inputs of each kind of case, drawn from a seed.

Only numpy: every worker imports this file, whatever framework it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from port.config import CosyVoice3Config
from port.noise import rand_noise, sine_waves

SPEECH_OF_A_TEXT_TOKEN = 5  # speech tokens of a manifest's lines, as in real speech


def make_inputs(kind: str, size: Mapping[str, Any], config: CosyVoice3Config) -> dict[str, np.ndarray]:
    """Inputs of a kind of case in the reference's layouts (channels first), the same in every process."""
    rng = np.random.default_rng([ord(c) for c in kind])
    mels = config.flow.output_size

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def tokens(limit: int, count: int, rows: int = 1) -> np.ndarray:
        return rng.integers(0, limit, (rows, count)).astype(np.int32)

    if kind == "prefill":
        return {"inputs_embeds": normal(1, size["positions"], config.llm.qwen2.hidden_size)}
    if kind in ("decode", "batch"):
        return {
            "text": tokens(min(config.llm.qwen2.vocab_size, config.llm.end_of_prompt), size["text"]),
            "prompt_text": np.array([[config.llm.end_of_prompt]], np.int32),
            "prompt_speech_token": tokens(config.llm.speech_token_size, size["prompt"]),
        }
    if kind == "dit":
        n = size["frames"]
        return {"x": normal(1, mels, n), "mu": normal(1, mels, n), "cond": normal(1, mels, n)} | {
            "spks": normal(1, mels, scale=0.3)
        }
    if kind == "vocoder":
        n = size["frames"]
        return {"speech_feat": normal(1, mels, n), "sine_waves": _sine_waves(config, n)}
    ratio = config.flow.token_mel_ratio
    if kind == "manifest":
        size = {**size, "tokens": SPEECH_OF_A_TEXT_TOKEN * max(size["text"])}
    frames = ratio * (size["prompt"] + size["tokens"])
    found = {
        "token": tokens(config.flow.vocab_size, size["tokens"], size.get("rows", 1)),  # of one voice
        "prompt_token": tokens(config.flow.vocab_size, size["prompt"]),
        "prompt_feat": normal(1, ratio * size["prompt"], mels),
        "embedding": normal(1, config.flow.spk_embed_dim),
        "noise": rand_noise(frames),
    }
    if kind == "manifest":
        found["prompt_text"] = np.array([[config.llm.end_of_prompt]], np.int32)
    return found if kind == "flow" else found | {"sine_waves": _sine_waves(config, ratio * size["tokens"])}


def _sine_waves(config: CosyVoice3Config, frames: int) -> np.ndarray:
    return sine_waves(frames * config.vocoder.hop_samples)[None]
