"""The float32 reference rounded to the precision of a folder, to measure what the precision itself costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from torch import nn

from convert.mapping import Step, plan
from convert.parts import PARTS
from convert.quantize import precision_of
from parity_tests.models import attribute
from port.config import CosyVoice3Config, read_settings
from port.files.storage import DTYPES
from port.files.weights import quantization_of

ROWS = 4096
TORCH = {"F16": torch.float16, "BF16": torch.bfloat16}


def round_reference(model: nn.Module, folder: Path, config: CosyVoice3Config, group: Sequence[str]) -> nn.Module:
    """A copy of the float32 reference, rounded to the precision of a folder.

    The folder gives only dtypes and bits; the values stay the reference's own, so that wrong weights do not pass as
    rounded ones. Inputs and outputs of half-precision layers are rounded too.

    Args:
        model: the float32 reference, at least the parts of the group.
        folder: a conversion, of any precision.
        config: sizes of the model.
        group: names of the parts to round.
    """
    model, found, settings = copy.deepcopy(model), precision_of(folder), quantization_of(read_settings(folder)) or {}
    for part in PARTS:
        if attribute(part) not in group:
            continue
        module = model.get_submodule(attribute(part))
        state = module.state_dict()
        arrays = {key: value.numpy() for key, value in state.items()}
        for step in plan(part.name, state):
            # A missing parameter was baked into tables, which are float32.
            if step.target is None or found.tags.get(step.target, "F32") == "F32":
                continue
            layer, _, kind = step.target.rpartition(".")
            tag = found.tags.get(f"{layer}.scales", found.tags[step.target])
            own = settings.get(layer, settings) if found.tags[step.target] == "U32" else {}
            _overwrite(state, step, _as_stored(step.apply(arrays, config), DTYPES[tag][0], own))
            owner = module.get_submodule(step.sources[0].rpartition(".")[0])
            if tag in TORCH and kind == "weight" and isinstance(owner, nn.Linear):
                owner.register_forward_pre_hook(lambda _, x, dtype=TORCH[tag]: tuple(_round(v, dtype) for v in x))
                owner.register_forward_hook(lambda _, x, y, dtype=TORCH[tag]: _round(y, dtype))
    return model


def _as_stored(value: np.ndarray, dtype: mx.Dtype, settings: Mapping[str, Any]) -> np.ndarray:
    """Round a parameter to a dtype and to quantized levels, some rows at a time because embeddings are large."""
    rounded, levels = np.empty_like(value), {k: settings[k] for k in ("group_size", "bits") if settings}
    for start in range(0, len(value), ROWS):
        rows = mx.array(value[start : start + ROWS]).astype(dtype)
        if levels:
            rows = mx.dequantize(*mx.quantize(rows, **levels), **levels)
        rounded[start : start + ROWS] = np.array(rows.astype(mx.float32))
    return rounded


def _round(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype).to(x.dtype)


def _overwrite(state: Mapping[str, torch.Tensor], step: Step, value: np.ndarray) -> None:
    """Write a port parameter back to its official tensors: the transforms of the table in reverse."""
    if value.ndim > 2:
        value = np.moveaxis(value, -1, 1)
    new = torch.from_numpy(np.ascontiguousarray(value))
    if len(step.sources) == 2:  # weight norm: length and direction
        length, direction = (state[key] for key in step.sources)
        length.copy_(new.flatten(1).norm(dim=1).reshape(length.shape))
        direction.copy_(new)
    else:
        state[step.sources[0]].copy_(new)
