"""The registry of parts: everything of CosyVoice 3 that can be compared, one row per part.

The port is channels-last; a row says which arguments and results differ in layout, and where the weights are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mlx_parity.part import Part
from mlx_parity.places import Places
from mlx_parity.sides.capture import Recorder
from parity_tests.live import live_state
from port import config as sizes

ROOT = Path(__file__).parents[1]
PLACES = Places(ROOT, ("reference", "port"))
_HOP = sizes.VocoderConfig().hop_samples


def swap(x: np.ndarray) -> np.ndarray:
    """(..., C, n) <-> (..., n, C)."""
    return np.ascontiguousarray(np.swapaxes(x, -1, -2))


def frame_mask(mask: np.ndarray) -> np.ndarray:
    """(b, 1, n) of any dtype -> (b, n) bool."""
    return mask[:, 0].astype(bool)


def frames_of_samples(f0: np.ndarray, hop: int = _HOP) -> np.ndarray:
    """(b, L, 1) with one value per frame of `hop` samples -> (b, L / hop).

    Raises:
        ValueError: f0 moves inside a frame, which the original never produces and the port cannot express.
    """
    frames = f0[:, :, 0].reshape(f0.shape[0], -1, hop)
    if not (frames == frames[:, :, :1]).all():
        raise ValueError("f0 changes inside a frame")
    return frames[:, :, 0]


# ---- conventions: the first position is arbitrary, so results are compared relative to it.
# n positions, d width of a head, c channels


def turns(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Angles (1, n, d) -> their cosines and sines."""
    angles = results["freqs"].astype(np.float64)
    angles = angles - angles[:, :1]
    return {"freqs": np.stack((np.cos(angles), np.sin(angles)))}


def table_turns(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cosines and sines (n, d) -> those of the angles relative to the first position."""
    z = results["cos"].astype(np.float64) + 1j * results["sin"]
    z = z * z[:1].conj()
    return {"tables": np.stack((z.real, z.imag))}


def turned(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rotated channels (..., n, c), adjacent ones paired -> each pair relative to the first position."""
    y = results["y"].astype(np.float64)
    z = y[..., ::2] + 1j * y[..., 1::2]
    z = z * z[..., :1, :].conj()
    return {"y": np.stack((z.real, z.imag))}


# ---- parts


def part(path: str, outputs: tuple[str, ...] = ("y",), /, **known: Any) -> Part:
    """A part of this model. The encoders of the front end are stages of their own; fast forms count as flow."""
    package, module = path.split(".")[:2]
    stage = module if module in ("speech_tokenizer", "speaker") else {"fast": "flow"}.get(package, package)
    return Part(path, outputs, stage=stage, read=sizes.from_dict, live=live_state, **known)


_CONV = {"to_port": {"x": swap, "cache": swap}, "from_port": {"y": swap}}
_IMAGE = {
    "to_port": {"x": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1))},
    "from_port": {"y": lambda y: np.ascontiguousarray(y.transpose(0, 3, 1, 2))},
}
_DIT = "flow:decoder.estimator"
_S3 = "speech_tokenizer:blocks.0"
_BLOCK = f"{_DIT}.transformer_blocks.0"
_LAYER = "llm:llm.model.model.layers.0"
_ROPE = {"rope": "flow.layers.rotary_tables"}
_TURNS, _CACHE, _PADS = ("rotary", "rope"), ("kv_cache",), ("causal_padding",)
_TOKENS = {"config": sizes.SpeechTokenizerConfig, "to_port": {"mel": swap}}
_FLOW, _HIFT = "flow.matching.CausalConditionalCFM", "vocoder.generator.CausalHiFTGenerator"
_QWEN2, _CFM, _VOCODER = {"config": sizes.Qwen2Config}, {"config": sizes.FlowConfig}, {"config": sizes.VocoderConfig}
_MEL = {"mu": swap, "cond": swap, "x": swap, "noise": swap, "mask": frame_mask}


