"""How each golden file is replayed: one line a file (or family of files), by the tensor names inside it.

A golden tensor is a result of the call (`y`) or was seen by a call inside it (a `Tap`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Tap:
    """A tensor inside the call: argument or result `tensor` of the `index`-th call of a twin (of sub-module `name`)."""

    path: str
    tensor: str
    name: str | None = None
    index: int = 0
    every: bool = False  # all calls, stacked along a new first axis
    then: str | None = None  # a result of the outer call that follows them
    step: int = 1  # every step-th entry of the second axis


@dataclass(frozen=True)
class Run:
    """One call: golden input -> argument, golden output -> result name or tap."""

    target: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str | Tap]
    call: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Golden:
    """The runs that reproduce a file, and its tensors that are not reproduced, each with the reason.

    `double` names tensors that cannot agree to 1e-12 in float64 and says where the original itself is not float64.
    """

    files: tuple[str, ...]
    runs: tuple[Run, ...]
    drop_config: tuple[str, ...] = ()
    rename_config: Mapping[str, str] = field(default_factory=dict)
    omitted: Mapping[str, str] = field(default_factory=dict)
    double: Mapping[str, str] = field(default_factory=dict)


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _simple(files: str, target: str, *inputs: str, **outputs: str) -> Golden:
    """One call; an input `golden:argument` has two names."""
    named = {name.partition(":")[0]: name.rpartition(":")[2] for name in inputs}
    return Golden(tuple(files.split()), (Run(target, named, outputs or {"y": "y"}),))


def _conv(files: str, target: str, drop: tuple[str, ...] = ()) -> Golden:
    plain = Run(target, same("x"), {"y": "y"})
    cached = Run(target, same("x", "cache"), {"y_cache": "y"})
    return Golden(tuple(files.split()), (plain, cached), drop)


_CFM = "flow.matching.CausalConditionalCFM"
_VELOCITY = f"{_CFM}.velocity"
_DIT_INPUTS = same("x", "mask", "mu", "t", "spks", "cond")
_BLOCKS = {f"block{i}": Tap("flow.layers.DiTBlock", "y", index=i) for i in range(2)}
_SINE = "the source module's second result in the original is noise that the generator never reads; it is not kept"

TABLE: tuple[Golden, ...] = (
    _simple("sinus_pos_emb_*", "flow.layers.SinusPositionEmbedding", "t:x", emb="y"),
    _simple("timestep_embedding", "flow.layers.TimestepEmbedding", "t:timestep", emb="y"),
    _simple("causal_conv_pos_emb*", "flow.layers.CausalConvPositionEmbedding", "x", "mask"),
    _simple("grn", "flow.layers.GRN", "x"),
    _simple("convnextv2_*", "flow.layers.ConvNeXtV2Block", "x"),
    _simple("adaln_final", "flow.layers.AdaLayerNormZero_Final", "x", "emb"),
    _simple(
        "adaln_zero",
        "flow.layers.AdaLayerNormZero",
        "x",
        "emb",
        **same("y", "gate_msa", "shift_mlp", "scale_mlp", "gate_mlp"),
    ),
    _simple("feedforward_*", "flow.layers.FeedForward", "x"),
    _simple("attention_*", "flow.layers.Attention", "x", "mask", "freqs:rope"),
    _simple("dit_block_*", "flow.layers.DiTBlock", "x", "t", "mask", "freqs:rope"),
    _simple("input_embedding", "flow.dit.InputEmbedding", "x", "cond", "text_embed", "spks"),
    Golden(("dit_stream*", "dit_scalar_t"), (Run("flow.dit.DiT", _DIT_INPUTS, {"y": "y", **_BLOCKS}),)),
    _simple("prelookahead_*", "flow.lookahead.PreLookaheadLayer", "inputs", "context"),
    Golden(
        ("cfm_stream*",),
        (
            Run(
                _CFM,
                same("mu", "mask", "spks", "cond", "noise"),
                {
                    "y": "y",
                    "v_cond": Tap(_VELOCITY, "v_cond", every=True),
                    "v_uncond": Tap(_VELOCITY, "v_uncond", every=True),
                    "states": Tap(_VELOCITY, "x", every=True, then="y"),
                    "t": Tap(_VELOCITY, "t", every=True),
                },
            ),
        ),
    ),
    Golden(
        ("flow_inference_*",),
        (
            Run(
                "flow.decoder.CausalMaskedDiffWithDiT.inference",
                same("token", "prompt_token", "prompt_feat", "embedding", "noise"),
                {
                    "feat": "feat",
                    "prelookahead": Tap("flow.lookahead.PreLookaheadLayer", "y"),
                    "spks": Tap(_CFM, "spks"),
                    "mu": Tap(_CFM, "mu"),
                    "cond": Tap(_CFM, "cond"),
                },
            ),
        ),
    ),
    _conv("causalconv1d_left_* causalconv1d_right_*", "vocoder.convolution.CausalConv1d", ("causal_padding",)),
    _conv("causaldown_*", "vocoder.convolution.CausalConv1dDownSample"),
    _conv("causalup_*", "vocoder.convolution.CausalConv1dUpsample"),
    Golden(("snake",), (Run("vocoder.generator.Snake", same("x"), {"y": "y"}),), ("alpha_logscale",)),
    Golden(("resblock_causal_*",), (Run("vocoder.generator.ResBlock", same("x"), {"y": "y"}),), ("causal",)),
    _simple("f0_predictor_*", "vocoder.f0.CausalConvRNNF0Predictor", "x", f0="f0"),
    Golden(
        ("sinegen2_*",),
        (
            Run(
                "vocoder.source.SineGen2",
                same("f0", "sine_waves"),
                {"y": "y", "uv": "uv", "sine_unit": Tap("vocoder.source.SineGen2._f02sine", "sines", step=480)},
            ),
        ),
        ("causal",),
    ),
    Golden(
        ("source_module_*",),
        (
            Run(
                "vocoder.source.SourceModuleHnNSF",
                same("f0", "sine_waves"),
                same("sine_merge", "uv"),
            ),
        ),
        ("sinegen_type", "causal"),
        {"voiced_threshod": "voiced_threshold"},
        omitted={"noise": _SINE},
    ),
    _simple("stft", "vocoder.stft.stft", "x", **same("real", "imag")),
    _simple("istft", "vocoder.stft.istft", "magnitude", "phase", x="x"),
    Golden(
        ("hift_decode_*",),
        (
            Run(
                "vocoder.generator.CausalHiFTGenerator.decode",
                same("x", "s"),
                {
                    "wav": "wav",
                    "conv_pre": Tap("vocoder.convolution.CausalConv1d", "y", "conv_pre"),
                    "conv_post": Tap("vocoder.convolution.CausalConv1d", "y", "conv_post"),
                    "up0": Tap("vocoder.convolution.CausalConv1dUpsample", "y", "ups.0"),
                },
            ),
        ),
    ),
    Golden(
        ("hift_inference_*",),
        (
            Run(
                "vocoder.generator.CausalHiFTGenerator.inference",
                same("speech_feat", "sine_waves"),
                {"wav": "wav", "s": "s", "f0": Tap("vocoder.f0.CausalConvRNNF0Predictor", "f0")},
            ),
            Run(
                "vocoder.generator.CausalHiFTGenerator.decode",
                {"speech_feat": "x", "out.s": "s"},
                {"wav_given_s32": "wav"},
            ),
        ),
    ),
)

# Files that are replayed by code of their own (golden_special.py), because they hold many calls or a driver's state.
SPECIAL = (
    "causalconv1d_weightnorm",
    "masks",
    "rotary",
    "cfm_t_schedule",
    "upstream_noise",
    "sampling_*",
    "llm_greedy*",
    "llm_bistream",
    "silent_filter",
    "mel_*",
    "resample_fbank",
    "model_tts_vc",
)


def find(name: str) -> Golden | None:
    """The line for a golden file; None when no line knows it."""
    return next((golden for golden in TABLE if any(fnmatchcase(name, glob) for glob in golden.files)), None)
