"""The PyTorch side of `compare_models`: every named module's calls, in float32 and in float64.

The float64 run is float64 throughout: what a model casts to float32 inside (norms, softmax, rotary tables) stays
float64, so that the oracle's error is not that of float32.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlx_parity.recorded import Arguments, Call, Keep
from mlx_parity.sides.orders_pytorch import Order, is_composite
from mlx_parity.sides.truth import to_torch
from mlx_parity.tree import leaves, mapped, module_of

WIDER = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    torch.complex64: torch.complex128,
}


class Wide(TorchDispatchMode):
    """A context in which casts to float32 and tables made in float32 are float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if kwargs.get("dtype") in WIDER:
            kwargs["dtype"] = WIDER[kwargs["dtype"]]
        return func(*args, **kwargs)


def torch_module(function: Callable[..., Any], **modules: torch.nn.Module) -> torch.nn.Module:
    """A function as a module: `function(self, ...)` is its forward, and `modules` are what `self` has."""
    return module_of(torch.nn.Module, "forward", function, modules)


class TorchSide:
    """One PyTorch model, recorded.

    Args:
        model: in float32.

    Raises:
        ValueError: weights that are not float32.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        found = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
        if found:
            raise ValueError(f"the PyTorch model has {_names(found)} weights: compare it in float32 (model.float())")
        self.model = copy.deepcopy(model)  # state left by a run must not enter the next comparison's float64
        self.double = _double(model)
        self.names = {name: module for name, module in self.model.named_modules() if name}

    def kind(self, name: str) -> type:
        """The class of a module; of the model itself for ''."""
        return type(self.model.get_submodule(name))

    def weights(self, name: str) -> dict[str, np.ndarray]:
        """Parameters and buffers of a module, by their names in it."""
        return {key: _array(value) for key, value in self.model.get_submodule(name).state_dict().items()}

    def record(self, inputs: Arguments, keep: Keep) -> list[Call]:
        """The calls of one run in float32."""
        return self._run(self.model, inputs, keep, torch.float32)

    def record_double(self, inputs: Arguments, keep: Keep) -> list[Call]:
        """The calls of one run in float64."""
        with _wide():
            return self._run(self.double, inputs, keep, torch.float64)

    def record_in_order(self, inputs: Arguments, keep: Keep, seed: int) -> list[Call]:
        """The calls of one run in float32 with its sums in another order."""
        with Order(seed):
            return self._run(self.model, inputs, keep, torch.float32)

    def again(self, name: str, given: Arguments) -> dict[str, np.ndarray]:
        """One module alone, in float32."""
        with _evaluating(self.model):
            return _results(_call(self.model.get_submodule(name), given, torch.float32))

    def again_double(self, name: str, given: Arguments) -> dict[str, np.ndarray]:
        """One module alone, in float64."""
        with _wide():
            return _results(_call(self.double.get_submodule(name), given, torch.float64))

    def again_in_order(self, name: str, given: Arguments, seed: int) -> dict[str, np.ndarray]:
        """One module alone, in float32 with its sums in another order."""
        with Order(seed):
            return self.again(name, given)

    @staticmethod
    def _run(model: torch.nn.Module, inputs: Arguments, keep: Keep, dtype: torch.dtype) -> list[Call]:
        calls: list[Call] = []
        began: list[Arguments] = []
        handles = []

        def before(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
            began.append((_frozen(args, keep), _frozen(kwargs, keep)))

        def after(name: str) -> Callable[..., None]:
            def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                results = {k: keep(v) for k, v in _results(output).items()}
                calls.append(Call(name, type(module).__name__, began.pop(), results))

            return hook

        try:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after(name), with_kwargs=True))
            with _evaluating(model):
                _call(model, inputs, dtype)
        finally:
            for handle in handles:
                handle.remove()
        return calls


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Wide():
            yield
    finally:
        torch.set_default_dtype(usual)


def _double(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64, with the tensors that are neither parameters nor buffers: windows, what a run left behind."""
    made = copy.deepcopy(model).double().eval()
    for module in made.modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, torch.Tensor) and v.dtype in WIDER}
        vars(module).update({key: value.to(WIDER[value.dtype]) for key, value in plain.items()})
    return made


def _call(module: torch.nn.Module, given: Arguments, dtype: torch.dtype) -> Any:
    args, kwargs = mapped(given, lambda value: to_torch(value, dtype) if isinstance(value, np.ndarray) else value)
    with torch.inference_mode():
        return module(*args, **kwargs)


def _frozen(value: Any, keep: Keep) -> Any:
    return mapped(value, lambda item: keep(_array(item)) if isinstance(item, torch.Tensor) else item)


def _results(output: Any) -> dict[str, np.ndarray]:
    return {place: _array(tensor) for place, tensor in leaves(output, torch.Tensor)}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def _names(dtypes: Sequence[torch.dtype] | set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
