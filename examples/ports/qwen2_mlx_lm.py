"""Qwen2 of mlx_lm against Qwen2 of transformers: whole prompts, and token by token with a cache. Grouped heads."""

import json
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.models import base, cache, qwen2
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from mlx_parity import Finding, Pair, Subject, mlx_module, torch_module

PROMPT, WORDS = 9, 101  # tokens of the first call, of which each further one has one; entries of the vocabulary
BASE = dict(rope_type="default", rope_theta=1e6)
SIZES: dict[str, Any] = dict(hidden_size=64, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, vocab_size=WORDS, rms_norm_eps=1e-4, tie_word_embeddings=False)
SIZES["rope_parameters"] = BASE


def torch_steps(self, ids):
    kept, parts = DynamicCache(), [ids[:, :PROMPT], *ids[:, PROMPT:].split(1, dim=1)]
    return torch.cat([self.model(part, past_key_values=kept).logits for part in parts], 1)


def mlx_steps(self, ids):
    kept, parts = cache.make_prompt_cache(self.model), mx.split(ids, range(PROMPT, ids.shape[1]), axis=1)
    return mx.concatenate([self.model(part, cache=kept) for part in parts], axis=1)


def models(seed, **more):
    """Equal weights; the port is built as its users build it, from the config.json that transformers writes."""
    torch.manual_seed(seed)
    reference = Qwen2ForCausalLM(Qwen2Config(**SIZES | more))
    reference.config.use_cache = False
    for weight in reference.parameters():
        torch.nn.init.normal_(weight, 0.0 if weight.ndim > 1 else 1.0, weight.shape[-1] ** -0.5)
    config = json.loads(reference.config.to_json_string())
    port = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    port.args.sliding_window = config["sliding_window"]  # from_dict drops it, and nothing reads it
    weights = {key: mx.array(value.numpy()) for key, value in reference.state_dict().items()}
    port.load_weights([*port.sanitize(weights).items()])
    return reference, port


def with_rope_parameters(config):
    more = dict(rope_theta=config["rope_parameters"]["rope_theta"], rope_scaling=config["rope_parameters"])
    return base.BaseModelArgs.from_dict.__func__(qwen2.ModelArgs, config | more)


ROTARY = Finding(
    title="The rotary base and scaling of transformers 5 are ignored",
    where=qwen2.ModelArgs,
    line="rope_theta: float = 1000000",
    fix="rope_parameters: Optional[dict] = None  # read in __post_init__, as ModelArgs of qwen3.py does",
    notice="transformers 5 writes rope_theta and rope_scaling into rope_parameters, which ModelArgs drops silently: "
    "a checkpoint that it saved with another base than 1000000, or with YaRN, gets wrong positions and answers worse.",
    mend=lambda: patch.object(qwen2.ModelArgs, "from_dict", with_rope_parameters),
)
WINDOW = Finding(
    title="The sliding window is ignored",
    where=qwen2.Qwen2Model.__call__,
    line="mask = create_attention_mask(h, cache[0])",
    fix="mask = create_attention_mask(h, cache[0], window_size=self.args.sliding_window)",
    notice="With use_sliding_window every layer still attends to all of the past: longer prompts give other tokens.",
)


def subject(seed):
    ids = np.random.default_rng(seed).integers(0, WORDS, (2, 17))
    reference, port = models(seed)
    yarn = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=8)
    parts = [
        Pair("prompt", reference, port, ids),
        Pair("token by token", torch_module(torch_steps, model=reference), mlx_module(mlx_steps, model=port), ids),
        Pair("tied", *models(seed, tie_word_embeddings=True), ids),
        Pair("another rotary base", *models(seed, rope_parameters=BASE | dict(rope_theta=1e4)), ids),
        Pair("YaRN", *models(seed, rope_parameters=yarn, max_position_embeddings=32), ids),
        Pair("window", *models(seed, use_sliding_window=True, sliding_window=5, max_window_layers=0), ids),
    ]
    return Subject("mlx_lm Qwen2", "transformers Qwen2ForCausalLM", parts, [ROTARY, WINDOW], ["mlx-lm", "transformers"])
