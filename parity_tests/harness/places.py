"""Where a part stands on both sides, and which parts it is made of: read from the source files, nothing is imported.

A part is a path below a package: `flow.layers.Attention`, `vocoder.stft.istft`, `flow.decoder.X.inference`. What it is
made of are the classes and functions of the package that its code names, and what those name in turn; of `self.x` the
method x, or whatever the class assigns to x.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mlx_parity.report.data import Module
from parity_tests.harness.fingerprint import ROOT

PACKAGES = ("reference", "port")  # a part is made of what either side names: the port has fast forms of its own
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """A definition: dotted path below its package, file, line, and its source."""

    package: str
    path: str
    file: Path
    node: Definition = field(compare=False)

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT).as_posix()}:{self.node.lineno}"


@dataclass
class _Module:
    """A source file: its own definitions, and what its imports bind, as (package, dotted path)."""

    file: Path
    defined: dict[str, Definition] = field(default_factory=dict)
    bound: dict[str, tuple[str, str]] = field(default_factory=dict)


@cache
def find(package: str, path: str) -> Place | None:
    """Where a part is defined, followed through imports; None where the package has no such name."""
    names = path.split(".")
    for cut in range(len(names) - 1, 0, -1):
        if (module := _read(package, ".".join(names[:cut]))) is None:
            continue
        first, *rest = names[cut:]
        if first in module.bound:
            bound = module.bound[first][0], ".".join([module.bound[first][1], *rest])
            return find(*bound) if bound != (package, path) else None  # a folder that imports its own files
        node: Any = module.defined.get(first)
        for name in rest:
            node = _methods(node).get(name) if isinstance(node, ast.ClassDef) else None
        return Place(package, path, module.file, node) if node is not None else None
    return None


def describe(paths: Iterable[str], port: Any = None) -> dict[str, Module]:
    """For each part its place on both sides, and which others it contains.

    Args:
        paths: of parts; anything else has no place and contains nothing.
        port: gives the place of a path in the port under test; this repository's port when None.
    """
    paths = list(dict.fromkeys(paths))
    return {path: _describe(path, paths, port) for path in paths}


def _describe(path: str, paths: list[str], port: Any) -> Module:
    reference, own = (find(package, path) for package in PACKAGES)
    inside = {inner for place in (reference, own) if place is not None for inner in made_of(place)}
    found = port(path) if port else own and str(own)
    contains = tuple(other for other in paths if other != path and other in inside)
    return Module(reference and str(reference), found, contains)


def made_of(place: Place) -> set[str]:
    """Paths of all that a part is made of, itself left out."""
    found: set[str] = set()
    waiting = [place]
    while waiting:
        for path in _named(place.package, waiting.pop().path):
            inner = find(place.package, path)
            if inner is not None and inner.path not in found and inner.path != place.path:
                found |= {path, inner.path}
                waiting.append(inner)
    return found


@cache
def _named(package: str, path: str) -> list[str]:
    """Paths of the definitions that one definition names."""
    if (place := find(package, path)) is None:
        return []
    module_path, owner, method = _split(place)
    module = _read(place.package, module_path)
    if owner is None or method is None:
        found = [f"{place.path}.{name}" for name in _methods(place.node)] if owner else []
        return found + _resolved(module_path, module, place.node)
    found = _resolved(module_path, module, place.node)
    for attribute in _own_attributes(place.node):
        found += _attribute(place.package, module_path, owner, attribute)
    return found


def _attribute(package: str, module_path: str, owner: ast.ClassDef, name: str) -> list[str]:
    """What `self.name` is made of: a method, or what the class assigns to it; else what its base classes say."""
    module = _read(package, module_path)
    if name in _methods(owner):
        return [f"{module_path}.{owner.name}.{name}"]
    found = [
        path
        for function in _methods(owner).values()
        for value in _given(function, name)
        for path in _resolved(module_path, module, value, function)
    ]
    if found:
        return found
    for base in owner.bases:
        for path in _resolved(module_path, module, base):
            place = find(package, path)
            if place is not None and isinstance(place.node, ast.ClassDef) and place.node is not owner:
                found += _attribute(package, _split(place)[0], place.node, name)
    return found


def _split(place: Place) -> tuple[str, ast.ClassDef | None, str | None]:
    """Module path, class and method of a place."""
    head, _, last = place.path.rpartition(".")
    if isinstance(place.node, ast.ClassDef):
        return head, place.node, None
    if (above := find(place.package, head)) is not None and isinstance(above.node, ast.ClassDef):
        return above.path.rpartition(".")[0], above.node, last
    return head, None, None


def _given(function: Definition, name: str, of_self: bool = True) -> list[ast.expr]:
    """What a method assigns to `self.name`, or to a local name, or appends to it; a parameter's annotation."""
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [node.value] if any(_is(target, name, of_self) for target in targets) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            filled = node.func.attr in ("append", "extend", "insert") and _is(node.func.value, name, of_self)
            found += node.args if filled else []
        elif isinstance(node, ast.arg) and node.arg == name and node.annotation is not None and not of_self:
            found.append(node.annotation)
    return found


def _resolved(
    module_path: str, module: _Module | None, node: ast.AST, function: Definition | None = None, seen: tuple = ()
) -> list[str]:
    """Dotted paths of the package that the names in a piece of source stand for; local names of `function` too."""
    found: list[str] = []
    for inner in ast.walk(node):
        name, rest = inner, []
        while isinstance(name, ast.Attribute):
            rest.insert(0, name.attr)
            name = name.value
        if module is None or not isinstance(name, ast.Name):
            continue
        if name.id in module.bound:
            found.append(".".join([module.bound[name.id][1], *rest]))
        elif name.id in module.defined:
            found.append(".".join([module_path, name.id, *rest]))
        elif function is not None and name.id not in seen:
            for value in _given(function, name.id, of_self=False):
                found += _resolved(module_path, module, value, function, (*seen, name.id))
    return found


def _methods(node: ast.AST) -> dict[str, Definition]:
    if not isinstance(node, ast.ClassDef):
        return {}
    return {inner.name: inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)}


def _own_attributes(node: ast.AST) -> list[str]:
    return [inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute) and _is(inner, inner.attr, True)]


def _is(node: ast.AST, name: str, of_self: bool) -> bool:
    """Whether a node is `self.name`, or the local `name`."""
    if not of_self:
        return isinstance(node, ast.Name) and node.id == name
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return own and node.attr == name


@cache
def _read(package: str, module: str) -> _Module | None:
    """A module of a package, None where it has none of that name."""
    base = ROOT / package / Path(*module.split("."))
    file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    if not file.is_file():
        return None
    found = _Module(file)
    inside = [package, *module.split(".")] if file.name == "__init__.py" else [package, *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            _bind(found, node, inside)
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.defined[node.name] = node
    return found


def _bind(found: _Module, node: ast.ImportFrom, inside: list[str]) -> None:
    """Keep what an import takes from the packages of this repository that are compared."""
    names = [*inside[: len(inside) - node.level + 1], *filter(None, [node.module])] if node.level else []
    names = names or (node.module or "").split(".")
    if names[0] in PACKAGES:
        for alias in node.names:
            found.bound[alias.asname or alias.name] = names[0], ".".join([*names[1:], alias.name])
