"""Dataclasses as JSON and back. Reading is strict; the JSON schema follows from the same types.

A type is a dataclass of these, `Mapping[str, X]`, `tuple[X, ...]`, `X | None`, a `Literal`, or str, int, float, bool;
`Annotated` adds `Limits` and words. What a `derived` property gives is written too, and must be true where it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, cached_property
from operator import ge, gt, le
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
SHOWN = 60  # longest quote of a wrong value, in characters


class ReportError(ValueError):
    """A report that is unreadable or inconsistent; the message is one line."""


class derived(cached_property):
    """A property that follows from the fields. Its type is its return annotation."""


@dataclass(frozen=True)
class Limits:
    """Of a number, or of the length of a text or list; a text must match `pattern`, a mapping must have the `keys`."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    pattern: str | None = None
    keys: tuple[str, ...] = ()


@cache
def _parts(kind: type) -> tuple[dict[str, Any], dict[str, Any], frozenset[str]]:
    """Types of a dataclass's fields and of what it derives, by name, and which fields must be there."""
    hints = get_type_hints(kind, include_extras=True)
    found = {f.name: hints[f.name] for f in fields(kind)}
    needed = frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    properties = {name: value for base in kind.__mro__ for name, value in vars(base).items()}
    rules = {name: value.func for name, value in properties.items() if isinstance(value, derived)}
    follows = {name: get_type_hints(rule, include_extras=True)["return"] for name, rule in rules.items()}
    return found, follows, needed


def _bare(kind: Any) -> tuple[Any, Limits, str]:
    """A type without its annotation, its limits, and what is said of it."""
    if get_origin(kind) is not Annotated:
        return kind, Limits(), ""
    inner, *about = get_args(kind)
    limits = next((a for a in about if isinstance(a, Limits)), Limits())
    return inner, limits, next((a for a in about if isinstance(a, str)), "")


def _optional(kind: Any) -> Any:
    """X of `X | None`; None for other types."""
    if get_origin(kind) in (Union, UnionType):
        (inner,) = (a for a in get_args(kind) if a is not type(None))
        return inner
    return None


def plain(value: Any) -> Any:
    """Values as JSON has them; what a dataclass derives comes first."""
    if is_dataclass(value):
        of: Any = type(value)
        found, follows, _ = _parts(of)
        return {name: plain(getattr(value, name)) for name in (*follows, *found)}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def read(kind: type[T], value: Any, place: str = "report") -> T:
    """A value of a type from JSON.

    Raises:
        ReportError: what is wrong and where.
    """
    made: Any = _read(kind, value, place)
    return made


def _read(kind: Any, value: Any, place: str) -> Any:
    kind, limits, _ = _bare(kind)
    if (inner := _optional(kind)) is not None:
        return None if value is None else _read(inner, value, place)
    if is_dataclass(kind):
        return _read_object(kind, value, place)
    origin, of = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in of:
            raise _wrong(place, value, f"one of {', '.join(map(str, of))}")
        return value
    if origin is tuple:
        _require(type(value) is list, place, value, "a list")
        _check(limits, len(value), place, value, " entries")
        return tuple(_read(of[0], inner, f"{place}[{i}]") for i, inner in enumerate(value))
    if origin is Mapping:
        _require(type(value) is dict, place, value, "an object")
        if missing := [key for key in limits.keys if key not in value]:
            raise ReportError(f"{place}: {missing[0]} is missing")
        return {_read(of[0], k, f"a key of {place}"): _read(of[1], v, f"{place}.{_shown(k)}") for k, v in value.items()}
    return _read_scalar(kind, limits, value, place)


def _read_object(kind: Any, value: Any, place: str) -> Any:
    _require(type(value) is dict, place, value, "an object")
    found, follows, needed = _parts(kind)
    if unknown := [name for name in value if name not in found and name not in follows]:
        raise ReportError(f"{place}: unknown field {_shown(unknown[0])}")
    if missing := [name for name in found if name in needed and name not in value]:
        raise ReportError(f"{place}: {missing[0]} is missing")
    made = kind(**{n: _read(of, value[n], f"{place}.{n}") for n, of in found.items() if n in value})
    for problem in made.problems() if hasattr(made, "problems") else ():
        raise ReportError(f"{place}: {problem}")
    for name, of in follows.items():
        if name in value and (stated := _read(of, value[name], f"{place}.{name}")) != getattr(made, name):
            raise ReportError(_difference(stated, getattr(made, name), f"{place}.{name}"))
    return made