def _valid_rows(call: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Tokens (or activations) with zeros past each row's length, where they are meaningless."""
    found, lengths = call(**arguments)
    found, lengths = np.asarray(found), np.asarray(lengths)
    inside = np.arange(found.shape[1]) < lengths[:, None]
    name = "tokens" if found.ndim == 2 else "y"
    return {name: found * (inside if found.ndim == 2 else inside[..., None]), "lengths": lengths}


PARTS = {
    found.path: found
    for found in (
        # front end
        part("frontend.audio.resample"),
        part("frontend.audio.mel_filterbank", ("basis",)),
        part("frontend.audio.mel_spectrogram", ("mel",), from_port={"mel": swap}),
        part("frontend.audio.log_mel_spectrogram", ("mel",), from_port={"mel": swap}),
        part("frontend.audio.kaldi_mel_banks", ("basis",)),
        part("frontend.audio.fbank", ("fbank",)),
        part("frontend.speech_tokenizer.FSMNMultiHeadAttention", at=f"{_S3}.attn", prepare=_ROPE),
        part("frontend.speech_tokenizer.ResidualAttentionBlock", at=_S3, prepare=_ROPE),
        part("frontend.speech_tokenizer.FSQVectorQuantization.activations", at="speech_tokenizer:quantizer"),
        part("frontend.speech_tokenizer.FSQVectorQuantization", ("tokens",), at="speech_tokenizer:quantizer"),
        *(
            part(
                f"frontend.speech_tokenizer.{name}", (y, "lengths"), at="speech_tokenizer:", run=_valid_rows, **_TOKENS
            )
            for name, y in (("S3TokenizerV3.activations", "y"), ("S3TokenizerV3", "tokens"))
        ),
        part("frontend.speaker.BasicResBlock", at="speaker:head.layer1.0", **_IMAGE),
        part("frontend.speaker.FCM", at="speaker:head", **_CONV),
        part("frontend.speaker.TDNNLayer", at="speaker:xvector.tdnn", **_CONV),
        part("frontend.speaker.CAMLayer", at="speaker:xvector.block1.tdnnd1.cam_layer", **_CONV),
        part("frontend.speaker.CAMDenseTDNNLayer", at="speaker:xvector.block1.tdnnd1", **_CONV),
        part("frontend.speaker.CAMDenseTDNNBlock", at="speaker:xvector.block1", **_CONV),
        part("frontend.speaker.TransitLayer", at="speaker:xvector.transit1", **_CONV),
        part("frontend.speaker.StatsPool", to_port={"x": swap}),
        part("frontend.speaker.DenseLayer", at="speaker:xvector.dense"),
        part("frontend.speaker.CAMPPlus", ("embedding",), at="speaker:", config=sizes.SpeakerConfig),
        # language model, bottom-up
        part("llm.qwen2.Qwen2RMSNorm", at=f"{_LAYER}.input_layernorm"),
        part("llm.qwen2.Qwen2RotaryEmbedding", ("cos", "sin"), follows=table_turns, words=_TURNS),
        part("llm.qwen2.Qwen2Attention", at=f"{_LAYER}.self_attn", prepare=_ROPE, words=_CACHE, **_QWEN2),
        part("llm.qwen2.Qwen2MLP", at=f"{_LAYER}.mlp", **_QWEN2),
        part("llm.qwen2.Qwen2DecoderLayer", at=_LAYER, prepare=_ROPE, words=_CACHE, **_QWEN2),
        part("llm.qwen2.Qwen2Model", ("hidden",), at="llm:llm.model.model", words=_CACHE, **_QWEN2),
        part("llm.speech_lm.CosyVoice3LM.prepare_input", ("lm_input",), at="llm:", config=sizes.LLMConfig),
        part("llm.speech_lm.CosyVoice3LM.scores", ("scores",), at="llm:", config=sizes.LLMConfig),
        # activations: fast forms of functions that the reference takes from torch
        part("fast.arithmetic.exp2", chained=False, witness=lambda x: torch.exp2(x)),
        part("fast.arithmetic.silu", chained=False, witness=lambda x: F.silu(x)),
        part("fast.arithmetic.mish", chained=False, witness=lambda x: F.mish(x)),
        part("fast.arithmetic.gelu_tanh", chained=False, witness=lambda x: F.gelu(x, approximate="tanh")),
        part(
            "fast.attention.attention_in_blocks",
            chained=False,
            witness=lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, scale=scale),
        ),
        # flow, bottom-up: the first failure in this order is the smallest wrong part
        part("flow.masks.make_pad_mask", ("mask",), chained=False),
        part("flow.masks.subsequent_chunk_mask", ("mask",), chained=False),
        part("flow.masks.add_optional_chunk_mask", ("mask",), chained=False),
        part("flow.layers.SinusPositionEmbedding"),
        part("flow.layers.TimestepEmbedding", at=f"{_DIT}.time_embed"),
        part("flow.layers.RotaryEmbedding", ("freqs",), at=f"{_DIT}.rotary_embed", follows=turns, words=_TURNS),
        part("flow.layers.apply_rotary_pos_emb", prepare=_ROPE, follows=turned, words=_TURNS),
        part("flow.layers.CausalConvPositionEmbedding", at=f"{_DIT}.input_embed.conv_pos_embed", words=_PADS),
        part("flow.layers.GRN", at="unit:grn"),
        part("flow.layers.ConvNeXtV2Block", at="unit:convnext"),
        part(
            "flow.layers.AdaLayerNormZero",
            ("y", "gate_msa", "shift_mlp", "scale_mlp", "gate_mlp"),
            at=f"{_BLOCK}.attn_norm",
            words=("AdaLN-Zero",),
        ),
        part("flow.layers.AdaLayerNormZero_Final", at=f"{_DIT}.norm_out", words=("AdaLN-Zero",)),
        part("flow.layers.FeedForward", at=f"{_BLOCK}.ff"),
        part("flow.layers.Attention", at=f"{_BLOCK}.attn", prepare=_ROPE),
        part("flow.layers.DiTBlock", at=_BLOCK, prepare=_ROPE),
        part("flow.dit.InputEmbedding", at=f"{_DIT}.input_embed"),
        part(
            "flow.dit.DiT", at=_DIT, config=sizes.DiTConfig, to_port=_MEL, from_port={"y": swap}, words=("transformer",)
        ),
        part("flow.lookahead.PreLookaheadLayer", at="flow:pre_lookahead_layer"),
        part("flow.matching.cosine_schedule", ("t_span",), words=("euler",)),
        part(
            f"{_FLOW}.velocity",
            ("v", "v_cond", "v_uncond"),
            at="flow:decoder",
            to_port=_MEL,
            from_port={"v": swap, "v_cond": swap, "v_uncond": swap},
            replay=False,  # the port's time is a Python number
            words=("cfg", "guidance"),
            **_CFM,
        ),
        part(_FLOW, at="flow:decoder", to_port=_MEL, from_port={"y": swap}, words=("cfg", "guidance", "euler"), **_CFM),
        part(
            "flow.decoder.CausalMaskedDiffWithDiT.inference",
            ("feat",),
            at="flow:",
            **dict(to_port={"noise": swap}, from_port={"feat": swap}, **_CFM),
        ),
        # vocoder, bottom-up
        part("vocoder.convolution.CausalConv1d", at="hift:conv_post", words=_PADS, **_CONV),
        part("vocoder.convolution.CausalConv1dDownSample", at="hift:source_downs.0", words=_PADS, **_CONV),
        part("vocoder.convolution.CausalConv1dUpsample", at="hift:ups.0", words=_PADS, **_CONV),
        part("vocoder.generator.Snake", at="hift:resblocks.0.activations1.0", **_CONV),
        part("vocoder.generator.ResBlock", at="hift:resblocks.0", **_CONV),
        part("vocoder.f0.CausalConvRNNF0Predictor", ("f0",), at="hift:f0_predictor", to_port={"x": swap}),
        part(
            "vocoder.source.SineGen2._f02sine",
            ("sines",),
            to_port={"f0": lambda f0: f0[:, ::_HOP]},
            from_port={"sines": lambda sines: np.repeat(sines, _HOP, axis=1)},
            replay=False,  # the port computes it on the host; SineGen2 itself is replayed
        ),
        part("vocoder.source.SineGen2", ("y", "uv"), to_port={"f0": frames_of_samples}),
        part(
            "vocoder.source.SourceModuleHnNSF",
            ("sine_merge", "uv"),
            at="hift:m_source",
            to_port={"f0": frames_of_samples},
        ),
        part("vocoder.stft.stft", ("real", "imag"), from_port={"real": swap, "imag": swap}),
        part("vocoder.stft.istft", ("x",), to_port={"magnitude": swap, "phase": swap}),
        part(f"{_HIFT}.decode", ("wav",), at="hift:", to_port={"x": swap, "s": swap}, **_VOCODER),
        part(
            f"{_HIFT}.inference",
            ("wav", "s"),
            at="hift:",
            **dict(to_port={"speech_feat": swap}, from_port={"s": swap}, **_VOCODER),
        ),
    )
}


def recorded(package: str, root: Any = None, keep: Callable[[np.ndarray], Any] = np.asarray) -> Recorder:
    """A recorder of all parts of one side, see sides/capture.py."""
    return Recorder(PARTS.values(), package, root, keep)
