"""Dataclasses from untrusted JSON: unknown keys, wrong types and absurd sizes are refused."""

from __future__ import annotations

import math
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from .errors import Refused, brief

# Far above any real model; a config beyond these is damaged or hostile, and must not cause an allocation.
MAX_INT = 1 << 20
MAX_ITEMS = 64
MAX_LAYERS = 512
TOKENS_PER_SECOND = 25
HEAD_STRIDE = 8  # the head of the speaker encoder halves the mel bins three times
# Fields that count modules: each takes memory before any weight is read.
LAYERS = ("depth", "num_hidden_layers", "block_layers")

C = TypeVar("C")


def from_dict(cls: type[C], data: Any, where: str = "") -> C:
    """Strictly build the dataclass `cls` from `data`; missing keys take their defaults.

    Raises:
        Refused: names the path of the first wrong field.
    """
    if not isinstance(data, dict):
        raise Refused(f"config{where}: expected an object, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(map(str, data)) - known):
        raise Refused(f"config{where}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
    return cls(**{name: _checked(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _checked(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, list | tuple) or len(value) > MAX_ITEMS:
            raise Refused(f"config{where}: expected a list of at most {MAX_ITEMS} items")
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise Refused(f"config{where}: expected {len(inner)} items, found {len(value)}")
        return tuple(_checked(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 53 else math.inf
    if type(value) is not hint:
        raise Refused(f"config{where}: expected {hint.__name__}, found {type(value).__name__} {brief(value)}")
    largest = MAX_LAYERS if where.rpartition(".")[2].partition("[")[0] in LAYERS else MAX_INT
    if hint is int and not 0 < value <= largest:
        raise Refused(f"config{where}: {value} is outside 1..{largest}")
    if hint is float and not (math.isfinite(value) and value >= 0):
        raise Refused(f"config{where}: {value} is not a finite number >= 0")
    if hint is float and where.endswith("eps") and value == 0:
        raise Refused(f"config{where}: a norm needs more than {value}")
    return value


def check_sizes(config: Any) -> None:
    """Refuse sizes that do not fit each other, and unofficial numbers of heads at the official widths.

    Shapes do not show the number of heads: half as many heads of twice the width would load silently.

    Args:
        config: a `CosyVoice3Config`.

    Raises:
        Refused: names what does not fit.
    """
    qwen2, dit, vocoder, speaker, flow = config.llm.qwen2, config.flow.dit, config.vocoder, config.speaker, config.flow
    tokenizer, stages = config.speech_tokenizer, len(config.vocoder.upsample_rates)
    fits = {
        "llm.qwen2: num_attention_heads must divide hidden_size": qwen2.hidden_size % qwen2.num_attention_heads == 0,
        "llm.qwen2: num_key_value_heads must divide num_attention_heads": (
            qwen2.num_attention_heads % qwen2.num_key_value_heads == 0
        ),
        "llm.qwen2: the head size must be even": qwen2.head_dim % 2 == 0,
        "flow.dit: dim_head and freq_embed_dim must be even": dit.dim_head % 2 == 0 and dit.freq_embed_dim % 2 == 0,
        "flow.dit: freq_embed_dim must be 4 or more": dit.freq_embed_dim >= 4,
        "flow.dit: conv_pos_groups must divide dim": dit.dim % dit.conv_pos_groups == 0,
        "speech_tokenizer: heads must divide dim": tokenizer.dim % tokenizer.heads == 0,
        "vocoder: the four lists of its stages must be equally long": stages
        == len(vocoder.upsample_kernel_sizes)
        == len(vocoder.source_resblock_kernel_sizes)
        == len(vocoder.source_resblock_dilation_sizes)
        > 0,
        "vocoder: base_channels must halve at each stage": vocoder.base_channels % 2**stages == 0,
        "vocoder: resblock_kernel_sizes and resblock_dilation_sizes must be equally long": (
            len(vocoder.resblock_kernel_sizes) == len(vocoder.resblock_dilation_sizes) > 0
        ),
        "flow.dit: mu_dim must be flow.input_size": dit.mu_dim == flow.input_size,
        "flow.dit: mel_dim, spk_dim and out_channels must be flow.output_size": (
            dit.mel_dim == dit.spk_dim == dit.out_channels == flow.output_size
        ),
        "flow: vocab_size must be llm.speech_token_size": flow.vocab_size == config.llm.speech_token_size,
        "vocoder: in_channels must be flow.output_size": vocoder.in_channels == flow.output_size,
        "vocoder: sampling_rate must be sample_rate": vocoder.sampling_rate == config.sample_rate,
        f"vocoder: a token must take 1/{TOKENS_PER_SECOND} s": (
            TOKENS_PER_SECOND * flow.token_mel_ratio * vocoder.hop_samples == config.sample_rate
        ),
        "speaker: embed_dim must be flow.spk_embed_dim": speaker.embed_dim == flow.spk_embed_dim,
        "llm.qwen2: the official width has the official heads": (
            _official_heads(qwen2, "hidden_size", "num_attention_heads", "num_key_value_heads")
        ),
        "flow.dit: the official width has the official heads": _official_heads(dit, "dim", "heads", "dim_head"),
        "speech_tokenizer: the official width has the official heads": _official_heads(tokenizer, "dim", "heads"),
        f"speaker: n_mels must be a multiple of {HEAD_STRIDE}": speaker.n_mels % HEAD_STRIDE == 0,
        "speaker: bottleneck_channels must be even": speaker.bottleneck_channels % 2 == 0,
        "speaker: block_layers and block_dilations must be equally long": (
            len(speaker.block_layers) == len(speaker.block_dilations) > 0
        ),
    }
    if wrong := [what for what, right in fits.items() if not right]:
        raise Refused(f"config.{wrong[0]}")


def _official_heads(part: Any, width: str, *heads: str) -> bool:
    """Whether a part has another width than the official one, or the official heads, which are the defaults."""
    official = type(part)()
    return getattr(part, width) != getattr(official, width) or all(
        getattr(part, name) == getattr(official, name) for name in heads
    )
