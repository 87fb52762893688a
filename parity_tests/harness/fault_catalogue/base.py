"""What a fault is: one change of one function or constant of the port (or of the converter), undone on leaving.

A change is written as text: `edit("flow.masks:make_pad_mask", ">=", ">")` runs the function with one piece of its
source replaced, wherever the function has been imported to. A row whose piece is no longer there (once, and only once)
cannot be applied and is an error, so the catalogue cannot rot in silence.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

Patch = Callable[[], AbstractContextManager[None]]
PACKAGES = ("port", "convert")


class FaultError(Exception):
    """A fault that cannot be applied: the code it was written for has changed."""


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue.

    Args:
        name: unique.
        family: kind of mistake.
        module: path below `port` of the part that must be named first; a module's path where no isolated case exists.
        patch: makes the context in which the port is wrong.
        seen_in: where it was seen in the wild.
        equivalent: proof that it changes nothing; such rows leave the score.
    """

    name: str
    family: str
    module: str
    patch: Patch
    seen_in: str | None = None
    equivalent: str | None = None

    @property
    def stage(self) -> str:
        return self.module.split(".")[0]


def edit(where: str, old: str, new: str) -> Patch:
    """Replace `old`, which stands once in the source of the function `module:qualified.name`, by `new`."""
    return partial(_edited, where, old, new)


def constant(where: str, value: Any) -> Patch:
    """Replace the module-level value `module:NAME`, wherever it has been imported to."""
    return partial(_replaced, where, value)


def clear_caches() -> None:
    """Forget every table that a function of the port or the converter keeps."""
    for module in loaded():
        for value in vars(module).values():
            if callable(clear := getattr(value, "cache_clear", None)):
                clear()


def loaded() -> list[ModuleType]:
    """All modules of the port and the converter that are imported."""
    return [module for name, module in sys.modules.items() if name.split(".")[0] in PACKAGES and module is not None]


@contextmanager
def _edited(where: str, old: str, new: str) -> Iterator[None]:
    module, qualname = _located(where)
    function = _function(module, qualname)
    lines, first = inspect.getsourcelines(function)
    source = "".join(lines)
    if source.count(old) != 1:
        raise FaultError(f"{where}: {old!r} stands there {source.count(old)} times")
    text = inspect.getsource(module).splitlines(keepends=True)
    text[first - 1 : first - 1 + len(lines)] = [source.replace(old, new)]
    code = _find(compile("".join(text), str(module.__file__), "exec", dont_inherit=True), qualname)
    original = function.__code__
    if code is None or code.co_freevars != original.co_freevars:
        raise FaultError(f"{where}: the changed function does not fit")
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = original


@contextmanager
def _replaced(where: str, value: Any) -> Iterator[None]:
    module, name = _located(where)
    if name not in vars(module):
        raise FaultError(f"{where}: no such name")
    original = vars(module)[name]
    holders = [other for other in loaded() if vars(other).get(name) is original]
    for holder in holders:
        setattr(holder, name, value)
    try:
        yield
    finally:
        for holder in holders:
            setattr(holder, name, original)


def _located(where: str) -> tuple[ModuleType, str]:
    path, _, name = where.partition(":")
    return import_module(path if path.split(".")[0] in PACKAGES else f"port.{path}"), name


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
