"""Folders of mlx-community (Fun-CosyVoice3-0.5B-2512-fp16, -8bit, -4bit), as mlx-audio-plus converts them.

They hold the same model under other names, which a table maps; all arrays already have MLX's layout. Two parts differ
from the official ones: the speech tokenizer has its own repository (S3TokenizerV3; its files may be in a subfolder of
that name), and the speaker encoder comes from Chatterbox, with batch norms not folded.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import SpeakerConfig, read_settings
from ..model import CosyVoice3Model
from .community_config import NUMBER, TOKENIZER_FOLDER, XVECTOR, read_config, section
from .disk import read_json
from .errors import Refused
from .storage import TensorInfo, describe, read_headers
from .weights import fill, quantize, read_arrays

CONFIG_FILE = "config.json"
ROTARY = "flow.decoder.estimator.rotary_embed.inv_freq"
DROPPED = (ROTARY,)  # computed by the port

logger = logging.getLogger(__name__)

# Names there -> names here; the first match counts. Pitch convolutions keep their index among the activations.
_CONV = r"((?:conv_pre|conv_post|ups\.\d+|source_downs\.\d+|(?:source_)?resblocks\.\d+\.convs[12]\.\d+))"
_TDNN = rf"{XVECTOR}\.blocks\.{NUMBER}\.layers\.{NUMBER}\."
NAMES: tuple[tuple[str, str], ...] = (
    (r"qwen2\.model\.(.*)", r"llm.qwen2.\1"),
    (r"llm\.((?:speech_embedding|llm_decoder)\.weight)", r"llm.\1"),
    (r"(flow\.decoder\.estimator\.time_embed)\.time_mlp_0\.(.*)", r"\1.linear_1.\2"),
    (r"(flow\.decoder\.estimator\.time_embed)\.time_mlp_2\.(.*)", r"\1.linear_2.\2"),
    (r"(flow\..*\.attn)\.to_out_0\.(.*)", r"\1.to_out.\2"),
    (r"(flow\..*\.ff)\.ff_0_0\.(.*)", r"\1.linear_1.\2"),
    (r"(flow\..*\.ff)\.ff_2\.(.*)", r"\1.linear_2.\2"),
    (r"(flow\..*)", r"\1"),
    (rf"hifigan\.{_CONV}\.conv\.(.*)", r"vocoder.\1.\2"),
    *(
        (rf"hifigan\.f0_predictor\.condnet_{2 * i}\.conv\.(.*)", rf"vocoder.f0_predictor.condnet.{i}.\1")
        for i in range(5)
    ),
    (r"hifigan\.(.*)", r"vocoder.\1"),
    (r"campplus\.head\.(layer\d)\.(\d+)\.shortcut\.(\d+)\.(.*)", r"speaker.head.\1.layers.\2.shortcut.layers.\3.\4"),
    (r"campplus\.head\.(layer\d)\.(\d+)\.(.*)", r"speaker.head.\1.layers.\2.\3"),
    (r"campplus\.head\.(.*)", r"speaker.head.\1"),
    (r"campplus\.(.*)", rf"{XVECTOR}.\1"),
    (r"encoder\.(.*)", r"speech_tokenizer.\1"),
    (r"quantizer\.fsq_codebook\.project_down\.(.*)", r"speech_tokenizer.quantizer.project_in.\1"),
)
# Batch norms after a convolution: norm -> convolution, both renamed.
FOLDED: tuple[tuple[str, str], ...] = (
    (r"(speaker\.head\.(?:layer\d\.layers\.\d+\.)?)bn([12])", r"\1conv\2"),
    (r"(speaker\.head\.layer\d\.layers\.\d+\.shortcut)\.layers\.1", r"\1.layers.0"),
    (rf"({XVECTOR}\.tdnn)\.nonlinear\.0", r"\1.linear"),
    (rf"({XVECTOR}\.block\d+\.tdnnd\d+)\.nonlinear2\.0", r"\1.linear1"),
)
STATISTICS = ("weight", "bias", "running_mean", "running_var")


class Lacking(nn.Module):
    """A part without files; it raises an error when it is used."""

    def __init__(self, sentence: str) -> None:
        super().__init__()
        self.sentence = sentence

    def __call__(self, *arguments: Any) -> NoReturn:
        """Refuse.

        Raises:
            ValueError: always; says what is missing and what to do.
        """
        raise ValueError(self.sentence)


@dataclass(frozen=True)
class Inventory:
    """The use of every tensor.

    Args:
        used: tensor there -> parameter here that it fills, alone or with others.
        dropped: tensors that are not needed.
        lacking: parameters here without a tensor.
    """

    used: Mapping[str, str]
    dropped: tuple[str, ...]
    lacking: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One line for people."""
        return (
            f"{len(self.used) + len(self.dropped)} tensors: {len(self.used)} used, {len(self.dropped)} dropped, "
            f"{len(self.lacking)} parameters without one"
        )


