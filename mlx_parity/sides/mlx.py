"""The MLX side of `compare_models`. MLX modules have no hooks: their classes are wrapped while a run is recorded."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_parity.recorded import Arguments, Call, Keep
from mlx_parity.tree import leaves, mapped, module_of

HALVES = (mx.float16, mx.bfloat16)


def mlx_module(function: Callable[..., Any], **modules: nn.Module | list[nn.Module]) -> nn.Module:
    """A function as a module: `function(self, ...)` is its call, and `modules` are what `self` has."""
    return module_of(nn.Module, "__call__", function, modules)


class MlxSide:
    """One MLX model, recorded.

    Args:
        model: with float32 weights.

    Raises:
        ValueError: weights that are not float32.
    """

    def __init__(self, model: nn.Module) -> None:
        values = dict(tree_flatten(model.parameters())).values()
        kinds = {value.dtype for value in values if mx.issubdtype(value.dtype, mx.floating)}
        if found := kinds - {mx.float32}:
            names = ", ".join(sorted(str(kind).rpartition(".")[2] for kind in found))
            raise ValueError(f"the MLX model has {names} weights: compare it in float32 (model.set_dtype(mx.float32))")
        self.model = model
        self.names = {name: module for name, module in model.named_modules() if name}

    def kind(self, name: str) -> type:
        """The class of a module; of the model itself for ''."""
        return type(self.names[name] if name else self.model)

    def record(self, inputs: Arguments, keep: Keep, only: Collection[str] | None = None) -> list[Call]:
        """The calls of one run. If `mx.compile` hides some, it runs again without compilation.

        Args:
            only: names of the modules whose arrays are wanted; calls of others are without. None for all.
        """
        try:
            return self._run(inputs, keep, only)
        except _Traced:
            mx.disable_compile()
            try:
                return self._run(inputs, keep, only)
            finally:
                mx.enable_compile()

    def again(self, name: str, given: Arguments) -> dict[str, np.ndarray]:
        """One module alone."""
        module = self.names[name] if name else self.model
        with _evaluating(self.model):
            return {k: _array(v) for k, v in _results(_call(module, given)).items()}

    def _run(self, inputs: Arguments, keep: Keep, only: Collection[str] | None) -> list[Call]:
        calls: list[Call] = []
        names = {id(module): name for name, module in [*self.names.items(), ("", self.model)]}
        running: set[int] = set()

        def recorded(call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def wrapped(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                if id(module) in running or id(module) not in names:
                    return call(module, *args, **kwargs)
                name = names[id(module)]
                wanted = only is None or name in only
                given = _frozen((args, kwargs), keep) if wanted else ((), {})
                running.add(id(module))
                try:
                    output = call(module, *args, **kwargs)
                finally:
                    running.discard(id(module))
                held = _results(output) if wanted else {}
                results = {place: keep(_array(value)) for place, value in held.items()}
                calls.append(Call(name, type(module).__name__, given, results))
                return output

            return wrapped

        with _evaluating(self.model), wrapped_calls(self.model, recorded):
            mx.eval(list(_results(_call(self.model, inputs)).values()))
        return calls


@contextlib.contextmanager
def wrapped_calls(model: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """A context in which `wrap` replaces `__call__` of each class of a model's modules."""
    kinds = {type(module) for module in model.modules() if callable(module)}
    own = {kind: kind.__dict__.get("__call__") for kind in kinds}
    made = {kind: wrap(kind.__call__) for kind in kinds}
    try:
        for kind, call in made.items():
            kind.__call__ = call
        yield
    finally:
        for kind, usual in own.items():
            if usual is None:
                del kind.__call__
            else:
                kind.__call__ = usual


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module._training = True


class _Traced(Exception):
    """A module was called inside a compiled function, where its values are not available."""


def _call(module: nn.Module, given: Arguments) -> Any:
    args, kwargs = mapped(given, to_mlx)
    return module(*args, **kwargs)


def to_mlx(value: Any) -> Any:
    """Arrays of floats become float32; integers and masks keep their kind, anything else is as it is."""
    if not isinstance(value, np.ndarray):
        return value
    return mx.array(value.astype(np.float32) if value.dtype.kind == "f" else value)


def _frozen(value: Any, keep: Keep) -> Any:
    return mapped(value, lambda item: keep(_array(item)) if isinstance(item, mx.array) else item)


def _results(output: Any) -> dict[str, mx.array]:
    return dict(leaves(output, mx.array))


def to_numpy(value: Any) -> np.ndarray:
    """An array, or a list of arrays of one shape; a float that numpy lacks becomes float32."""
    if isinstance(value, list):
        return np.stack([to_numpy(item) for item in value])
    return np.array(value.astype(mx.float32) if value.dtype in HALVES else value)


def _array(value: mx.array) -> np.ndarray:
    try:
        return to_numpy(value)
    except ValueError as error:
        if "compile" in str(error):
            raise _Traced from error
        raise
