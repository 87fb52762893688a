"""What a port must offer to be judged: run a named part on given weights and inputs, all in the reference's layout.

An adapter never sees the reference's results. It gets the official weights (names and layouts of the PyTorch
checkpoint, float32), the inputs as numpy arrays, and returns numpy arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.harness.targets import Target


class NotOffered(Exception):
    """The port has no such part; the report lists it as not checked, it never counts as passed."""


class Adapter(ABC):
    """One port under test."""

    name: str

    @abstractmethod
    def run(
        self,
        target: Target,
        config: Mapping[str, Any],
        state: Mapping[str, np.ndarray],
        inputs: Mapping[str, np.ndarray],
        call: Mapping[str, Any],
    ) -> dict[str, np.ndarray]:
        """Run the port's part that corresponds to `target`.

        Args:
            target: the part, by its path (`flow.layers.Attention`), see harness/targets.py.
            config: the part's sizes, named as in the reference's constructor.
            state: the part's weights, keys relative to the part, official names and layouts.
            inputs: float32, integer or bool arrays by argument name, in the reference's layout.
            call: further arguments that are no arrays (`streaming`, `finalize`, ...).

        Returns:
            output name -> array in the reference's layout.

        Raises:
            NotOffered: the port has no such part.
        """

    def versions(self) -> dict[str, str]:
        """Versions for the report's provenance."""
        return {}