def recognises(settings: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is of this layout."""
    return "hifigan" in settings


def load(
    folder: str | Path, lazy: bool = False, settings: dict[str, Any] | None = None
) -> tuple[CosyVoice3Model, Inventory]:
    """Build the model and fill it; warns in one line about missing parts.

    Args:
        folder: `config.json`, `model.safetensors` and perhaps a subfolder `S3TokenizerV3` with that repository's files.
        lazy: leave the arrays on disk until they are first used.
        settings: content of `config.json`, where it was read before.

    Raises:
        Refused: sizes that no model has, files missing or damaged, a tensor missing, unknown, given twice or of
            the wrong shape.
    """
    folder = Path(folder)
    headers, settings = read_headers(folder), read_settings(folder) if settings is None else settings
    complete, hearing = (folder / TOKENIZER_FOLDER).is_dir(), {}
    if complete:
        headers |= read_headers(folder / TOKENIZER_FOLDER)
        if (path := folder / TOKENIZER_FOLDER / CONFIG_FILE).exists():
            hearing = read_json(path)
    used = rename(headers)
    arrays = read_arrays(file for file, _ in headers.values())
    tensors = with_remainders(fold({new: arrays[name] for name, new in used.items()}))
    try:
        config = read_config(settings, tensors, hearing)
    except Refused as error:
        raise Refused(f"{folder / CONFIG_FILE}: {error}") from None
    if ROTARY in headers and headers[ROTARY][1].shape != (config.flow.dit.dim_head // 2,):
        raise Refused(f"{folder}: {ROTARY} is not of heads of {config.flow.dit.dim_head} channels")
    model = CosyVoice3Model(config)
    lacking: tuple[str, ...] = ()
    if not complete:
        lacking = tuple(f"speech_tokenizer.{name}" for name in dict(tree_flatten(model.speech_tokenizer.parameters())))
        model["speech_tokenizer"] = Lacking(
            f"{folder} has no speech tokenizer, so no recording can be heard; put the files of "
            f"mlx-community/{TOKENIZER_FOLDER} into {folder / TOKENIZER_FOLDER}"
        )
    if quantization := section(settings, "quantization"):
        quantize(model, quantization, tensors)
    fill(model, {name: (folder, describe(name, array)) for name, array in tensors.items()}, tensors, folder, lazy)
    inventory = Inventory(used, tuple(sorted(headers.keys() - used.keys())), lacking)
    said = "no speech tokenizer, so no recording can be heard; " if lacking else ""
    said = f"{inventory.verdict}; {said}a speaker encoder that is not CosyVoice's own; no parity is claimed"
    logger.warning("%s: %s", folder, said)
    return model, inventory


def rename(headers: Mapping[str, tuple[Path, TensorInfo]]) -> dict[str, str]:
    """Map names there to names here, including batch norms that will be folded.

    Raises:
        Refused: an unknown tensor, or two with the same new name.
    """
    used: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name, (file, _) in headers.items():
        if name in DROPPED:
            continue
        new = next((re.sub(old, new, name) for old, new in NAMES if re.fullmatch(old, name)), None)
        if new is None:
            raise Refused(f"{file}: unknown tensor {name!r:.120}; the model has no place for it")
        # Blocks and transits of the speaker encoder count from one here, and norms that stay have names.
        new = re.sub(_TDNN, lambda m: f"{XVECTOR}.block{int(m[1]) + 1}.tdnnd{int(m[2]) + 1}.", new)
        new = re.sub(rf"\.transits\.{NUMBER}\.", lambda m: f".transit{int(m[1]) + 1}.", new)
        new = re.sub(r"(\.transit\d+\.nonlinear|\.nonlinear1|\.dense\.nonlinear)\.0\.", r"\1.batchnorm.", new)
        if new in taken:
            raise Refused(f"{file}: {name!r:.120} and {taken[new]!r:.120} are both {new}")
        used[name], taken[new] = new, name
    return used


def fold(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """Fold batch norms into the convolutions before them, in float32.

    Raises:
        Refused: a norm without its convolution or one of its four vectors, or vectors of another length.
    """
    transits = [name for name in tensors if re.fullmatch(rf"{XVECTOR}\.transit\d+\.linear\.weight", name)]
    last = max(transits, default="").removesuffix(".weight")
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    for norm in layers:
        conv = next((re.sub(old, new, norm) for old, new in FOLDED if re.fullmatch(old, norm)), None)
        conv = last if norm == f"{XVECTOR}.out_nonlinear.0" else conv
        if conv is None:
            continue
        if absent := [name for name in (f"{conv}.weight", *(f"{norm}.{k}" for k in STATISTICS)) if name not in tensors]:
            raise Refused(f"{absent[0]} is missing: {norm} cannot be folded")
        weight = tensors[f"{conv}.weight"].astype(mx.float32)
        for kind in STATISTICS:
            if (shape := tensors[f"{norm}.{kind}"].shape) != weight.shape[:1] or not weight.ndim:
                raise Refused(f"{norm}.{kind} has shape {list(shape)}, which does not fit {conv}.weight")
        gamma, beta, mean, variance = (tensors.pop(f"{norm}.{kind}").astype(mx.float32) for kind in STATISTICS)
        scale = gamma * mx.rsqrt(variance + SpeakerConfig.norm_eps)
        tensors[f"{conv}.weight"] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        tensors[f"{conv}.bias"] = beta - mean * scale
    return tensors


def with_remainders(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """Add zeros as the second summand of the pitch predictor's weights, which are rounded there."""
    for name, weight in tensors.items():
        if re.fullmatch(r"vocoder\.f0_predictor\.condnet\.\d+\.weight", name):
            tensors[name] = mx.stack([weight, mx.zeros_like(weight)])
    return tensors
