"""Record arguments and results of every twin of one side, in the order in which the calls ended.

MLX modules have no hooks, so both sides are recorded the same way: the classes and functions of its parts are
wrapped while a `Recorder` is open. The k-th call of a twin on one side corresponds to its k-th call on the other.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import mlx.core as mx
import mlx.nn as mlx_nn
import numpy as np
import torch

from mlx_parity.part import Part
from mlx_parity.sides.mlx import to_numpy
from mlx_parity.tree import mapped


@dataclass
class Call:
    """One call of one twin; arrays in the side's own layout and precision."""

    part: Part
    index: int
    name: str
    owner: Any
    arguments: dict[str, Any] = field(repr=False)
    results: dict[str, Any] = field(repr=False)


class Recorder:
    """Context manager that wraps one side's twins.

    Args:
        parts: what is recorded.
        package: of the side.
        root: module whose sub-modules give the calls their names; a call of anything else is named by its twin.
        keep: function of each array whose result is kept instead, such as its place in a file.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        package: str,
        root: Any = None,
        keep: Callable[[np.ndarray], Any] = np.asarray,
    ) -> None:
        self._parts = parts
        self.package = package
        self._keep = keep
        self.calls: list[Call] = []
        self._names = _names(root)
        self._counts: dict[str, int] = defaultdict(int)
        self._undo: list[Callable[[], None]] = []
        self._running: set[tuple[int, str]] = set()

    def __enter__(self) -> Recorder:
        for part in self._parts:
            if part.witness:
                continue
            found, method = part.resolve(self.package)
            if isinstance(found, type):
                call = "forward" if issubclass(found, torch.nn.Module) else "__call__"
                for kind in (found, *_extending(found)):
                    self._wrap(kind, method or call, part)
            else:
                name: str = found.__name__
                for module in [m for n, m in sys.modules.items() if n.split(".")[0] == self.package]:
                    if module.__dict__.get(name) is found:
                        self._wrap(module, name, part)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            self._undo.pop()()

    def of(self, path: str, name: str | None = None) -> list[Call]:
        """The calls of one twin, or of one sub-module of that twin."""
        return [c for c in self.calls if c.part.path == path and name in (None, c.name)]

    def _wrap(self, holder: Any, attribute: str, part: Part) -> None:
        if attribute not in vars(holder):
            return  # inherited: wrapped where it is defined
        original = vars(holder)[attribute]
        signature = inspect.signature(original)
        has_self = isinstance(holder, type)

        @functools.wraps(original)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            running = id(args[0]) if has_self else 0, attribute
            if has_self and running in self._running:
                return original(*args, **kwargs)  # what a fast form inherits from the plain one
            self._running.add(running)
            try:
                result = original(*args, **kwargs)
            finally:
                self._running.discard(running)
            if inspect.isgenerator(result):
                return result
            bound = signature.bind(*args, **kwargs)
            arguments = dict(list(bound.arguments.items())[1:] if has_self else bound.arguments)
            outputs = result if isinstance(result, tuple) else (result,)
            if len(outputs) != len(part.outputs):
                raise ValueError(f"{self.package}.{part.path}: {len(outputs)} results for {part.outputs}")
            owner = args[0] if has_self else None
            index = self._counts[part.path]
            self._counts[part.path] += 1
            name = self._names.get(id(owner)) or part.path
            if has_self and not attribute.startswith("__") and attribute != "forward":
                name = f"{name}.{attribute}"
            results = dict(zip(part.outputs, outputs, strict=True))
            call = Call(part, index, name, owner, freeze(arguments, self._keep), freeze(results, self._keep))
            self.calls.append(call)
            return result

        setattr(holder, attribute, recorded)
        self._undo.append(functools.partial(setattr, holder, attribute, original))


def _extending(kind: type) -> list[type]:
    """All classes that extend one: fast forms of a plain layer."""
    directly: list[type] = kind.__subclasses__()
    return [c for direct in directly for c in (direct, *_extending(direct))]


def freeze(value: Any, keep: Callable[[np.ndarray], Any] = np.asarray) -> Any:
    """Tensors as numpy copies that went through `keep`, containers kept, everything else (flags, caches) as it is."""

    def frozen(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return keep(item.detach().numpy().copy())
        return keep(to_numpy(item)) if isinstance(item, mx.array) else item

    return mapped(value, frozen)


def _names(root: Any) -> dict[int, str]:
    if isinstance(root, torch.nn.Module | mlx_nn.Module):
        return {id(module): name for name, module in root.named_modules() if name}
    return {}
