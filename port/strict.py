"""Dataclasses from parsed JSON that somebody else wrote: unknown keys, wrong types and absurd sizes are refused."""

from __future__ import annotations

import math
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

# No real model comes near these; a config beyond them is damaged or hostile and must not reach an allocation.
MAX_INT = 1 << 20
MAX_ITEMS = 64
MAX_LAYERS = 512
# Fields that count modules, each of which takes memory before any weight is read.
LAYERS = ("depth", "num_hidden_layers", "block_layers")

C = TypeVar("C")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field and what is wrong with it."""


def from_dict(cls: type[C], data: Any, where: str = "") -> C:
    """Strictly build the dataclass `cls` from `data`; missing keys take their defaults.

    Raises:
        ConfigError: naming the path of the first offending field.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"config{where}: expected an object, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(map(str, data)) - known):
        raise ConfigError(f"config{where}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
    return cls(**{name: _checked(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _checked(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, list | tuple) or len(value) > MAX_ITEMS:
            raise ConfigError(f"config{where}: expected a list of at most {MAX_ITEMS} items")
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise ConfigError(f"config{where}: expected {len(inner)} items, found {len(value)}")
        return tuple(_checked(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 53 else math.inf
    if type(value) is not hint:
        raise ConfigError(f"config{where}: expected {hint.__name__}, found {type(value).__name__} {value!r:.40}")
    largest = MAX_LAYERS if where.rpartition(".")[2].partition("[")[0] in LAYERS else MAX_INT
    if hint is int and not 0 < value <= largest:
        raise ConfigError(f"config{where}: {value} is outside 1..{largest}")
    if hint is float and not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"config{where}: {value} is not a finite number >= 0")
    if hint is float and where.endswith("eps") and value == 0:
        raise ConfigError(f"config{where}: a norm needs more than {value}")
    return value
