"""mlx-audio-plus: the flow decoder, one function per part.

b batch, n frames
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_audio.tts.models.cosyvoice3 import convolution, dit, flow

from parity_tests.adapters.mlx_audio_plus_parts.weights import array, converted, inputs, load
from parity_tests.adapters.parts import Job, Parts
from port.config import FlowConfig, from_dict

PARTS = Parts()


@PARTS.offers("flow.masks.make_pad_mask")
def make_pad_mask(job: Job) -> Mapping[str, Any]:
    return {"mask": flow.make_pad_mask(array(job.inputs["lengths"]), job.call.get("max_len"))}


@PARTS.offers("flow.masks.subsequent_chunk_mask")
def subsequent_chunk_mask(job: Job) -> Mapping[str, Any]:
    return {"mask": dit.subsequent_chunk_mask(**job.call)}


@PARTS.offers("flow.masks.add_optional_chunk_mask")
def add_optional_chunk_mask(job: Job) -> Mapping[str, Any]:
    masks, chunk = array(job.inputs["masks"]), job.call["static_chunk_size"]
    b, _, n = masks.shape
    found = dit.add_optional_chunk_mask(mx.zeros((b, n, 1)), masks[:, 0], False, False, 0, chunk, -1)[:, 0]
    if chunk:
        return {"mask": found}
    if not mx.array_equal(found, mx.broadcast_to(found[:, :1], found.shape)):
        raise ValueError("without chunks every query must have the same mask")
    return {"mask": found[:, :1]}  # the original has one query, as all are alike


@PARTS.offers("flow.layers.RotaryEmbedding")
def rotary(job: Job) -> Mapping[str, Any]:
    job.option("offset", 0)
    freqs, _ = dit.RotaryEmbedding(job.config["dim"]).forward_from_seq_len(job.call["seq_len"])
    return {"freqs": freqs}


@PARTS.offers("flow.layers.apply_rotary_pos_emb")
def apply_rotary(job: Job) -> Mapping[str, Any]:
    return {"y": dit.apply_rotary_pos_emb(array(job.inputs["t"]), array(job.inputs["rope"]))}


@PARTS.offers("flow.layers.GRN")
def grn(job: Job) -> Mapping[str, Any]:
    return {"y": load(dit.GRN(**job.config), job.state)(**inputs(job))}


LAYERS = {
    "SinusPositionEmbedding": dit.SinusPositionEmbedding,
    "TimestepEmbedding": dit.TimestepEmbedding,
    "CausalConvPositionEmbedding": dit.CausalConvPositionEmbedding,
    "AdaLayerNormZero": dit.AdaLayerNormZero,
    "AdaLayerNormZero_Final": dit.AdaLayerNormZeroFinal,
    "FeedForward": dit.FeedForward,
    "Attention": dit.Attention,
    "DiTBlock": dit.DiTBlock,
    "InputEmbedding": dit.InputEmbedding,
    "PreLookaheadLayer": convolution.PreLookaheadLayer,
}


@PARTS.offers(
    *(f"flow.layers.{name}" for name in list(LAYERS)[:8]), "flow.dit.InputEmbedding", "flow.lookahead.PreLookaheadLayer"
)
def layer(job: Job) -> Mapping[str, Any]:
    built = LAYERS[job.part.path.rpartition(".")[2]](**job.config)
    if job.state:
        load(built, converted(job))
    arguments: dict[str, Any] = inputs(job)
    if "rope" in arguments:
        arguments["rope"] = (arguments["rope"], mx.array(1.0))
    found = built(**arguments)
    return dict(zip(job.part.outputs, found if isinstance(found, tuple) else (found,), strict=True))


@PARTS.offers("flow.dit.DiT")
def estimator(job: Job) -> Mapping[str, Any]:
    model = load(dit.DiT(**job.config), converted(job))
    arguments = inputs(job)
    return {"y": model(**arguments | {"mask": arguments["mask"][:, 0]}, **job.call)}


@PARTS.offers("flow.matching.cosine_schedule")
def cosine_schedule(job: Job) -> Mapping[str, Any]:
    """The times at which the solver evaluates the velocity, and its end point: with velocity 1, the final time."""
    times: list[mx.array] = []

    def ones(x: mx.array, t: mx.array, **_: Any) -> mx.array:
        times.append(t[0])
        return mx.ones_like(x)

    zeros, spks = mx.zeros((1, 1, 1)), mx.zeros((1, 1))
    solver = flow.CosyVoice3ConditionalCFM(ones, rand_noise=zeros)
    end, _ = solver(zeros, mx.ones((1, 1, 1)), spks, zeros, n_timesteps=job.call["n_timesteps"])
    return {"t_span": mx.stack([*times, end[0, 0, 0]])}


def matching(config: FlowConfig, noise: np.ndarray) -> flow.CosyVoice3ConditionalCFM:
    c = config.dit
    model = dit.DiT(
        dim=c.dim,
        depth=c.depth,
        heads=c.heads,
        dim_head=c.dim_head,
        ff_mult=c.ff_mult,
        mel_dim=c.mel_dim,
        mu_dim=c.mu_dim,
        spk_dim=c.spk_dim,
        out_channels=c.out_channels,
        static_chunk_size=c.static_chunk_size,
    )
    return flow.CosyVoice3ConditionalCFM(
        model, inference_cfg_rate=config.cfm.inference_cfg_rate, rand_noise=array(noise)
    )


@PARTS.offers("flow.matching.CausalConditionalCFM")
def cfm(job: Job) -> Mapping[str, Any]:
    job.option("guidance", "batched")
    job.option("temperature", 1.0)
    arguments = inputs(job)
    model = load(matching(from_dict(FlowConfig, dict(job.config)), job.given("noise")), converted(job))
    call = {k: v for k, v in job.call.items() if k in ("streaming", "n_timesteps")}
    y, _ = model(*(arguments[name] for name in ("mu", "mask", "spks", "cond")), **call)
    return {"y": y}


def flow_decoder(config: FlowConfig, noise: np.ndarray) -> flow.CausalMaskedDiffWithDiT:
    """The whole flow decoder without weights; it starts from `noise` (1, C, n)."""
    width, ahead = config.input_size, config.pre_lookahead_len
    return flow.CausalMaskedDiffWithDiT(
        input_size=width,
        output_size=config.output_size,
        spk_embed_dim=config.spk_embed_dim,
        vocab_size=config.vocab_size,
        token_mel_ratio=config.token_mel_ratio,
        pre_lookahead_len=ahead,
        pre_lookahead_layer=convolution.PreLookaheadLayer(width, config.pre_lookahead_channels, ahead),
        decoder=matching(config, noise),
        n_timesteps=config.cfm.n_timesteps,
    )


@PARTS.offers("flow.decoder.CausalMaskedDiffWithDiT.inference")
def decoder(job: Job) -> Mapping[str, Any]:
    job.option("guidance", "batched")
    model = flow_decoder(from_dict(FlowConfig, dict(job.config)), job.given("noise"))
    load(model, converted(job))
    arguments = inputs(job)
    sequences = {name: arguments[name] for name in ("token", "prompt_token", "prompt_feat")}
    lengths = {f"{name}_len": mx.array([value.shape[1]]) for name, value in sequences.items()}
    call = {k: v for k, v in job.call.items() if k in ("streaming", "finalize")}
    feat, _ = model.inference(**sequences, **lengths, embedding=arguments["embedding"], **call)
    return {"feat": feat}
