"""Adapters written as one small function a part: a table from the part's path to the function that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity_tests.adapters.base import Adapter, NotOffered
from parity_tests.harness.targets import Target

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """One part to run; the fields are the arguments of `Adapter.run`."""

    target: Target
    config: Mapping[str, Any]
    state: Arrays
    inputs: Arrays
    call: Mapping[str, Any]

    @property
    def file(self) -> str:
        """The official file that holds the weights: llm, flow, hift, speech_tokenizer, speaker; '' for none."""
        return self.target.at.partition(":")[0]

    @property
    def prefix(self) -> str:
        """Where the part stands in that file, with the dot after it; '' for the whole file."""
        place = self.target.at.partition(":")[2]
        return f"{place}." if place else ""

    def official(self) -> dict[str, np.ndarray]:
        """The weights under their full names in the official file."""
        return {self.prefix + key: value for key, value in self.state.items()}

    def given(self, name: str) -> np.ndarray:
        """An input that some cases leave to the port, such as its noise.

        Raises:
            NotOffered: this case does.
        """
        if name not in self.inputs:
            raise NotOffered(f"the adapter runs {self.target.path.rpartition('.')[2]} with {name} given, not by itself")
        return self.inputs[name]

    def option(self, name: str, *allowed: Any) -> Any:
        """A further argument, None when absent.

        Raises:
            NotOffered: it is present and is none of `allowed`.
        """
        value = self.call.get(name)
        if value is not None and value not in allowed:
            raise NotOffered(f"the port has no {name} {value!r}")
        return value


Run = Callable[[Job], Mapping[str, Any]]


class Parts(dict[str, Run]):
    """Path of a part -> the function that runs it."""

    def offers(self, *paths: str) -> Callable[[Run], Run]:
        """Decorator: the function runs the parts of these paths."""

        def add(run: Run) -> Run:
            for path in paths:
                if path in self:
                    raise ValueError(f"{path} is offered twice")
                self[path] = run
            return run

        return add


class PartsAdapter(Adapter):
    """An adapter that looks the part up in a table.

    Args:
        name: of the port.
        parts: what it offers.
        absent: path, or its beginning, -> why the port does not offer it.
        to_numpy: turns what a function of the table returns for an output into an array.
    """

    def __init__(
        self,
        name: str,
        parts: Parts,
        absent: Mapping[str, str] | None = None,
        to_numpy: Callable[[Any], np.ndarray] = np.asarray,
    ) -> None:
        self.name = name
        self.parts = parts
        self.absent = dict(absent or {})
        self._to_numpy = to_numpy

    def run(
        self,
        target: Target,
        config: Mapping[str, Any],
        state: Arrays,
        inputs: Arrays,
        call: Mapping[str, Any],
    ) -> dict[str, np.ndarray]:
        if target.path not in self.parts:
            reasons = [reason for path, reason in self.absent.items() if target.path.startswith(path)]
            raise NotOffered(reasons[0] if reasons else f"{self.name} has no counterpart of {target.path}")
        results = self.parts[target.path](Job(target, config, state, inputs, call))
        return {name: self._to_numpy(value) for name, value in results.items()}
