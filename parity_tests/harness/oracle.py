"""Both precisions of the reference: float32 as the original runs it, float64 as the truth both are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from parity_tests.harness.cases import Case
from parity_tests.harness.live import live_state
from parity_tests.harness.targets import Target

Arrays = dict[str, np.ndarray]


def reference_state(case: Case) -> Arrays:
    """The case's weights as a reference state dict in float32: given ones, or live random ones from the case's name."""
    if case.weights is not None:
        return dict(case.weights)
    module = case.target.build("reference", case.config)
    if not isinstance(module, torch.nn.Module):
        return {}
    return live_state({k: v.numpy() for k, v in module.state_dict().items()}, case.rng("weights"))


def run_reference(
    target: Target,
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    call: Mapping[str, Any],
    dtype: torch.dtype,
) -> Arrays:
    """Run the reference in `dtype`; float inputs and weights are cast, integers and masks stay as they are."""
    built = target.build("reference", config)
    if isinstance(built, torch.nn.Module):
        built.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=True)
        built.to(dtype).eval()
    tensors = {k: to_torch(v, dtype) for k, v in inputs.items()}
    with torch.inference_mode():
        return {k: to_numpy(v) for k, v in target.call("reference", built, {**tensors, **call}).items()}


def to_torch(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def to_numpy(value: Any) -> np.ndarray:
    """A tensor, or a list of tensors of one shape, as an array."""
    if isinstance(value, list):
        return np.stack([to_numpy(item) for item in value])
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
