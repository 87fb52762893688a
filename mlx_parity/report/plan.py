"""The verification plan: each component of a model, what was checked of it, and the rows and tests that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_parity.report.data import Component, Row, Status, Test
from mlx_parity.report.rows import BAD


@dataclass(frozen=True)
class Planned:
    """A line of the plan. It owns the rows and tests of every part below one of `parts`; the longest path wins."""

    name: str
    checked: str
    parts: tuple[str, ...]
    elsewhere: bool = False  # only tests of `Plan.elsewhere` are its evidence


@dataclass(frozen=True)
class Plan:
    """All lines.

    Args:
        elsewhere: prefix of the node ids of tests that a run may leave out.
    """

    lines: tuple[Planned, ...]
    elsewhere: str = ""

    @classmethod
    def read(cls, text: str, elsewhere: str = "") -> Plan:
        """From pairs of lines: `name: part part`, then what was checked; `(name)` if it is shown `elsewhere`."""
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        found = []
        for head, checked in zip(lines[::2], lines[1::2], strict=True):
            name, _, parts = head.partition(": ")
            found.append(Planned(name.strip("()"), checked, tuple(parts.split()), elsewhere=name.startswith("(")))
        return cls(tuple(found), elsewhere)

    def line_of(self, path: str) -> str | None:
        """The line that a part belongs to."""
        found = [(p, line.name) for line in self.lines for p in line.parts if f"{path}.".startswith(f"{p}.")]
        return max(found, key=lambda pair: len(pair[0]), default=(None, None))[1]

    def components(self, rows: Sequence[Row], tests: Sequence[Test], partial: bool = False) -> tuple[Component, ...]:
        """Judge each line by its evidence: rows by their module, tests by the part that they are marked with.

        A line without any evidence is an ERROR. It is a SKIP if the run was told to leave tests out (`partial`), or if
        its evidence is `elsewhere` and none of those tests ran.
        """
        shown: dict[str | None, tuple[list[Row], list[Test]]] = {line.name: ([], []) for line in self.lines}
        for row in rows:
            shown.setdefault(self.line_of(row.module), ([], []))[0].append(row)
        for test in tests:
            if test.part:
                shown.setdefault(self.line_of(test.part), ([], []))[1].append(test)
        ran = any(test.nodeid.startswith(self.elsewhere) for test in tests)
        found = [_judge(line, *shown[line.name], partial or (line.elsewhere and not ran)) for line in self.lines]
        if None in shown:
            evidence = _evidence(*shown[None])
            found.append(Component("Elsewhere", "ERROR", "parts that no line of the plan has", evidence, evidence))
        return tuple(found)


def _judge(planned: Planned, rows: Sequence[Row], tests: Sequence[Test], partial: bool) -> Component:
    broken = [row for row in rows if row.status in BAD]
    issues = [f"{row.name}: {row.message}" for row in broken]
    issues += [f"{test.nodeid}: {test.reason}" for test in tests if test.outcome in ("failed", "error")]
    status: Status
    if issues:
        status = "ERROR" if any(row.status == "ERROR" for row in broken) else "FAIL"
    elif any(row.status == "PASS" for row in rows) or any(test.outcome == "passed" for test in tests):
        status = "PASS"
    else:
        status = "SKIP" if rows or tests or partial else "ERROR"
        issues = ["not selected in this run" if partial and not (rows or tests) else "nothing was compared"]
    return Component(planned.name, status, planned.checked, _evidence(rows, tests), tuple(issues))


def _evidence(rows: Sequence[Row], tests: Sequence[Test]) -> tuple[str, ...]:
    return (*(row.name for row in rows), *(test.nodeid for test in tests))
