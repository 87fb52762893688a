"""The reference's runs of a case: float32 as the original runs it and in other orders, float64 as the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mlx_parity.adapter import Side
from mlx_parity.case import Case
from mlx_parity.compare import Reading, compare
from mlx_parity.part import Part
from mlx_parity.sides.orders_pytorch import in_other_orders

Arrays = dict[str, np.ndarray]


# One output of the reference in float32, in float64, and in float32 with its sums in other orders.
Runs = tuple[np.ndarray, np.ndarray, Sequence[np.ndarray]]


@dataclass(frozen=True)
class Truth:
    """The truth of a case, by which a port is judged.

    Args:
        state, inputs: of the case, float32.
        single: the reference in float32.
        further: the same with its sums in other orders.
        double: the reference in float64, the oracle.
        rounded: the oracle's from `state` and `inputs` moved by one float32 rounding each.
    """

    state: Arrays
    inputs: Arrays
    single: Arrays
    further: Sequence[Arrays]
    double: Arrays
    rounded: Arrays


def truth_of(case: Case) -> Truth:
    """Run the reference on a case in all forms that a verdict needs."""
    state, inputs = reference_state(case), case.draw()

    def run(dtype: torch.dtype, state: Arrays = state, inputs: Arrays = inputs) -> Arrays:
        return run_reference(case.part, case.config, state, inputs, case.call, dtype)

    rng = case.rng("rounded")
    moved = [{k: one_rounding(v, rng) for k, v in arrays.items()} for arrays in (state, inputs)]
    return Truth(
        state,
        inputs,
        run(torch.float32),
        in_other_orders(lambda: run(torch.float32)),
        run(torch.float64),
        run(torch.float64, *moved),
    )


def one_rounding(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each float32 number other than 0 moved up or down to its neighbour; integers and masks as they are."""
    if array.dtype.kind != "f":
        return array
    array = array.astype(np.float32)
    towards = np.where(rng.integers(0, 2, array.shape), np.inf, -np.inf).astype(np.float32)
    return np.where(array == 0, array, np.nextafter(array, towards))


def reference_state(case: Case) -> Arrays:
    """The case's weights as a reference state dict in float32: given ones, or live random ones from the case's name."""
    if case.weights is not None:
        return dict(case.weights)
    module = case.part.build("reference", case.config)
    if not isinstance(module, torch.nn.Module):
        return {}
    return case.part.live({k: v.numpy() for k, v in module.state_dict().items()}, case.rng("weights"))


class Reference(Side):
    """The PyTorch side in one precision: float64 is the oracle."""

    name = package = "reference"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def build(self, part: Part, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Any:
        built = part.build(self.package, config)
        if isinstance(built, torch.nn.Module):
            built.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=True)
            built.to(self.dtype).eval()
        return built

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return to_torch(array, self.dtype)

    def array(self, tensor: Any) -> np.ndarray:
        return to_numpy(tensor)

    @torch.inference_mode()
    def call(
        self, part: Part, built: Any, inputs: Mapping[str, np.ndarray], call: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        return super().call(part, built, inputs, call)


def run_reference(
    part: Part,
    config: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    call: Mapping[str, Any],
    dtype: torch.dtype,
) -> Arrays:
    """Run a part of the reference in `dtype`; the other arguments are those of `Adapter.run`."""
    return Reference(dtype).run(part, config, state, inputs, call)


def to_torch(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def to_numpy(value: Any) -> np.ndarray:
    """A tensor, or a list of tensors of one shape, as an array."""
    if isinstance(value, list):
        return np.stack([to_numpy(item) for item in value])
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def against(port: np.ndarray, run: Callable[[torch.dtype], np.ndarray]) -> Reading:
    """Judge one result by a function that runs the reference in a dtype."""
    others = in_other_orders(lambda: run(torch.float32))
    return compare(port, run(torch.float32), run(torch.float64), further=others)
