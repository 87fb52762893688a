"""One call of one named module, in the form that both sides record."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Positional arguments and those by keyword; arrays are numpy's, or what `Keep` made of them.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Keep = Callable[[np.ndarray], Any]
Key = tuple[str, int]  # a module's name, and how often it was called before


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


def by_key(calls: Collection[Call]) -> dict[Key, Call]:
    """Calls by module and count."""
    counts: dict[str, int] = {}
    keyed = {}
    for call in calls:
        counts[call.name] = counts.get(call.name, -1) + 1
        keyed[call.name, counts[call.name]] = call
    return keyed
