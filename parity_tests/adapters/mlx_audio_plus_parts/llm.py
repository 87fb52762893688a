"""mlx-audio-plus: language model and sampling, one function per part; the backbone is mlx-lm's Qwen2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_audio.tts.models.cosyvoice3.llm import llm
from mlx_audio.tts.models.cosyvoice3.scripts import convert
from mlx_lm.models import qwen2

from parity_tests.adapters.mlx_audio_plus_parts.weights import array, inputs, load
from parity_tests.adapters.parts import Job, Parts
from port.config import LLMConfig, Qwen2Config, from_dict

PARTS = Parts()


def qwen2_args(config: Qwen2Config) -> qwen2.ModelArgs:
    return qwen2.ModelArgs(
        model_type="qwen2",
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        rms_norm_eps=config.rms_norm_eps,
        vocab_size=config.vocab_size,
        num_key_value_heads=config.num_key_value_heads,
        rope_theta=config.rope_theta,
    )


class Behind:
    """An empty key-value cache at a given position."""

    def __init__(self, angles: np.ndarray) -> None:
        self.offset = int(angles[0, 0])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values


@PARTS.offers("llm.qwen2.Qwen2RMSNorm")
def rms_norm(job: Job) -> Mapping[str, Any]:
    norm = load(nn.RMSNorm(job.config["hidden_size"], eps=job.config["eps"]), job.state)
    return {"y": norm(**inputs(job))}


@PARTS.offers("llm.qwen2.Qwen2RotaryEmbedding")
def qwen2_rotary(job: Job) -> Mapping[str, Any]:
    """mlx-lm has no tables; rotating (1, 0) gives (cos, sin)."""
    dim, length = job.config["head_dim"], job.call["length"]
    rope = qwen2.initialize_rope(dim, base=job.config["theta"], traditional=False)
    unit = mx.concatenate([mx.ones((1, 1, length, dim // 2)), mx.zeros((1, 1, length, dim // 2))], axis=-1)
    cos, sin = mx.split(rope(unit, offset=job.call.get("offset", 0))[0, 0], 2, axis=-1)
    return {name: mx.concatenate([half, half], axis=-1) for name, half in (("cos", cos), ("sin", sin))}


@PARTS.offers("llm.qwen2.Qwen2Attention", "llm.qwen2.Qwen2DecoderLayer")
def qwen2_layer(job: Job) -> Mapping[str, Any]:
    part = qwen2.Attention if job.part.path.endswith("Attention") else qwen2.TransformerBlock
    layer = load(part(qwen2_args(from_dict(Qwen2Config, dict(job.config)))), job.state)
    x = array(job.inputs["x"])
    return {"y": layer(x, mask="causal" if x.shape[1] > 1 else None, cache=Behind(job.inputs["rope"]))}


@PARTS.offers("llm.qwen2.Qwen2MLP")
def qwen2_mlp(job: Job) -> Mapping[str, Any]:
    mlp = qwen2.MLP(job.config["hidden_size"], job.config["intermediate_size"])
    return {"y": load(mlp, job.state)(**inputs(job))}


@PARTS.offers("llm.qwen2.Qwen2Model")
def qwen2_model(job: Job) -> Mapping[str, Any]:
    model = qwen2.Model(qwen2_args(from_dict(Qwen2Config, dict(job.config))))
    load(model, convert.convert_qwen2_weights(job.official()))
    hidden, _ = llm.Qwen2Encoder(model).forward_one_step(array(job.inputs["inputs_embeds"]))
    return {"hidden": hidden}


def language_model(job: Job, step: Any) -> tuple[llm.CosyVoice3LM, list[mx.array]]:
    """`CosyVoice3LM` with the function `step` as backbone, and a list that collects the scores given to sampling."""
    config = from_dict(LLMConfig, dict(job.config))
    width, seen = config.qwen2.hidden_size, []

    def sampling(scores: mx.array, *_: Any) -> int:
        seen.append(scores)
        return 0

    backbone = nn.Embedding(config.qwen2.vocab_size, width)
    backbone.weight = mx.array(job.state["llm.model.model.embed_tokens.weight"])
    model = llm.CosyVoice3LM(width, width, config.speech_token_size, config.num_special_tokens, None, sampling)
    load(model, convert.convert_speech_weights(job.official()))
    model.llm = SimpleNamespace(embed_tokens=backbone, forward_one_step=step)
    return model, seen


@PARTS.offers("llm.speech_lm.CosyVoice3LM.scores")
def scores(job: Job) -> Mapping[str, Any]:
    model, seen = language_model(job, lambda hidden, cache: (hidden, []))
    for i in range(job.inputs["hidden"].shape[1]):
        list(model._inference_loop(array(job.inputs["hidden"][:, : i + 1]), 25, 0, 1))
    return {"scores": mx.stack(seen)[None]}


@PARTS.offers("llm.speech_lm.CosyVoice3LM.prepare_input")
def prepare_input(job: Job) -> Mapping[str, Any]:
    fed: list[mx.array] = []

    def step(lm_input: mx.array, cache: Any) -> tuple[mx.array, list]:
        fed.append(lm_input)
        return lm_input, []

    model, _ = language_model(job, step)
    sequences = {name: array(job.inputs[name]) for name in ("text", "prompt_text", "prompt_speech_token")}
    lengths = {f"{name}_len": mx.array([value.shape[1]]) for name, value in sequences.items()}
    next(model.inference(**sequences, **lengths, embedding=None))
    return {"lm_input": fed[0]}


@contextlib.contextmanager
def recorded(rows: np.ndarray) -> Iterator[None]:
    """Replace the package's categorical draws: the largest ratio of probability to a recorded Exp(1) number wins."""
    left = iter(rows)

    def categorical(logits: mx.array) -> mx.array:
        return mx.argmax(logits - mx.log(mx.array(next(left)[: logits.shape[0]])))

    with mock.patch.object(mx.random, "categorical", categorical):
        yield


@PARTS.offers("llm.sampling.nucleus_sampling", "llm.sampling.ras_sampling", "llm.speech_lm.CosyVoice3LM.sampling_ids")
def sampling(job: Job) -> Mapping[str, Any]:
    decoded, found = job.inputs.get("decoded_tokens"), []
    for i, (row, draws) in enumerate(zip(job.inputs["scores"], job.inputs["draws"], strict=True)):
        with recorded(draws):
            if job.part.path.endswith("nucleus_sampling"):
                token = llm.nucleus_sampling(array(row), job.call["top_p"], job.call["top_k"])
            elif job.part.path.endswith("ras_sampling"):
                token = llm.ras_sampling(array(row), decoded[i].tolist(), 25)
            else:
                rule = SimpleNamespace(sampling=llm.ras_sampling, speech_token_size=job.config["speech_token_size"])
                chosen = llm.CosyVoice3LM.sampling_ids
                token = chosen(rule, array(row), decoded[i].tolist(), 25, ignore_eos=job.call["ignore_eos"])
        found.append(token)
    return {"tokens": np.array(found)}
