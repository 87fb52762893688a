"""What the tests of a run leave for its report: rows, sections, outcomes.

It travels with pytest's own report of each test. So it arrives the same way from this process, from the workers of
pytest-xdist and from forked tests, and what a crashed worker had finished is not lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

ATTRIBUTE = "parity"  # of pytest's report: plain values as in JSON, since workers send no others
RUNNING: pytest.StashKey[pytest.Item] = pytest.StashKey()  # key in the config's stash: the running test
LAST = 1 << 60  # place of entries that belong to no test


class Gathered:
    """Entries by kind, in the order in which the tests were collected, wherever they ran."""

    def __init__(self) -> None:
        self._pending: dict[str, list[Any]] = {}
        self._places: dict[str, int] = {}
        self._kept: dict[tuple[str, str], dict[str, list[Any]]] = {}
        self._tests: dict[str, dict[str, Any]] = {}

    def keep(self, kind: str, entries: Iterable[Any]) -> None:
        """Add entries (plain values as in JSON) of the running test."""
        self._pending.setdefault(kind, []).extend(entries)

    def keep_outside(self, kind: str, entries: Iterable[Any]) -> None:
        """Add entries that belong to no test; only in the process that writes the report."""
        self._kept.setdefault(("", kind), {}).setdefault(kind, []).extend(entries)

    def attach(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Send what was kept since the last report along with this one."""
        if not self._places:
            self._places = {item.nodeid: place for place, item in enumerate(item.session.items)}
        mark = item.get_closest_marker("part")
        content = {"at": self._places.get(item.nodeid, LAST), "kept": self._pending, "part": mark and mark.args[0]}
        setattr(report, ATTRIBUTE, json.dumps(content, allow_nan=False))
        self._pending = {}

    def receive(self, report: pytest.TestReport) -> None:
        """Take in a test's report; a test that runs again replaces what it left before.

        A failure outside the call phase counts as an error.
        """
        content = json.loads(getattr(report, ATTRIBUTE, "{}"))
        self._places.setdefault(report.nodeid, content.get("at", LAST))
        self._kept[report.nodeid, report.when] = content.get("kept", {})
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        else:
            reason = "" if report.passed else _last_line(report)
        entry = {"nodeid": report.nodeid, "outcome": outcome, "duration_s": round(report.duration, 3), "reason": reason}
        entry["part"] = content.get("part")
        if outcome in ("passed", "failed", "skipped", "error"):
            self._tests[report.nodeid] = entry

    def error(self, nodeid: str, reason: str) -> None:
        """Add an error that happened outside of any test."""
        self._tests[nodeid] = {"nodeid": nodeid, "outcome": "error", "duration_s": 0.0, "reason": reason}

    def failed_collection(self, report: pytest.CollectReport) -> None:
        """Add an error for a file that could not be collected: its tests are missing."""
        self.error(report.nodeid or "collection", f"not collected: {_last_line(report)}")

    def entries(self, kind: str) -> list[Any]:
        """All entries of a kind."""
        found = sorted(self._kept.items(), key=lambda pair: self._places.get(pair[0][0], LAST))
        return [entry for _, kept in found for entry in kept.get(kind, ())]

    @property
    def tests(self) -> dict[str, dict[str, Any]]:
        """Outcome of each test by its node id."""
        return dict(sorted(self._tests.items(), key=lambda pair: self._places.get(pair[0], LAST)))


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    lines = str(report.longrepr).strip().splitlines()
    return lines[-1][:500] if lines else ""
