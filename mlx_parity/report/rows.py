"""Functions of rows alone: order, status of a group, worst row, the isolated run of a chained row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_parity.report.data import Row, Status

BAD = frozenset({"FAIL", "ERROR", "VACUOUS"})
JUDGED = frozenset({"PASS", "FAIL"})
_SEVERITY: tuple[Status, ...] = ("ERROR", "FAIL", "VACUOUS", "REDUCED", "SKIP", "PASS")


def in_pipeline_order(rows: Iterable[Row], stages: Sequence[str]) -> list[Row]:
    """Rows by stage in the order the data flows, and in their own order within a stage."""
    return sorted(rows, key=lambda row: stages.index(row.stage))


def status_of(statuses: Iterable[str]) -> Status | None:
    """The status of a group: the most severe one, where SKIP counts only if no row passed."""
    found = set(statuses)
    if "PASS" in found:
        found -= {"SKIP"}
    return next((status for status in _SEVERITY if status in found), None)


def worst_of(rows: Sequence[Row]) -> Row | None:
    """The failing row with the largest ratio, or one without if none has one; if no row fails, the largest of all."""
    bad = [row for row in rows if row.status in BAD]
    measured = [row for row in bad or rows if row.ratio is not None and (bad or row.status in JUDGED)]
    return max(measured, key=lambda row: row.ratio, default=bad[0] if bad else None)


@dataclass(frozen=True)
class Stage:
    """Summary of a stage's rows: status, worst row, number of rows, number that passed.

    Where rows fail, the worst is one of them, and its ratio is None when none of them has one (unequal integers).
    """

    status: str | None
    worst: Row | None
    total: int
    passed: int

    @property
    def ratio(self) -> float | None:
        return self.worst.ratio if self.worst else None


def by_stage(rows: Sequence[Row], stages: Sequence[str]) -> dict[str, Stage]:
    """The summary of each stage."""
    found = {}
    for stage in stages:
        own = [row for row in rows if row.stage == stage]
        passed = sum(row.status == "PASS" for row in own)
        found[stage] = Stage(status_of(row.status for row in own), worst_of(own), len(own), passed)
    return found


def isolated_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The isolated run that belongs to a chained row: same name if there is one, else the worst of its module class."""
    if row.kind == "isolated":
        return row
    rows = [r for r in rows if r.kind == "isolated" and r.ratio is not None]
    same = [r for r in rows if r.name == row.name]
    same = [r for r in same if r.case == row.case] or same or [r for r in rows if r.module == row.module]
    return max(same, key=lambda r: r.ratio, default=None)
