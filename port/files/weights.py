"""A converted folder on disk: `config.json` and `model.safetensors`, or shards with `model.safetensors.index.json`.

Loading is strict: every parameter of the model is filled once with the right shape, and no tensor is left over.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..config import CosyVoice3Config, read_settings
from ..fast.modulation import make_room
from ..model import CosyVoice3Model
from .errors import CONVERTER, Refused, brief
from .storage import MAX_SHARD_BYTES, Shape, TensorInfo, Writer, describe, read_headers, read_metadata

# Quantizations of MLX, by mode.
MODES: dict[str, dict[str, tuple[int, ...]]] = {
    "affine": {"group_size": (64, 32, 128), "bits": (4, 2, 3, 5, 6, 8)},
    "mxfp4": {"group_size": (32,), "bits": (4,)},
    "mxfp8": {"group_size": (32,), "bits": (8,)},
    "nvfp4": {"group_size": (16,), "bits": (4,)},
}
_FLOATS = ("F32", "F16", "BF16")

logger = logging.getLogger(__name__)
BAKED_TIMES = "flow.decoder.estimator.time_embed.times"


def load(folder: str | Path, lazy: bool = False, settings: dict[str, Any] | None = None) -> CosyVoice3Model:
    """Build the model of `config.json` and fill it.

    Args:
        folder: as written by `save` or convert/run.py: plain, sharded or quantized.
        lazy: leave the arrays on disk until they are first used.
        settings: content of `config.json`, where it was read before.

    Raises:
        Refused: a `config.json` that the model does not know, files missing or damaged, a tensor missing, unknown,
            given twice or of the wrong shape.
    """
    folder = Path(folder)
    settings = read_settings(folder) if settings is None else settings
    config = CosyVoice3Config.from_dict(settings)
    say_if_old(settings, folder)
    found = read_headers(folder)
    check_heads(config, {file for file, _ in found.values()})
    model = CosyVoice3Model(config)
    expect_baked(model, found, folder)
    if quantization := quantization_of(settings):
        quantize(model, quantization, found)
    fill(model, found, read_arrays(file for file, _ in found.values()), folder, lazy)
    return model


def heads(config: CosyVoice3Config) -> dict[str, str]:
    """The numbers of heads in the metadata of weights files, because shapes do not show them."""
    qwen2, dit = config.llm.qwen2, config.flow.dit
    counts = qwen2.num_attention_heads, qwen2.num_key_value_heads, dit.heads, config.speech_tokenizer.heads
    return {"heads": "llm {}/{}, flow {}, speech tokenizer {}".format(*counts)}


def check_heads(config: CosyVoice3Config, files: Iterable[Path]) -> None:
    """Check the configuration against the metadata of the files; files without this metadata are accepted.

    Raises:
        Refused: another number of heads.
    """
    ((name, wanted),) = heads(config).items()
    for file in sorted(files):
        if (said := read_metadata(file).get(name, wanted)) != wanted:
            raise Refused(f"{file}: written for heads of {brief(said)}, config.json has {wanted}")


def say_if_old(settings: Mapping[str, Any], folder: Path) -> None:
    """Warn in one line if `config.json` does not say how the last segment is averaged.

    This is only a warning: the weights are right, and the default is what every official campplus.onnx uses.
    """
    speaker = settings.get("speaker")
    if not isinstance(speaker, dict) or "divide_by_full_segment" not in speaker:
        logger.warning(
            "%s: config.json does not say how the speaker encoder averages a recording's last "
            "segment; the official file's way is taken, so embeddings differ by up to 1e-2 from those made before; "
            "convert the checkpoint again with %s and save its voices again",
            folder,
            CONVERTER,
        )


def fill(
    model: CosyVoice3Model,
    found: Mapping[str, tuple[Path, TensorInfo]],
    arrays: Mapping[str, mx.array],
    folder: Path,
    lazy: bool,
) -> None:
    """Put `arrays` into a model, after checking that it needs exactly what was `found`.

    Raises:
        Refused: as `check`.
    """
    check(found, {name: tuple(value.shape) for name, value in dict(tree_flatten(model.parameters())).items()}, folder)
    model.load_weights(list(arrays.items()), strict=True)
    model.eval()
    if not lazy:
        mx.eval(model.parameters())


def read_arrays(files: Iterable[Path]) -> dict[str, mx.array]:
    """The arrays of some safetensors files, read from disk at first use.

    Raises:
        Refused: a file that MLX cannot read.
    """
    arrays: dict[str, mx.array] = {}
    for file in sorted(set(files)):
        try:
            arrays |= cast(dict[str, mx.array], mx.load(str(file), format="safetensors"))
        except (RuntimeError, ValueError) as error:
            raise Refused(f"{file}: not readable ({str(error).splitlines()[0]:.200})") from None
    return arrays


def check(found: Mapping[str, tuple[Path, TensorInfo]], parameters: Mapping[str, Shape], folder: Path) -> None:
    """Compare the tensors of a folder with the model's parameters, by name, shape and kind of dtype.

    Raises:
        Refused: names the first tensor that is unknown, missing or does not fit.
    """
    if unknown := sorted(found.keys() - parameters.keys()):
        raise Refused(f"{found[unknown[0]][0]}: unknown tensor {unknown[0]!r:.120}; the model has no place for it")
    if missing := sorted(parameters.keys() - found.keys()):
        raise Refused(f"{folder}: tensor {missing[0]!r} is missing")
    for name, shape in parameters.items():
        path, info = found[name]
        if info.shape != shape:
            raise Refused(f"{path}: {name} has shape {list(info.shape)}, the model needs {list(shape)}")
        if info.dtype not in _FLOATS and f"{name.removesuffix('.weight')}.scales" not in found:
            raise Refused(f"{path}: {name} holds {info.dtype}, expected floating point")


def expect_baked(model: CosyVoice3Model, found: Mapping[str, tuple[Path, TensorInfo]], folder: Path) -> None:
    """Prepare the model for tables of `--bake-timesteps`, if a folder has them.

    Raises:
        Refused: an impossible number of timesteps.
    """
    if BAKED_TIMES not in found:
        return
    shape = found[BAKED_TIMES][1].shape
    try:
        make_room(model.flow.decoder.estimator, math.prod(shape))
    except ValueError as error:
        raise Refused(f"{folder}: {BAKED_TIMES}: {error}") from None


def quantize(model: CosyVoice3Model, quantization: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    """Quantize the layers whose scales are in `names`, by the settings of `config.json`.

    Args:
        quantization: `group_size`, `bits` and perhaps `mode`; a key that is a layer's path overrides them for it.

    Raises:
        Refused: settings that MLX does not support.
    """

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in names or not hasattr(module, "to_quantized"):
            return False
        own = quantization.get(path)
        return layer_settings(settings | own, path) if isinstance(own, dict) else True

    settings = layer_settings(quantization, "quantization")
    for path, own in quantization.items():
        if isinstance(own, dict):
            layer_settings(settings | own, f"quantization.{path}")
    try:
        nn.quantize(model, class_predicate=chosen, **settings)
    except (ValueError, TypeError, RuntimeError) as error:
        raise Refused(f"config.json: quantization {settings} is not known ({error!s:.160})") from None


def layer_settings(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check `group_size`, `bits` and `mode` of a layer, if given: MLX divides by them unchecked.

    Raises:
        Refused: impossible values.
    """
    settings = {key: given[key] for key in ("group_size", "bits", "mode") if key in given}
    mode = settings.get("mode", "affine")
    known: dict[str, tuple[int, ...]] = MODES.get(mode, {}) if isinstance(mode, str) else {}
    values = {key: settings.get(key, allowed[0]) for key, allowed in known.items()}
    if not known or any(type(value) is not int or value not in known[key] for key, value in values.items()):
        said = ", ".join(f"{key} {brief(value)}" for key, value in settings.items())
        raise Refused(f"config.json: {where} ({said}) is not known; MLX has {known or sorted(MODES)}")
    return settings


