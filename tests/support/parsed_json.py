"""Parsed JSON: its leaves, and copies with other values."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Place = tuple[str | int, ...]


def leaves(content: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Path and value of everything that holds nothing: scalars, empty lists and objects."""
    if isinstance(content, dict | list) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, (*path, key))
    else:
        yield path, content


def edited(content: Any, path: Sequence[str | int], value: Any) -> Any:
    """A copy with another value at a path."""
    content = copy.deepcopy(content)
    *way, last = path
    at = content
    for step in way:
        at = at[step]
    at[last] = value
    return content


def put(content: Any, changes: Mapping[str, Any]) -> Any:
    """A copy with other values at dotted paths."""
    for path, value in changes.items():
        content = edited(content, path.split("."), value)
    return content
