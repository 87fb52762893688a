"""What the tests of a run leave for its report: rows, sections, outcomes.

It travels with pytest's own report of each test. So it arrives the same way from this process, from the workers of
pytest-xdist and from forked tests, and what a crashed worker had finished is not lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

ATTRIBUTE = "parity"  # of a test's report: JSON, since workers send only plain values
RUNNING: pytest.StashKey[pytest.Item] = pytest.StashKey()  # of the config: the test that runs
LAST = 1 << 60  # place of what has none of its own


class Gathered:
    """Entries by kind, in the order in which the tests were collected, wherever they ran."""

    def __init__(self) -> None:
        self._pending: dict[str, list[Any]] = {}
        self._places: dict[str, int] = {}
        self._kept: dict[tuple[str, str], dict[str, list[Any]]] = {}
        self._tests: dict[str, dict[str, Any]] = {}

    def keep(self, kind: str, entries: Iterable[Any]) -> None:
        """Add entries, plain values as JSON has them, to what the running test leaves."""
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
        """What went wrong outside of any test."""
        self._tests[nodeid] = {"nodeid": nodeid, "outcome": "error", "duration_s": 0.0, "reason": reason}

    def failed_collection(self, report: pytest.CollectReport) -> None:
        """A file that could not be collected: its tests are missing."""
        self.error(report.nodeid or "collection", f"not collected: {_last_line(report)}")

    def entries(self, kind: str) -> list[Any]:
        """All that was kept of a kind."""
        found = sorted(self._kept.items(), key=lambda pair: self._places.get(pair[0][0], LAST))
        return [entry for _, kept in found for entry in kept.get(kind, ())]

    @property
    def tests(self) -> dict[str, dict[str, Any]]:
        """Outcome of each test by its node id."""
        return dict(sorted(self._tests.items(), key=lambda pair: self._places.get(pair[0], LAST)))


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    lines = str(report.longrepr).strip().splitlines()
    return lines[-1][:500] if lines else ""
