"""Adapters as a table: the path of each part, and the function that runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlx_parity.adapter import Adapter, AdapterError, NotOffered
from mlx_parity.part import Part
from parity_tests.parts import PARTS, ROOT

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """One part to run; the fields are the arguments of `Adapter.run`."""

    part: Part
    config: Mapping[str, Any]
    state: Arrays
    inputs: Arrays
    call: Mapping[str, Any]

    @property
    def file(self) -> str:
        """The official file that holds the weights: llm, flow, hift, speech_tokenizer, speaker; '' for none."""
        return self.part.at.partition(":")[0]

    @property
    def prefix(self) -> str:
        """Prefix of the part's keys in that file, with a trailing dot; '' for the whole file."""
        place = self.part.at.partition(":")[2]
        return f"{place}." if place else ""

    def official(self) -> dict[str, np.ndarray]:
        """The weights under their full names in the official file."""
        return {self.prefix + key: value for key, value in self.state.items()}

    def given(self, name: str) -> np.ndarray:
        """An input that some cases leave to the port, such as its noise.

        Raises:
            NotOffered: this case does not give it.
        """
        if name not in self.inputs:
            raise NotOffered(f"the adapter runs {self.part.path.rpartition('.')[2]} with {name} given, not by itself")
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
        """Decorator: the function runs the parts of these paths.

        Raises:
            AdapterError: a path is in no case, or is offered already.
        """
        for path in paths:
            if path not in known_parts():
                raise unknown(path, "offers", known_parts())
            if path in self or paths.count(path) > 1:
                raise AdapterError(f"{path} is offered twice")

        def add(run: Run) -> Run:
            self.update(dict.fromkeys(paths, run))
            return run

        return add


@cache
def known_parts() -> frozenset[str]:
    """Paths of all parts that appear in a case, including the extra cases of an audit."""
    from parity_tests.adapters.extra import EXTRA_PARTS

    return frozenset([*PARTS, *(part.path for part in EXTRA_PARTS)])


def unknown(path: str, where: str, known: frozenset[str]) -> AdapterError:
    """The error for an unknown path, which an audit would otherwise ignore silently."""
    near = get_close_matches(path, known, n=1, cutoff=0)
    return AdapterError(f"{where}: the suite has no part {path!r}; the nearest is {near[0]!r}")


class PartsAdapter(Adapter):
    """An adapter that looks the part up in a table.

    Args:
        name: of the port.
        parts: what it offers.
        absent: path, or prefix of paths -> why the port does not offer it.
        to_numpy: converts an output of these functions to an array.

    Raises:
        AdapterError: an entry of `parts` or `absent` matches no part.
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
        for path in self.parts:
            if path not in known_parts():
                raise unknown(path, "parts", known_parts())
        for beginning in self.absent:
            if not any(path.startswith(beginning) for path in known_parts()):
                raise unknown(beginning, "absent", known_parts())

    def place(self, path: str) -> str | None:
        run = self.parts.get(path)
        if run is None:
            return None
        code = inspect.unwrap(run).__code__
        file = Path(code.co_filename)
        return f"{file.relative_to(ROOT).as_posix()}:{code.co_firstlineno}" if file.is_relative_to(ROOT) else None

    def run(
        self, part: Part, config: Mapping[str, Any], state: Arrays, inputs: Arrays, call: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        if part.path not in self.parts:
            reasons = [reason for path, reason in self.absent.items() if part.path.startswith(path)]
            raise NotOffered(reasons[0] if reasons else f"{self.name} has no counterpart of {part.path}")
        results = self.parts[part.path](Job(part, config, state, inputs, call))
        return {name: self._to_numpy(value) for name, value in results.items()}
