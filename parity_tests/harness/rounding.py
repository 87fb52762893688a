"""The float32 reference with the weights of a converted folder of reduced precision: what the precision itself costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from torch import nn

from convert.mapping import Step, plan
from convert.parts import PARTS
from convert.quantize import Found
from parity_tests.harness.models import attribute
from port.weights import quantization_of

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16}


def round_reference(model: nn.Module, folder: Path, found: Found, group: tuple[str, ...]) -> nn.Module:
    """A copy of the float32 reference with the folder's weights where those are not float32.

    What goes into and comes out of a layer of half precision is rounded too.
    """
    model, stored = copy.deepcopy(model), Stored(folder, found)
    for part in PARTS:
        if attribute(part) not in group:
            continue
        module = model.get_submodule(attribute(part))
        state = module.state_dict()
        for step in plan(part.name, state):
            if step.target is None or found.tags[step.target] == "F32":
                continue
            _overwrite(state, step, stored.value(step.target))
            owner = module.get_submodule(step.sources[0].rpartition(".")[0])
            dtype = TORCH.get(stored.compute_tag(step.target))
            if dtype and isinstance(owner, nn.Linear) and step.target.endswith(".weight"):
                owner.register_forward_pre_hook(lambda _, x, dtype=dtype: tuple(_round(v, dtype) for v in x))
                owner.register_forward_hook(lambda _, x, y, dtype=dtype: _round(y, dtype))
    return model


def _round(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype).to(x.dtype)


def _overwrite(state: Mapping[str, torch.Tensor], step: Step, value: np.ndarray) -> None:
    """Put a port parameter back where it came from; the transforms of the table in reverse."""
    if value.ndim > 2:
        value = np.moveaxis(value, -1, 1)
    new = torch.from_numpy(np.ascontiguousarray(value))
    if len(step.sources) == 2:  # weight norm: length and direction
        length, direction = (state[key] for key in step.sources)
        length.copy_(new.flatten(1).norm(dim=1).reshape(length.shape))
        direction.copy_(new)
    else:
        state[step.sources[0]].copy_(new)


class Stored:
    """Values of a converted folder as float32, quantized ones as MLX reads them."""

    def __init__(self, folder: Path, found: Found) -> None:
        self._found = found
        self._settings = quantization_of(folder) or {}
        self._arrays: dict[str, mx.array] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self._arrays |= mx.load(str(file))

    def value(self, name: str) -> np.ndarray:
        """One parameter by the name it has when it is not quantized."""
        array = self._arrays[name]
        if self._found.tags[name] == "U32":
            layer = name.removesuffix(".weight")
            own = self._settings.get(layer, {})
            group_size, bits = (own.get(key, self._settings[key]) for key in ("group_size", "bits"))
            array = mx.dequantize(
                array, self._arrays[f"{layer}.scales"], self._arrays[f"{layer}.biases"], group_size, bits
            )
        return np.array(array.astype(mx.float32))

    def compute_tag(self, name: str) -> str:
        """Dtype that the parameter's layer computes in."""
        return self._found.tags.get(f"{name.removesuffix('.weight')}.scales", self._found.tags[name])
