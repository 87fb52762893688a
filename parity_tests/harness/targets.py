"""What can be compared: one row for each twin (a class, a method or a function that both packages have under one path).

The reference keeps the original's layouts; the port is channels-last. A row says which arguments and results differ in
layout, so that everything else (cases, golden files, traces, adapters) speaks the reference's layout only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from parity_tests.harness.conventions import table_turns, turned, turns
from port import config as sizes

_HOP = sizes.VocoderConfig().hop_samples

Change = Callable[[np.ndarray], np.ndarray]


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


@dataclass(frozen=True)
class Target:
    """One twin.

    Args:
        path: `module.Class`, `module.Class.method` or `module.function` below `reference` and `port`.
        outputs: names of the results, in order.
        at: place of its weights in the official checkpoint, `file:prefix`; '' when it has none.
        config: dataclass that the constructor takes; None when it takes keyword arguments.
        to_port: argument name -> change from the reference's layout to the port's.
        from_port: output name -> change back.
        prepare: argument name -> path of a twin function that both sides apply to it first.
        chained: both sides call it equally often inside the whole model.
        replay: it can be called again with the arguments that the other side got.
        run: how to call it when a plain call will not do; gets the callable and the arguments in the side's tensors.
        follows: results -> what the next part makes of them, in the reference's layout; compared in their place, where
            the values themselves are a convention.
        witness: torch's own function, where the reference calls that and has no twin; never part of a walk.
    """

    path: str
    outputs: tuple[str, ...] = ("y",)
    at: str = ""
    config: type | None = None
    to_port: Mapping[str, Change] = field(default_factory=dict)
    from_port: Mapping[str, Change] = field(default_factory=dict)
    prepare: Mapping[str, str] = field(default_factory=dict)
    run: Callable[[Any, dict[str, Any]], Any] | None = None
    chained: bool = True
    replay: bool = True
    follows: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    witness: Callable[..., Any] | None = None

    @property
    def stage(self) -> str:
        """Stage of the report; the two encoders of the front end are stages of their own, fast forms are the flow's."""
        package, module = self.path.split(".")[:2]
        package = "flow" if package == "fast" else package
        return module if module in ("speech_tokenizer", "speaker") else package

    def resolve(self, package: str) -> tuple[Any, str | None]:
        """The class or function of one side and, for a method, its name."""
        if self.witness and package == "reference":
            return self.witness, None
        module, _, name = self.path.rpartition(".")
        try:
            return getattr(importlib.import_module(f"{package}.{module}"), name), None
        except ModuleNotFoundError:
            module, _, owner = module.rpartition(".")
            return getattr(importlib.import_module(f"{package}.{module}"), owner), name

    def build(self, package: str, config: Mapping[str, Any]) -> Any:
        """Construct the class (weights untouched), or return the function itself."""
        found, _ = self.resolve(package)
        if not isinstance(found, type):
            return found
        return found(sizes.from_dict(self.config, dict(config))) if self.config else found(**config)

    def call(self, package: str, obj: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run one side; results by output name, lists of tensors left as lists."""
        arguments = dict(arguments)
        for name, path in self.prepare.items():
            if arguments.get(name) is not None:
                function, _ = Target(path).resolve(package)
                arguments[name] = function(arguments[name])
        _, method = self.resolve(package)
        function = getattr(obj, method) if method else obj
        result = self.run(function, arguments) if self.run else function(**arguments)
        if isinstance(result, dict):
            return result
        result = result if isinstance(result, tuple) else (result,)
        if len(result) != len(self.outputs):
            raise ValueError(f"{package}.{self.path}: {len(result)} results, expected {', '.join(self.outputs)}")
        return dict(zip(self.outputs, result, strict=True))


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
_MEL = {"mu": swap, "cond": swap, "x": swap, "noise": swap, "mask": frame_mask}


def _valid_rows(call: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Tokens (or what is rounded to them) with zeros past each row's length, where they mean nothing."""
    found, lengths = call(**arguments)
    found, lengths = np.asarray(found), np.asarray(lengths)
    inside = np.arange(found.shape[1]) < lengths[:, None]
    name = "tokens" if found.ndim == 2 else "y"
    return {name: found * (inside if found.ndim == 2 else inside[..., None]), "lengths": lengths}


TARGETS = {
    target.path: target
    for target in (
        # front end
        Target("frontend.audio.resample"),
        Target("frontend.audio.mel_filterbank", ("basis",)),
        Target("frontend.audio.mel_spectrogram", ("mel",), from_port={"mel": swap}),
        Target("frontend.audio.log_mel_spectrogram", ("mel",), from_port={"mel": swap}),
        Target("frontend.audio.kaldi_mel_banks", ("basis",)),
        Target("frontend.audio.fbank", ("fbank",)),
        Target("frontend.speech_tokenizer.FSMNMultiHeadAttention", at=f"{_S3}.attn", prepare=_ROPE),
        Target("frontend.speech_tokenizer.ResidualAttentionBlock", at=_S3, prepare=_ROPE),
        Target("frontend.speech_tokenizer.FSQVectorQuantization.activations", at="speech_tokenizer:quantizer"),
        Target("frontend.speech_tokenizer.FSQVectorQuantization", ("tokens",), at="speech_tokenizer:quantizer"),
        Target(
            "frontend.speech_tokenizer.S3TokenizerV3.activations",
            ("y", "lengths"),
            at="speech_tokenizer:",
            config=sizes.SpeechTokenizerConfig,
            to_port={"mel": swap},
            run=_valid_rows,
        ),
        Target(
            "frontend.speech_tokenizer.S3TokenizerV3",
            ("tokens", "lengths"),
            at="speech_tokenizer:",
            config=sizes.SpeechTokenizerConfig,
            to_port={"mel": swap},
            run=_valid_rows,
        ),
        Target("frontend.speaker.BasicResBlock", at="speaker:head.layer1.0", **_IMAGE),
        Target("frontend.speaker.FCM", at="speaker:head", **_CONV),
        Target("frontend.speaker.TDNNLayer", at="speaker:xvector.tdnn", **_CONV),
        Target("frontend.speaker.CAMLayer", at="speaker:xvector.block1.tdnnd1.cam_layer", **_CONV),
        Target("frontend.speaker.CAMDenseTDNNLayer", at="speaker:xvector.block1.tdnnd1", **_CONV),
        Target("frontend.speaker.CAMDenseTDNNBlock", at="speaker:xvector.block1", **_CONV),
        Target("frontend.speaker.TransitLayer", at="speaker:xvector.transit1", **_CONV),
        Target("frontend.speaker.StatsPool", to_port={"x": swap}),
        Target("frontend.speaker.DenseLayer", at="speaker:xvector.dense"),
        Target("frontend.speaker.CAMPPlus", ("embedding",), at="speaker:", config=sizes.SpeakerConfig),
        # language model, bottom-up
        Target("llm.qwen2.Qwen2RMSNorm", at=f"{_LAYER}.input_layernorm"),
        Target("llm.qwen2.Qwen2RotaryEmbedding", ("cos", "sin"), follows=table_turns),
        Target("llm.qwen2.Qwen2Attention", at=f"{_LAYER}.self_attn", config=sizes.Qwen2Config, prepare=_ROPE),
        Target("llm.qwen2.Qwen2MLP", at=f"{_LAYER}.mlp", config=sizes.Qwen2Config),
        Target("llm.qwen2.Qwen2DecoderLayer", at=_LAYER, config=sizes.Qwen2Config, prepare=_ROPE),
        Target("llm.qwen2.Qwen2Model", ("hidden",), at="llm:llm.model.model", config=sizes.Qwen2Config),
        Target("llm.speech_lm.CosyVoice3LM.prepare_input", ("lm_input",), at="llm:", config=sizes.LLMConfig),
        Target("llm.speech_lm.CosyVoice3LM.scores", ("scores",), at="llm:", config=sizes.LLMConfig),
        # activations: fast forms of functions that the reference takes from torch
        Target("fast.arithmetic.exp2", chained=False, witness=lambda x: torch.exp2(x)),
        Target("fast.arithmetic.silu", chained=False, witness=lambda x: F.silu(x)),
        Target("fast.arithmetic.mish", chained=False, witness=lambda x: F.mish(x)),
        Target("fast.arithmetic.gelu_tanh", chained=False, witness=lambda x: F.gelu(x, approximate="tanh")),
        Target(
            "fast.attention.attention_in_blocks",
            chained=False,
            witness=lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, scale=scale),
        ),
        # flow, bottom-up: the first failure in this order is the smallest wrong part
        Target("flow.masks.make_pad_mask", ("mask",), chained=False),
        Target("flow.masks.subsequent_chunk_mask", ("mask",), chained=False),
        Target("flow.masks.add_optional_chunk_mask", ("mask",), chained=False),
        Target("flow.layers.SinusPositionEmbedding"),
        Target("flow.layers.TimestepEmbedding", at=f"{_DIT}.time_embed"),
        Target("flow.layers.RotaryEmbedding", ("freqs",), at=f"{_DIT}.rotary_embed", follows=turns),
        Target("flow.layers.apply_rotary_pos_emb", prepare=_ROPE, follows=turned),
        Target("flow.layers.CausalConvPositionEmbedding", at=f"{_DIT}.input_embed.conv_pos_embed"),
        Target("flow.layers.GRN", at="unit:grn"),
        Target("flow.layers.ConvNeXtV2Block", at="unit:convnext"),
        Target(
            "flow.layers.AdaLayerNormZero",
            ("y", "gate_msa", "shift_mlp", "scale_mlp", "gate_mlp"),
            at=f"{_BLOCK}.attn_norm",
        ),
        Target("flow.layers.AdaLayerNormZero_Final", at=f"{_DIT}.norm_out"),
        Target("flow.layers.FeedForward", at=f"{_BLOCK}.ff"),
        Target("flow.layers.Attention", at=f"{_BLOCK}.attn", prepare=_ROPE),
        Target("flow.layers.DiTBlock", at=_BLOCK, prepare=_ROPE),
        Target("flow.dit.InputEmbedding", at=f"{_DIT}.input_embed"),
        Target("flow.dit.DiT", at=_DIT, config=sizes.DiTConfig, to_port=_MEL, from_port={"y": swap}),
        Target("flow.lookahead.PreLookaheadLayer", at="flow:pre_lookahead_layer"),
        Target("flow.matching.cosine_schedule", ("t_span",)),
        Target(
            "flow.matching.CausalConditionalCFM.velocity",
            ("v", "v_cond", "v_uncond"),
            at="flow:decoder",
            config=sizes.FlowConfig,
            to_port=_MEL,
            from_port={"v": swap, "v_cond": swap, "v_uncond": swap},
            replay=False,  # the port takes its time as a number of the host
        ),
        Target(
            "flow.matching.CausalConditionalCFM",
            at="flow:decoder",
            config=sizes.FlowConfig,
            to_port=_MEL,
            from_port={"y": swap},
        ),
        Target(
            "flow.decoder.CausalMaskedDiffWithDiT.inference",
            ("feat",),
            at="flow:",
            config=sizes.FlowConfig,
            to_port={"noise": swap},
            from_port={"feat": swap},
        ),
        # vocoder, bottom-up
        Target("vocoder.convolution.CausalConv1d", at="hift:conv_post", **_CONV),
        Target("vocoder.convolution.CausalConv1dDownSample", at="hift:source_downs.0", **_CONV),
        Target("vocoder.convolution.CausalConv1dUpsample", at="hift:ups.0", **_CONV),
        Target("vocoder.generator.Snake", at="hift:resblocks.0.activations1.0", **_CONV),
        Target("vocoder.generator.ResBlock", at="hift:resblocks.0", **_CONV),
        Target("vocoder.f0.CausalConvRNNF0Predictor", ("f0",), at="hift:f0_predictor", to_port={"x": swap}),
        Target(
            "vocoder.source.SineGen2._f02sine",
            ("sines",),
            to_port={"f0": lambda f0: f0[:, ::_HOP]},
            from_port={"sines": lambda sines: np.repeat(sines, _HOP, axis=1)},
            replay=False,  # a step on the host in the port; SineGen2 itself is replayed
        ),
        Target("vocoder.source.SineGen2", ("y", "uv"), to_port={"f0": frames_of_samples}),
        Target(
            "vocoder.source.SourceModuleHnNSF",
            ("sine_merge", "uv"),
            at="hift:m_source",
            to_port={"f0": frames_of_samples},
        ),
        Target("vocoder.stft.stft", ("real", "imag"), from_port={"real": swap, "imag": swap}),
        Target("vocoder.stft.istft", ("x",), to_port={"magnitude": swap, "phase": swap}),
        Target(
            "vocoder.generator.CausalHiFTGenerator.decode",
            ("wav",),
            at="hift:",
            config=sizes.VocoderConfig,
            to_port={"x": swap, "s": swap},
        ),
        Target(
            "vocoder.generator.CausalHiFTGenerator.inference",
            ("wav", "s"),
            at="hift:",
            config=sizes.VocoderConfig,
            to_port={"speech_feat": swap},
            from_port={"s": swap},
        ),
    )
}
