"""Generic faults: typical porting mistakes, planted in any MLX module by its kind.

A mutation of a value (a weight, an epsilon) is set on the module. A mutation of a function (`mx.softmax`, `nn.gelu`)
applies only where that module calls it: the class of each module is wrapped to know which one is running. `mx.compile`
is off meanwhile, because a compiled graph keeps the functions that it was traced with.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_parity.sides.mlx import wrapped_calls

LOW, SCALE, EPSILON = 0.99, 1.01, 10.0
Function = Callable[..., Any]


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Args:
        kind: what is wrong, in a few words.
        module: name of the MLX module that computes wrongly, '' for the model itself.
        apply: makes the context in which it is wrong.
    """

    kind: str
    module: str
    apply: Callable[[], AbstractContextManager[None]]


def mutations(model: nn.Module, run: Callable[[], Any]) -> list[Mutation]:
    """All that fit a model.

    Args:
        model: with its weights; it is as before when a mutation's context is left.
        run: calls the model once, to see which module calls which function.
    """
    modules = dict(model.named_modules())
    leaves = {name for name, module in modules.items() if not module.leaf_modules()} or set(modules)
    found = [m for name, module in modules.items() for m in _of_values(name, module)]
    with _Running(model) as running:
        run()
    called = running.called
    found += [
        Mutation(kind, name, partial(_mutated_function, model, name, place, wrong))
        for (owner, function), kinds in FUNCTIONS.items()
        for kind, wrong in kinds.items()
        if hasattr(owner, function)
        for place in [(owner, function)]
        for name in called.get(place, ())
    ]
    found += [
        Mutation("level 1 % low", name, partial(_mutated_output, model, name))
        for name in running.seen
        if name in leaves
    ]
    return list({(m.kind, m.module): m for m in found}.values())


def _of_values(name: str, module: nn.Module) -> Iterator[Mutation]:
    if isinstance(getattr(module, "eps", None), float):
        yield Mutation("epsilon ten times too large", name, partial(_set, module, "eps", module.eps * EPSILON))
    if isinstance(getattr(module, "traditional", None), bool):
        wrong = partial(_set, module, "traditional", not module.traditional)
        yield Mutation("rotary halves for pairs, or pairs for halves", name, wrong)
    own = {key: value for key, value in module.items() if isinstance(value, mx.array)}
    if "bias" in own:
        yield Mutation("bias left out", name, partial(_set, module, "bias", mx.zeros_like(own["bias"])))
    weight = own.get("weight")
    square = weight is not None and weight.ndim == 2 and weight.shape[0] == weight.shape[1]
    if weight is not None and square and not isinstance(module, nn.Embedding):
        yield Mutation("weight of a square layer transposed", name, partial(_set, module, "weight", weight.T))
    for key, value in own.items():
        if value.dtype == mx.float32:
            rounded = value.astype(mx.float16).astype(mx.float32)
            yield Mutation(f"{key} rounded to float16", name, partial(_set, module, key, rounded))


@contextmanager
def _set(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    usual = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, usual)


class _Running:
    """A context that tracks which module is running, and which module calls which function.

    Args:
        exchanged: replacements by the place of a function; called with the name of the running module, the original
            function, and the arguments.
    """

    def __init__(self, model: nn.Module, exchanged: dict[tuple[Any, str], Function] | None = None) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._model = model
        self._exchanged = dict.fromkeys(FUNCTIONS, _pass_on) if exchanged is None else exchanged
        self._stack: list[str] = []
        self._open = contextlib.ExitStack()
        self.called: dict[tuple[Any, str], list[str]] = {}
        self.seen: dict[str, None] = {}

    def __enter__(self) -> _Running:
        mx.disable_compile()
        self._open.callback(mx.enable_compile)
        self._open.enter_context(wrapped_calls(self._model, self._noted))
        for place, wrong in self._exchanged.items():
            owner, name = place
            if usual := getattr(owner, name, None):
                self._open.callback(setattr, owner, name, usual)
                setattr(owner, name, functools.wraps(usual)(partial(self._called, place, usual, wrong)))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _noted(self, call: Function) -> Function:
        @functools.wraps(call)
        def noted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = self._names.get(id(module))
            if name is None:
                return call(module, *args, **kwargs)
            self.seen[name] = None
            self._stack.append(name)
            try:
                return call(module, *args, **kwargs)
            finally:
                self._stack.pop()

        return noted

    def _called(self, place: tuple[Any, str], usual: Function, wrong: Function, *args: Any, **kwargs: Any) -> Any:
        name = self._stack[-1] if self._stack else ""
        if name not in (names := self.called.setdefault(place, [])):
            names.append(name)
        return wrong(name, usual, *args, **kwargs)


