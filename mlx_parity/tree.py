"""Nested arguments and results of models: arrays in tuples, lists, dictionaries and dataclasses, by path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None))


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers with `change` applied to every leaf; named tuples become plain ones."""
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [mapped(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return change(value)


def leaves(value: Any, kind: type | tuple[type, ...], place: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of one kind, in order, each with its path: `logits`, `0`, `hidden_states.3`."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        if isinstance(value, kind):
            yield place, value
        return
    for key, item in items:
        yield from leaves(item, kind, f"{place}.{key}" if place else str(key))


def module_of(base: type, method: str, function: Callable[..., Any], modules: Mapping[str, Any]) -> Any:
    """An instance of a module class of its own, whose `method` is `function` and which has `modules`."""
    made = type(function.__name__, (base,), {method: function})()
    for name, module in modules.items():
        setattr(made, name, module)
    return made


def stateful(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether it contains anything but values of `kind` and plain ones, such as an object that a call may change."""
    held: list[Any] = []
    mapped(value, held.append)
    return not all(isinstance(item, (*PLAIN, *(kind if isinstance(kind, tuple) else (kind,)))) for item in held)
