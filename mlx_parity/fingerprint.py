"""What code a recorded result belongs to: a hash that comments, docstrings and layout do not change."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path


def fingerprint(root: Path, places: Iterable[str]) -> str:
    """Hash of Python files and tables.

    Args:
        root: the checkout.
        places: files and folders below it; a folder stands for all Python files in it, and for tables (`.txt`) in its
            folders named `faults`.

    Returns:
        16 hexadecimal digits.
    """
    found = hashlib.sha256()
    for place in places:
        path = root / place
        tables = [file for file in path.rglob("*.txt") if file.parent.name == "faults"]
        files = [*path.rglob("*.py"), *tables] if path.is_dir() else [path]
        for file in sorted(files):
            found.update(f"{file.relative_to(root).as_posix()}\n{_code(file)}\n".encode())
    return found.hexdigest()[:16]


def _code(file: Path) -> str:
    if file.suffix == ".txt":
        lines = (line.strip() for line in file.read_text("utf-8").splitlines())
        return "\n".join(line for line in lines if line and not line.startswith("#"))
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)