def _read_scalar(kind: type, limits: Limits, value: Any, place: str) -> Any:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    fits = isinstance(value, int | float if kind is float else kind) and (kind is bool) == isinstance(value, bool)
    _require(fits, place, value, names[kind])
    if kind is str:
        _require(not any("\ud800" <= c <= "\udfff" for c in value), place, value, "UTF-8 text")
        _require(not limits.pattern or re.fullmatch(limits.pattern, value) is not None, place, value, "of its form")
        _check(limits, len(value), place, value, " characters")
        return printing(value)
    if kind is not bool:
        _require(math.isfinite(value), place, value, "finite; a value that was not measured must be null")
        _check(limits, value, place, value, "")
    return value


def printing(text: str) -> str:
    """One line with unprintable characters escaped: they could rewrite a terminal, forge a log line or command CI."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def _check(limits: Limits, number: float, place: str, value: Any, unit: str) -> None:
    bounds = (limits.least, ge, "at least"), (limits.above, gt, "above"), (limits.most, le, "at most")
    for bound, fits, words in bounds:
        _require(bound is None or fits(number, bound), place, value, f"{words} {bound}{unit}")


def _require(fits: bool, place: str, value: Any, words: str) -> None:
    if not fits:
        raise _wrong(place, value, words)


def _wrong(place: str, value: Any, words: str) -> ReportError:
    return ReportError(f"{place}: is {_shown(value)}, must be {words}")


def _shown(value: Any) -> str:
    """A value or key in one short line, whatever it contains."""
    text = value if isinstance(value, str) and re.fullmatch(r"[\w.@/ -]+", value, re.A) else ascii(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def _difference(stated: Any, true: Any, place: str) -> str:
    """Where what was written differs from what follows."""
    for f in fields(true) if is_dataclass(true) and is_dataclass(stated) else ():
        if f.compare and getattr(stated, f.name) != getattr(true, f.name):
            return _difference(getattr(stated, f.name), getattr(true, f.name), f"{place}.{f.name}")
    return f"{place}: is {_shown(plain(stated))}, the report gives {_shown(plain(true))}"


def schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a type (draft 2020-12); it can say all but `problems` and what is derived."""
    found: dict[str, Any] = {}
    root = _schema(kind, found)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": found}


def _schema(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    kind, limits, said = _bare(kind)
    if (inner := _optional(kind)) is not None:
        node: dict[str, Any] = {"anyOf": [_schema(inner, found), {"type": "null"}]}
    elif isinstance(kind, type) and is_dataclass(kind):
        if kind.__name__ not in found:
            found[kind.__name__] = {}
            found[kind.__name__] |= _object_schema(kind, found)
        node = {"$ref": f"#/$defs/{kind.__name__}"}
    elif get_origin(kind) is Literal:
        node = {"enum": list(get_args(kind))}
    elif get_origin(kind) is tuple:
        node = {"type": "array", "items": _schema(get_args(kind)[0], found), **_bounds(limits, "Items")}
    elif get_origin(kind) is Mapping:
        key, value = (_schema(of, found) for of in get_args(kind))
        node = {"type": "object", "propertyNames": key, "additionalProperties": value, "required": list(limits.keys)}
    else:
        node = {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]}
        node |= _bounds(limits, "Length" if kind is str else "imum")
    return node | ({"description": said} if said else {})


def _object_schema(kind: type, found: dict[str, Any]) -> dict[str, Any]:
    members, follows, needed = _parts(kind)
    return {
        "description": " ".join((kind.__doc__ or "").partition("\n\n")[0].split()),
        "type": "object",
        "additionalProperties": False,
        "required": [name for name in members if name in needed],
        "properties": {name: _schema(of, found) for name, of in (members | follows).items()},
    }


def _bounds(limits: Limits, of: str) -> dict[str, Any]:
    found: dict[str, Any] = {f"min{of}": limits.least, f"max{of}": limits.most, "exclusiveMinimum": limits.above}
    found["pattern"] = limits.pattern and f"^(?:{limits.pattern})$"
    return {key: value for key, value in found.items() if value is not None}
