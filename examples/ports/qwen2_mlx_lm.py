"""Qwen2 of mlx_lm against Qwen2 of transformers: whole prompts, and token by token with a cache."""

from __future__ import annotations

import json
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx_lm.models import qwen2
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import make_prompt_cache
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from mlx_parity import Finding, Pair, Subject

WORDS = 101
SIZES = dict(
    hidden_size=64, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=WORDS, rms_norm_eps=1e-6, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="default", rope_theta=1e6),
)  # fmt: skip


class TorchSteps(torch.nn.Module):
    """A prompt of all tokens but `STEPS`, then one token a call: logits of every position."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        cache = DynamicCache()
        return torch.cat([self.model(part, past_key_values=cache).logits for part in steps(ids)], 1)


class MlxSteps(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __call__(self, ids: mx.array) -> mx.array:
        cache = make_prompt_cache(self.model)
        return mx.concatenate([self.model(part, cache=cache) for part in steps(ids)], axis=1)


def steps(ids):  # noqa: ANN001, ANN201 (either framework's)
    """The prompt's nine tokens, then one at a time."""
    return [ids[:, :9], *(ids[:, i : i + 1] for i in range(9, ids.shape[1]))]


def models(seed: int, **more: object) -> tuple[torch.nn.Module, nn.Module]:
    """Equal weights; the port is built as its users build it, from the config.json that transformers writes."""
    torch.manual_seed(seed)
    reference = Qwen2ForCausalLM(Qwen2Config(**SIZES | more, use_cache=False))
    for weight in reference.parameters():
        torch.nn.init.normal_(weight, 0.0 if weight.ndim > 1 else 1.0, weight.shape[-1] ** -0.5)
    config = json.loads(reference.config.to_json_string())
    port = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    port.args.sliding_window = config["sliding_window"]  # what from_dict drops
    weights = {key: mx.array(value.numpy()) for key, value in reference.state_dict().items()}
    port.load_weights([*port.sanitize(weights).items()])
    return reference, port


def with_rope_parameters(config: dict) -> qwen2.ModelArgs:
    """What ModelArgs of qwen3.py does in __post_init__."""
    rope = config["rope_parameters"]
    return BaseModelArgs.from_dict.__func__(
        qwen2.ModelArgs, config | dict(rope_theta=rope["rope_theta"], rope_scaling=rope)
    )


ROTARY = Finding(
    "The rotary base and scaling of transformers 5 are ignored",
    qwen2.ModelArgs,
    "rope_theta: float = 1000000",
    "rope_parameters: Optional[dict] = None, read in __post_init__ as ModelArgs of qwen3.py does",
    "transformers 5 writes rope_theta and rope_scaling into rope_parameters, which ModelArgs drops without a word: a "
    "checkpoint with another base than 1000000, or with YaRN, answers worse the longer the prompt is.",
    mend=lambda: patch.object(qwen2.ModelArgs, "from_dict", with_rope_parameters),
)
WINDOW = Finding(
    "The sliding window is ignored",
    qwen2.Qwen2Model.__call__,
    "mask = create_attention_mask(h, cache[0])",
    "mask = create_attention_mask(h, cache[0], window_size=self.args.sliding_window)",
    "A checkpoint with use_sliding_window attends to all of the past in every layer: prompts longer than the window "
    "give other tokens.",
)


def subject(seed: int) -> Subject:
    """Grouped heads in all parts."""
    ids = np.random.default_rng(seed).integers(0, WORDS, (2, 17))
    reference, port = models(seed)
    other_base = dict(rope_parameters=dict(rope_type="default", rope_theta=1e4))
    yarn = dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=8))
    window = dict(use_sliding_window=True, sliding_window=5, max_window_layers=0)
    parts = [
        Pair("prompt", reference, port, ids),
        Pair("token by token", TorchSteps(reference), MlxSteps(port), ids),
        Pair("tied", *models(seed, tie_word_embeddings=True), ids),
        Pair("another rotary base", *models(seed, **other_base), ids),
        Pair("YaRN", *models(seed, **yarn, max_position_embeddings=32), ids),
        Pair("window", *models(seed, **window), ids),
    ]
    findings = [ROTARY, WINDOW]
    return Subject("mlx_lm Qwen2", "transformers Qwen2ForCausalLM", parts, findings, ("mlx-lm", "transformers"))
