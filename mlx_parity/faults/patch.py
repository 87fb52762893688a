"""A context in which one function or constant is changed.

A change is text: one piece of the source of the function `module:qualified.name` is replaced, wherever the function
has been imported to. The piece must occur exactly once, otherwise the row is an error: a catalogue cannot become stale
unnoticed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any


class FaultError(Exception):
    """A fault that cannot be read or applied; one line."""


@dataclass(frozen=True)
class Fault:
    """One row of a catalogue.

    Args:
        name: unique.
        family: kind of mistake.
        part: that must be named first.
        where: `module:qualified.name` of a function, or `module:NAME` of a constant.
        old: occurs once in the function's source; None for a constant.
        new: what replaces it: text, or the constant's value.
        seen_in: where it was seen in the wild.
        equivalent: proof that it changes nothing; such rows do not count in the score.
        line: file and line of the table.
    """

    name: str
    family: str
    part: str
    where: str
    old: str | None
    new: Any
    seen_in: str | None = None
    equivalent: str | None = None
    line: str = ""


@contextmanager
def patched(fault: Fault, packages: Sequence[str]) -> Iterator[None]:
    """A context in which the code has the fault.

    Args:
        packages: that may be changed; `Fault.where` names modules of the first without the package.

    Raises:
        FaultError: the code it was written for has changed.
    """
    try:
        module, name = _place(fault, packages)
        change = _replaced if fault.old is None else _edited
        context = change(fault, module, name, packages)
        context.__enter__()
    except (FaultError, ImportError, AttributeError) as error:
        raise FaultError(f"{fault.line or fault.name}: {fault.where}: {error}") from None
    try:
        yield
    finally:
        context.__exit__(None, None, None)


def function_of(fault: Fault, packages: Sequence[str]) -> FunctionType:
    """The function that a fault changes; the fault must not be one of a constant."""
    return _function(*_place(fault, packages))


def clear_caches(packages: Sequence[str]) -> None:
    """Clear all caches of functions in some packages."""
    for module in loaded(packages):
        for value in vars(module).values():
            if callable(clear := getattr(value, "cache_clear", None)):
                clear()


def loaded(packages: Sequence[str]) -> list[ModuleType]:
    """All modules of some packages that are imported."""
    return [module for name, module in sys.modules.items() if name.split(".")[0] in packages and module is not None]


@contextmanager
def _edited(fault: Fault, module: ModuleType, qualname: str, packages: Sequence[str]) -> Iterator[None]:
    function = _function(module, qualname)
    lines, first = inspect.getsourcelines(function)
    source, old = "".join(lines), str(fault.old)
    if source.count(old) != 1:
        raise FaultError(f"{old!r} stands there {source.count(old)} times")
    text = inspect.getsource(module).splitlines(keepends=True)
    text[first - 1 : first - 1 + len(lines)] = [source.replace(old, fault.new)]
    try:
        code = _find(compile("".join(text), str(module.__file__), "exec", dont_inherit=True), qualname)
    except SyntaxError as error:
        raise FaultError(f"the changed function is no Python: {error.msg}") from None
    original = function.__code__
    if code is None or code.co_freevars != original.co_freevars:
        raise FaultError("the changed function does not fit")
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = original


@contextmanager
def _replaced(fault: Fault, module: ModuleType, name: str, packages: Sequence[str]) -> Iterator[None]:
    if name not in vars(module):
        raise FaultError("no such name")
    original = vars(module)[name]
    holders = [other for other in loaded(packages) if vars(other).get(name) is original]
    for holder in holders:
        setattr(holder, name, fault.new)
    try:
        yield
    finally:
        for holder in holders:
            setattr(holder, name, original)


def _place(fault: Fault, packages: Sequence[str]) -> tuple[ModuleType, str]:
    path, _, name = fault.where.partition(":")
    return import_module(path if path.split(".")[0] in packages else f"{packages[0]}.{path}"), name


def _function(module: ModuleType, qualname: str) -> FunctionType:
    found: Any = module
    for part in qualname.split("."):
        found = inspect.getattr_static(found, part)
    if isinstance(found, property):
        found = found.fget
    return inspect.unwrap(getattr(found, "__func__", found))


def _find(code: CodeType, qualname: str) -> CodeType | None:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_qualname == qualname:
                return inner
            if (found := _find(inner, qualname)) is not None:
                return found
    return None
