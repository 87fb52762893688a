"""What a port must offer to be judged: run a named part on given weights and inputs, all in the reference's layout.

An adapter never sees the reference's results. It gets the official weights (names and layouts of the PyTorch
checkpoint, float32), the inputs as numpy arrays, and returns numpy arrays.
"""

from __future__ import annotations

import importlib
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_parity.part import Part


class NotOffered(Exception):
    """The port has no such part. The report lists it as not checked; it never counts as passed."""


class AdapterError(ValueError):
    """An adapter that cannot be used; the message is one line."""


class Adapter(ABC):
    """One port under test."""

    name: str

    @abstractmethod
    def run(
        self,
        part: Part,
        config: Mapping[str, Any],
        state: Mapping[str, np.ndarray],
        inputs: Mapping[str, np.ndarray],
        call: Mapping[str, Any],
    ) -> dict[str, np.ndarray]:
        """Run the port's part that corresponds to `part`.

        Args:
            part: the part, by its path (`flow.layers.Attention`), see part.py.
            config: the part's sizes, named as in the reference's constructor.
            state: the part's weights, keys relative to the part, official names and layouts.
            inputs: float32, integer or bool arrays by argument name, in the reference's layout.
            call: other arguments, such as `streaming` or `finalize`.

        Returns:
            output name -> array in the reference's layout.

        Raises:
            NotOffered: the port has no such part.
        """

    def also(self, part: Part, config: Mapping[str, Any]) -> Mapping[str, Adapter]:
        """Other forms of a part to judge too, by the word that marks their rows."""
        return {}

    def noise(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The noise that the port uses if its caller gives none, float32.

        Args:
            name: `rand_noise`, the flow's start (1, 80, frames); `sine_waves`, the source's noise (1, samples, 9)
                before it is scaled.
            shape: of the result.

        Raises:
            NotOffered: the port's caller must always give it.
        """
        raise NotOffered(f"{self.name} does not say what noise it takes by itself")

    def place(self, path: str) -> str | None:
        """Place of a part in the port, as `file:line` below the repository; None if unknown."""
        return None

    def versions(self) -> dict[str, str]:
        """Versions for the report's provenance."""
        return {}


class Side(Adapter):
    """A side whose parts are objects in this process: built once, called any number of times.

    Attributes:
        package: the package that holds its parts.
    """

    package: str

    @abstractmethod
    def build(self, part: Part, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Any:
        """The part's class with the official weights in it, or the part's function; arguments as of `run`."""

    @abstractmethod
    def tensor(self, array: np.ndarray) -> Any:
        """Convert an array to a tensor of this side; floats in its precision, integers and masks unchanged."""

    @abstractmethod
    def array(self, tensor: Any) -> np.ndarray:
        """Convert a tensor to an array; a list of tensors of one shape becomes one array."""

    def get(self, path: str) -> Any:
        """Look up a name below the package: `flow.masks.make_pad_mask`."""
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(f"{self.package}.{module}"), name)

    def call(
        self, part: Part, built: Any, inputs: Mapping[str, np.ndarray], call: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Run a part that `build` made; arrays in the reference's layout on both ends."""
        to, back = ({}, {}) if self.package == "reference" else (part.to_port, part.from_port)
        tensors = {k: self.tensor(to.get(k, np.asarray)(v)) for k, v in inputs.items()}
        results = part.call(self.package, built, {**tensors, **call})
        return {k: back.get(k, np.asarray)(self.array(v)) for k, v in results.items()}

    def run(
        self,
        part: Part,
        config: Mapping[str, Any],
        state: Mapping[str, np.ndarray],
        inputs: Mapping[str, np.ndarray],
        call: Mapping[str, Any],
    ) -> dict[str, np.ndarray]:
        return self.call(part, self.build(part, config, state), inputs, call)


def show_tracebacks(adapter: Adapter) -> None:
    """Make an adapter print the traceback when its port raises; the comparison only records the exception."""
    run = adapter.run

    def shown(*arguments: Any) -> dict[str, np.ndarray]:
        try:
            return run(*arguments)
        except NotOffered:
            raise
        except Exception:
            traceback.print_exc()
            raise

    vars(adapter)["run"] = shown


def described(error: BaseException) -> str:
    """An exception in one line: type and message; of an `AdapterError` only its message, which is one line already."""
    message = " ".join(str(error).split())
    return message if type(error) is AdapterError else f"{type(error).__name__}: {message}".removesuffix(": ")
