"""Convert the settings of an mlx-community folder to the port's configuration; unknown settings are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import mlx.core as mx

from ..config import CosyVoice3Config
from .errors import Refused, brief

TOKENIZER_FOLDER = "S3TokenizerV3"
XVECTOR = "speaker.xvector"
NUMBER = r"(\d{1,4})"  # a count of layers has no more digits
HEAD_DIM = 64  # heads of a speech tokenizer without config.json: its arrays show its width but not its heads
# Names there -> names here, where they differ.
RENAMED = {
    "extended_vocab_size": "num_special_tokens",
    "cfm_inference_cfg_rate": "inference_cfg_rate",
}
# Settings with one supported value, and settings that are not used here; all others are refused.
FIXED = {
    "output_type": "mel",
    "input_frame_rate": 25,
    "cfm_t_scheduler": "cosine",
    "num_decoding_left_chunks": -1,
    "long_skip_connection": False,
    "causal": True,
}
UNREAD = frozenset({"only_mask_loss", "cfm_sigma_min", "dropout"})


def read_config(
    settings: Mapping[str, Any], tensors: Mapping[str, mx.array], hearing: Mapping[str, Any]
) -> CosyVoice3Config:
    """The model's sizes: from `config.json`, for the encoders from the arrays, otherwise the official ones.

    Args:
        settings: content of `config.json`.
        tensors: renamed; only shapes are used.
        hearing: content of the speech tokenizer's `config.json`, empty if there is none.

    Raises:
        Refused: an unknown setting, sizes that do not fit each other or the official heads, no tensor that shows a
            size.
    """
    default, parts = CosyVoice3Config(), ("llm", "flow", "hifigan")
    llm, flow, hifigan = (dict(section(settings, key)) for key in parts)
    dit = dict(section(flow, "dit") or section(flow, "estimator"))
    flow = {key: value for key, value in flow.items() if key not in ("dit", "estimator")}
    width = llm.get("hidden_size", default.llm.qwen2.hidden_size)
    for key in ("llm_input_size", "llm_output_size"):
        if llm.pop(key, width) != width:
            raise Refused(f"llm.{key}: differs from the {width} channels of the language model")
    qwen2, cfm = _taken(default.llm.qwen2, llm), _taken(default.flow.cfm, flow)
    ratios = {key: settings[key] for key in ("min_token_text_ratio", "max_token_text_ratio") if key in settings}
    content: dict[str, Any] = default.to_dict() | {
        "llm": ratios | _taken(default.llm, llm) | {"qwen2": qwen2},
        "flow": _taken(default.flow, flow) | {"dit": _taken(default.flow.dit, dit), "cfm": cfm},
        "vocoder": _taken(default.vocoder, hifigan),
        "speaker": _speaker(tensors),
        "speech_tokenizer": _tokenizer(tensors, hearing),
        "sample_rate": settings.get("sample_rate", default.sample_rate),
    }
    for part, left in (("llm", llm), ("flow", flow), ("flow.dit", dit), ("hifigan", hifigan)):
        for key, value in left.items():
            if key in FIXED and value != FIXED[key]:
                raise Refused(f"{part}.{key}: {brief(value)} is not supported, only {FIXED[key]!r}")
            if key not in FIXED and key not in UNREAD:
                raise Refused(f"{part}.{key}: unknown setting")
    return CosyVoice3Config.from_dict(content)


def section(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object of the file; empty if it is missing.

    Raises:
        Refused: it is not an object.
    """
    value = settings.get(key)
    if not isinstance(value, dict | None):
        raise Refused(f"config.{key}: expected an object, found {type(value).__name__}")
    return value or {}


def _taken(default: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Move the settings of one part of the configuration out of `given`, under their names here."""
    names = {field.name for field in fields(default)}
    keys = [key for key in given if RENAMED.get(key, key) in names]
    return {RENAMED.get(key, key): given.pop(key) for key in keys}


def _speaker(tensors: Mapping[str, mx.array]) -> dict[str, Any]:
    first, local = f"{XVECTOR}.block1.tdnnd1", "cam_layer.linear_local.weight"
    needed = ("speaker.head.conv1.weight", f"{XVECTOR}.tdnn.linear.weight", f"{first}.{local}")
    if absent := [name for name in needed if name not in tensors]:
        raise Refused(f"{absent[0]} is missing")
    layers = {int(m[1]) for name in tensors if (m := re.match(rf"{XVECTOR}\.block{NUMBER}\.", name))}
    counted = [
        len([name for name in tensors if re.fullmatch(rf"{XVECTOR}\.block{i}\.tdnnd\d+\.linear1\.weight", name)])
        for i in sorted(layers)
    ]
    head, tdnn, mixed = (_shape(tensors, name) for name in needed)
    # No file says how a short last segment is averaged; take the default, the official encoder's way, on which the
    # flow was trained.
    return {
        "head_channels": head[0],
        "init_channels": tdnn[0],
        "growth_rate": mixed[0],
        "bottleneck_channels": mixed[-1],
        "block_layers": counted,
    }


def _shape(tensors: Mapping[str, mx.array], name: str) -> tuple[int, ...]:
    shape = tensors[name].shape
    if len(shape) < 2:
        raise Refused(f"{name} has shape {list(shape)}, expected a layer's weight")
    return shape


def _tokenizer(tensors: Mapping[str, mx.array], hearing: Mapping[str, Any]) -> dict[str, Any]:
    if "speech_tokenizer.conv2.weight" not in tensors:
        return {}
    dim = _shape(tensors, "speech_tokenizer.conv2.weight")[0]
    depth = len([name for name in tensors if re.fullmatch(r"speech_tokenizer\.blocks\.\d+\.attn_ln\.weight", name)])
    for key, seen in (("n_audio_state", dim), ("n_audio_layer", depth)):
        if hearing.get(key, seen) != seen:
            raise Refused(f"{TOKENIZER_FOLDER}: {key} is {brief(hearing[key])}, the weights have {seen}")
    return {"dim": dim, "heads": hearing.get("n_audio_head", max(1, dim // HEAD_DIM)), "depth": depth}
