"""One call of one named module, as both sides record it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Positional arguments and those by keyword; arrays are numpy's, or what `Keep` made of them.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Keep = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Call:
    """What a module received and returned.

    Args:
        name: of the module in its model, '' for the model itself.
        kind: name of its class.
        arguments: with arrays as `Keep` holds them.
        results: arrays by their place in what was returned.
    """

    name: str
    kind: str
    arguments: Arguments
    results: Mapping[str, Any]
