"""A comparable unit: a class, method or function that the reference and the port have under the same path.

The reference keeps the original's layouts; a port may choose its own. A part says which arguments and results differ in
layout, so that everything else (cases, recorded numbers, traces, adapters) uses the reference's layout only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]


def live_weights(template: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A float32 value for each tensor of a state dict: matrices keep the magnitude of their input, vectors stay away
    from 0 and 1."""
    return {
        key: (
            rng.standard_normal(value.shape) / np.sqrt(np.prod(value.shape[1:]))
            if value.ndim > 1
            else rng.normal(0.7, 0.3, value.shape)
        ).astype(np.float32)
        for key, value in template.items()
    }


def _keywords(kind: type, config: dict[str, Any]) -> Any:
    return kind(**config)


@dataclass(frozen=True)
class Part:
    """One twin: a class, a method or a function that both sides have.

    Args:
        path: `module.Class`, `module.Class.method` or `module.function` below the package of either side.
        outputs: names of the results, in order.
        at: place of its weights in the official checkpoint, `file:prefix`; '' when it has none.
        config: dataclass that the constructor takes; None when it takes keyword arguments.
        read: makes that dataclass from a case's mapping.
        live: draws weights that all matter, from a state dict's shapes and a generator.
        stage: of the report.
        to_port: argument name -> change from the reference's layout to the port's.
        from_port: output name -> change back.
        prepare: argument name -> path of a twin function that both sides apply to it first.
        chained: both sides call it the same number of times inside the whole model.
        replay: it can be called again with the arguments of the other side.
        run: how to call it if a plain call is not enough; gets the callable and the arguments as the side's tensors.
        follows: results -> what the next part makes of them, in the reference's layout; compared in their place, where
            the values themselves are a convention.
        witness: a function of torch that the reference calls and has no twin of; never part of a walk.
        words: other words for it; `pytest -k` finds its cases by them.
    """

    path: str
    outputs: tuple[str, ...] = ("y",)
    at: str = ""
    config: type | None = None
    read: Callable[[type, dict[str, Any]], Any] = _keywords
    live: Callable[[Mapping[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]] = live_weights
    stage: str = ""
    to_port: Mapping[str, Change] = field(default_factory=dict)
    from_port: Mapping[str, Change] = field(default_factory=dict)
    prepare: Mapping[str, str] = field(default_factory=dict)
    run: Callable[[Any, dict[str, Any]], Any] | None = None
    chained: bool = True
    replay: bool = True
    follows: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    witness: Callable[..., Any] | None = None
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path without folder and file: class, method or function."""
        return self.path.split(".", 2)[-1]

    def resolve(self, package: str) -> tuple[Any, str | None]:
        """The class or function of one side and, for a method, its name."""
        if self.witness and package == "reference":
            return self.witness, None
        module, _, name = self.path.rpartition(".")
        try:
            return getattr(importlib.import_module(f"{package}.{module}"), name), None
        except ModuleNotFoundError:
            module, _, owner = module.rpartition(".")
            return getattr(importlib.import_module(f"{package}.{module}"), owner), name

    def build(self, package: str, config: Mapping[str, Any]) -> Any:
        """Construct the class (weights untouched), or return the function itself."""
        found, _ = self.resolve(package)
        if not isinstance(found, type):
            return found
        return found(self.read(self.config, dict(config))) if self.config else found(**config)

    def call(self, package: str, obj: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run one side; results by output name, lists of tensors left as lists."""
        arguments = dict(arguments)
        for name, path in self.prepare.items():
            if arguments.get(name) is not None:
                function, _ = Part(path).resolve(package)
                arguments[name] = function(arguments[name])
        _, method = self.resolve(package)
        function = getattr(obj, method) if method else obj
        result = self.run(function, arguments) if self.run else function(**arguments)
        if isinstance(result, dict):
            return result
        result = result if isinstance(result, tuple) else (result,)
        if len(result) != len(self.outputs):
            raise ValueError(f"{package}.{self.path}: {len(result)} results, expected {', '.join(self.outputs)}")
        return dict(zip(self.outputs, result, strict=True))
