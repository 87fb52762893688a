"""The verification plan: each component of the model, what was checked of it, and the rows and tests that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Component:
    """A line of the plan; `rows` are globs of checkpoint names, `tests` globs of pytest node ids."""

    name: str
    checked: str
    rows: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


PLAN: tuple[Component, ...] = ()

# Rows that may exceed the budget, each with its measured cause; printed in the report. None is needed at present.
EXCEPTIONS: list[dict[str, str]] = []

NOT_CHECKED: list[dict[str, str]] = []

_BAD = ("ERROR", "VACUOUS", "FAIL")


def components(checkpoints: Sequence[dict[str, Any]], tests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge each line of the plan by its evidence; a line without any evidence is an ERROR, never a pass."""
    return [_judge(component, checkpoints, tests) for component in PLAN]


def _judge(
    component: Component, checkpoints: Sequence[dict[str, Any]], tests: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    rows = [c for c in checkpoints if any(fnmatchcase(c["name"], glob) for glob in component.rows)]
    runs = [t for t in tests if any(fnmatchcase(t["nodeid"], f"*{glob}") for glob in component.tests)]
    broken = [c for c in rows if c["status"] in _BAD]
    issues = [f"{c['name']}: {c['message']}" for c in broken]
    issues += [f"{t['nodeid']}: {t['reason']}" for t in runs if t["outcome"] in ("failed", "error")]
    passed = [c for c in rows if c["status"] == "PASS"], [t for t in runs if t["outcome"] == "passed"]
    if issues:
        status = "ERROR" if any(c["status"] == "ERROR" for c in broken) else "FAIL"
    elif any(passed):
        status = "PASS"
    else:
        status = "SKIP" if rows or runs else "ERROR"
        issues = ["nothing was compared"]
    return {
        "component": component.name,
        "status": status,
        "checked": component.checked,
        "evidence": [c["name"] for c in rows] + [t["nodeid"] for t in runs],
        "issues": issues,
    }