def _pass_on(_: str, usual: Function, *args: Any, **kwargs: Any) -> Any:
    return usual(*args, **kwargs)


@contextmanager
def _mutated_function(model: nn.Module, module: str, place: tuple[Any, str], wrong: Function) -> Iterator[None]:
    def chosen(name: str, usual: Function, *args: Any, **kwargs: Any) -> Any:
        return wrong(usual, *args, **kwargs) if name == module else usual(*args, **kwargs)

    with _Running(model, {place: chosen}):
        yield


@contextmanager
def _mutated_output(model: nn.Module, name: str) -> Iterator[None]:
    module = dict(model.named_modules())[name]

    def low(call: Function) -> Function:
        @functools.wraps(call)
        def lowered(owner: nn.Module, *args: Any, **kwargs: Any) -> Any:
            found = call(owner, *args, **kwargs)
            return found * LOW if owner is module and isinstance(found, mx.array) else found

        return lowered

    with wrapped_calls(model, low):
        yield


def _eps(usual: Function, *args: Any, **kwargs: Any) -> Any:
    *others, eps = args if "eps" not in kwargs else (*args, kwargs.pop("eps"))
    return usual(*others, eps * EPSILON, **kwargs)


def _other_pairs(usual: Function, *args: Any, traditional: bool, **kwargs: Any) -> Any:
    return usual(*args, traditional=not traditional, **kwargs)


def _other_axis(usual: Function, x: mx.array, axis: int = -1, **kwargs: Any) -> mx.array:
    return usual(x, axis=-2 if axis in (-1, x.ndim - 1) else -1, **kwargs)


def _one_frame_late(usual: Function, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
    """A convolution (batch, frames, ..., channels) whose padding is moved by one along the first axis of the data."""
    late = mx.pad(x[:, :-1], [(0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)])
    return usual(late, *args, **kwargs)


def _scaled(usual: Function, q: mx.array, k: mx.array, v: mx.array, *, scale: float, **kwargs: Any) -> mx.array:
    return usual(q, k, v, scale=scale * SCALE, **kwargs)


def _over_queries(
    usual: Function, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **_: Any
) -> mx.array:
    """Attention whose weights sum to one over the queries."""
    groups = q.shape[1] // k.shape[1]
    k, v = (mx.repeat(t, groups, axis=1) for t in (k, v))
    scores = (q * scale) @ k.swapaxes(-1, -2)
    if isinstance(mask, str):
        n, m = scores.shape[-2:]
        mask = mx.arange(m)[None] <= mx.arange(m - n, m)[:, None]
    if mask is not None:
        scores = mx.where(mask, scores, -math.inf) if mask.dtype == mx.bool_ else scores + mask
    return mx.nan_to_num(mx.softmax(scores, axis=-2)) @ v


def _first_key_lost(
    usual: Function, q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, **kwargs: Any
) -> mx.array:
    """Attention that does not see the first cached position."""
    if k.shape[2] <= q.shape[2]:
        return usual(q, k, v, mask=mask, **kwargs)
    mask = mask[..., 1:] if isinstance(mask, mx.array) else mask
    return usual(q, k[:, :, 1:], v[:, :, 1:], mask=mask, **kwargs)


def _exchanged(name: str) -> Function:
    return lambda usual, *args, **kwargs: getattr(nn, name)(*args, **kwargs)


_CONVOLUTION = {"padding of a convolution moved by one": _one_frame_late}
# What a function is exchanged for, by kind of fault.
FUNCTIONS: dict[tuple[Any, str], dict[str, Function]] = {
    (mx.fast, "rms_norm"): {"epsilon ten times too large": _eps},
    (mx.fast, "layer_norm"): {"epsilon ten times too large": _eps},
    (mx.fast, "rope"): {"rotary halves for pairs, or pairs for halves": _other_pairs},
    (mx.fast, "scaled_dot_product_attention"): {
        "attention scale 1 % high": _scaled,
        "softmax over the wrong axis": _over_queries,
        "one cached position skipped": _first_key_lost,
    },
    (mx, "softmax"): {"softmax over the wrong axis": _other_axis},
    (nn, "gelu"): {"GELU by tanh for erf": _exchanged("gelu_approx")},
    (nn, "gelu_approx"): {"GELU by erf for tanh": _exchanged("gelu")},
    (nn, "silu"): {"Mish for SiLU": _exchanged("mish")},
    (nn, "mish"): {"SiLU for Mish": _exchanged("silu")},
    **{(mx, name): _CONVOLUTION for name in ("conv1d", "conv2d", "conv_general", "conv_transpose1d")},
}
