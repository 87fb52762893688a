"""Where a part is defined on both sides, and which parts it contains: read from source files without importing them.

A part is a path below a package: `flow.layers.Attention`, `vocoder.stft.istft`, `flow.decoder.X.inference`. It contains
the classes and functions of the package that its code names, and what those name in turn. `self.x` stands for the
method x, or for whatever the class assigns to x.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mlx_parity.report.data import Module

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """A definition: dotted path below its package, file below the root, and syntax tree."""

    package: str
    path: str
    file: str
    node: Definition = field(compare=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.node.lineno}"


@dataclass
class _Module:
    """A source file: its definitions, and the names that it imports, as (package, dotted path)."""

    file: str
    defined: dict[str, Definition] = field(default_factory=dict)
    bound: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Places:
    """The source of two packages.

    Args:
        root: folder of both packages; files are named relative to it.
        packages: of the reference and of the port; a part contains what either side names, since the port may have fast
            forms that the reference lacks.
    """

    root: Path
    packages: tuple[str, str]

    @cache  # noqa: B019 (a project has one object)
    def find(self, package: str, path: str) -> Place | None:
        """The definition of a part, followed through imports; None if the package has no such name."""
        names = path.split(".")
        for cut in range(len(names) - 1, 0, -1):
            if (module := self._read(package, ".".join(names[:cut]))) is None:
                continue
            first, *rest = names[cut:]
            if first in module.bound:
                bound = module.bound[first][0], ".".join([module.bound[first][1], *rest])
                return self.find(*bound) if bound != (package, path) else None  # a package that imports its own module
            node: Any = module.defined.get(first)
            for name in rest:
                node = _methods(node).get(name) if isinstance(node, ast.ClassDef) else None
            return Place(package, path, module.file, node) if node is not None else None
        return None

    def describe(self, paths: Iterable[str], port: Callable[[str], str | None] | None = None) -> dict[str, Module]:
        """Each part's place on both sides, and which of the others it contains.

        Args:
            paths: of parts; a path of anything else has no place and contains nothing.
            port: from a path to its place in the port under test; the second package when None.
        """
        paths = list(dict.fromkeys(paths))
        return {path: self._describe(path, paths, port) for path in paths}

    def _describe(self, path: str, paths: list[str], port: Callable[[str], str | None] | None) -> Module:
        reference, own = (self.find(package, path) for package in self.packages)
        inside = {inner for place in (reference, own) if place is not None for inner in self.made_of(place)}
        contains = tuple(other for other in paths if other != path and other in inside)
        found = port(path) if port else str(own) if own else None
        return Module(str(reference) if reference else None, found, contains)

    def made_of(self, place: Place) -> set[str]:
        """Paths of everything that a part contains, except itself."""
        found: set[str] = set()
        waiting = [place]
        while waiting:
            for path in self._named(place.package, waiting.pop().path):
                inner = self.find(place.package, path)
                if inner is not None and inner.path not in found and inner.path != place.path:
                    found |= {path, inner.path}
                    waiting.append(inner)
        return found

    @cache  # noqa: B019 (a project has one object)
    def _named(self, package: str, path: str) -> list[str]:
        """Paths of the definitions that one definition names."""
        if (place := self.find(package, path)) is None:
            return []
        module_path, owner, method = self._split(place)
        module = self._read(place.package, module_path)
        if owner is None or method is None:
            found = [f"{place.path}.{name}" for name in _methods(place.node)] if owner else []
            return found + _resolved(module_path, module, place.node)
        found = _resolved(module_path, module, place.node)
        for attribute in _own_attributes(place.node):
            found += self._attribute(place.package, module_path, owner, attribute)
        return found

    def _attribute(self, package: str, module_path: str, owner: ast.ClassDef, name: str) -> list[str]:
        """Paths for `self.name`: a method, or what the class assigns to it; if neither, what the base classes have."""
        module = self._read(package, module_path)
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
                place = self.find(package, path)
                if place is not None and isinstance(place.node, ast.ClassDef) and place.node is not owner:
                    found += self._attribute(package, self._split(place)[0], place.node, name)
        return found

    def _split(self, place: Place) -> tuple[str, ast.ClassDef | None, str | None]:
        """Module path, class and method of a place."""
        head, _, last = place.path.rpartition(".")
        if isinstance(place.node, ast.ClassDef):
            return head, place.node, None
        if (above := self.find(place.package, head)) is not None and isinstance(above.node, ast.ClassDef):
            return above.path.rpartition(".")[0], above.node, last
        return head, None, None

    @cache  # noqa: B019 (a project has one object)
    def _read(self, package: str, module: str) -> _Module | None:
        """Parse a module of a package; None if it has none of that name."""
        base = self.root / package / Path(*module.split("."))
        file = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if not file.is_file():
            return None
        found = _Module(file.relative_to(self.root).as_posix())
        inside = [package, *module.split(".")] if file.name == "__init__.py" else [package, *module.split(".")[:-1]]
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                self._bind(found, node, inside)
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.defined[node.name] = node
        return found

    def _bind(self, found: _Module, node: ast.ImportFrom, inside: list[str]) -> None:
        """Add the names that an import takes from the two packages."""
        names = [*inside[: len(inside) - node.level + 1], *filter(None, [node.module])] if node.level else []
        names = names or (node.module or "").split(".")
        if names[0] in self.packages:
            for alias in node.names:
                found.bound[alias.asname or alias.name] = names[0], ".".join([*names[1:], alias.name])


def _given(function: Definition, name: str, of_self: bool = True) -> list[ast.expr]:
    """Values that a function assigns or appends to `self.name` or to a local name; a parameter's annotation."""
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
    """Dotted paths of the names in a piece of source that a package defines; local names of `function` are followed."""
    found: list[str] = []
    for inner in ast.walk(node):
        name: ast.AST = inner
        rest: list[str] = []
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
    attributes = (inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute))
    return [inner.attr for inner in attributes if _is(inner, inner.attr, True)]


def _is(node: ast.AST, name: str, of_self: bool) -> bool:
    """Whether a node is `self.name`, or the local `name`."""
    if not of_self:
        return isinstance(node, ast.Name) and node.id == name
    if not isinstance(node, ast.Attribute) or node.attr != name:
        return False
    return isinstance(node.value, ast.Name) and node.value.id == "self"
