"""Known causes of divergences in a foreign port, found in its source and kept beside the adapter as data.

`findings/NAME.json` holds a list of findings. Each has globs of the rows it explains (`cases`), globs of rows that
only follow from it (`follows`), and sentences for the port's maintainer: what diverges and where, the code of the
original that it contradicts, the fix, and the proof that this is the cause.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlx_parity.adapter import AdapterError
from mlx_parity.judge import Row
from mlx_parity.report.data import Gap

FOLDER = Path(__file__).with_name("findings")
BROKEN = ("FAIL", "ERROR", "VACUOUS")


@dataclass(frozen=True)
class Finding:
    """One cause of divergences."""

    title: str
    cases: tuple[str, ...]
    what: str
    where: str
    original: str
    fix: str
    proof: str
    follows: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        return f"{self.what} In {self.where}. The original: {self.original}. To mend it: {self.fix} {self.proof}"


@dataclass(frozen=True)
class Findings:
    """Everything known about one port; `notes` lists what was not checked."""

    causes: tuple[Finding, ...] = ()
    notes: tuple[Gap, ...] = ()

    def of(self, name: str) -> list[tuple[Finding, bool]]:
        """The findings that explain a row, each with whether it is the direct cause."""
        direct = [(f, True) for f in self.causes if _matches(name, f.cases)]
        return direct + [(f, False) for f in self.causes if _matches(name, f.follows)]

    def explain(self, row: Row) -> Row:
        """The row; if it fails, its message also states the cause."""
        reading = row.reading
        if reading.status not in BROKEN:
            return row
        known = self.of(row.name)
        words = [f.sentence if direct else f"Follows from: {f.title}." for f, direct in known]
        words = words or ["The cause is not written down yet."]
        return replace(row, reading=replace(reading, message=". ".join([reading.message, " ".join(words)])))

    def stale(self, rows: Iterable[Row]) -> list[str]:
        """Titles of findings whose rows ran and all passed."""
        rows = list(rows)
        gone = []
        for finding in self.causes:
            statuses = [row.reading.status for row in rows if _matches(row.name, finding.cases)]
            if statuses and not any(status in BROKEN for status in statuses):
                gone.append(finding.title)
        return gone


def load_findings(name: str, folder: Path = FOLDER) -> Findings:
    """The findings of one port; none when there is no file.

    Raises:
        AdapterError: the file is damaged.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return Findings()
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        causes = tuple(_finding(entry) for entry in content["findings"])
        notes = tuple(Gap(note["what"], note["why"]) for note in content.get("notes", ()))
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path.name}: {type(error).__name__}: {error}; see findings.py for the fields") from None
    return Findings(causes, notes)


def _finding(entry: dict[str, Any]) -> Finding:
    return Finding(**entry | {key: tuple(entry.get(key, ())) for key in ("cases", "follows")})


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