def quantization_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quantization settings in a `config.json`; None if the weights are not quantized.

    Raises:
        Refused: not an object.
    """
    quantization = settings.get("quantization") or settings.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise Refused("config.quantization: expected an object")
    return quantization


def save(
    folder: str | Path,
    weights: CosyVoice3Model | Mapping[str, np.ndarray | mx.array],
    config: CosyVoice3Config,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    quantization: dict[str, Any] | None = None,
) -> None:
    """Write a model, or its parameters by name, as a folder; `load` reads it back bit for bit.

    Raises:
        Refused: the folder already holds weights, or a dtype that MLX cannot store in safetensors files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = dict(tree_flatten(weights.parameters())) if isinstance(weights, nn.Module) else dict(weights)
    layout = {name: describe(name, array) for name, array in arrays.items()}
    with Writer(folder, layout, max_shard_bytes, heads(config)) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    save_config(folder, config, quantization=quantization)


def save_config(
    folder: Path,
    config: CosyVoice3Config,
    provenance: dict[str, Any] | None = None,
    quantization: dict[str, Any] | None = None,
) -> None:
    """Write `config.json`: the model, the origin of the weights, and how they are quantized."""
    content = config.to_dict()
    if provenance:
        content["provenance"] = provenance
    if quantization:
        content |= {"quantization": quantization, "quantization_config": quantization}
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
