"""Recorded results of the fault catalogue, for the report: the score, and the signature of each fault."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from mlx_parity.faults import signatures
from mlx_parity.faults.signatures import Known, Signature
from mlx_parity.faults.verdict import Verdict
from mlx_parity.fingerprint import fingerprint
from mlx_parity.report.codec import plain, read
from mlx_parity.report.sections import Faults
from mlx_parity.sides import regime

ROOT = Path(__file__).parents[2]
SCORE, SIGNATURES = (ROOT / "parity_tests" / "data" / f"fault_{what}.json" for what in ("score", "signatures"))
# Code that the score and the signatures depend on.
CODE = ("port", "convert", "reference", "parity_tests", "mlx_parity")
OF_SIGNATURES = ("port", "convert", "parity_tests/cases", "parity_tests/faults")


def record(verdicts: Sequence[Verdict], started: datetime) -> str:
    """Text of the score file, one row per line, with date, commit, versions and fingerprint."""
    found = plain(read(Faults, {"rows": [verdict.to_dict() for verdict in verdicts]}, "faults"))
    about = {
        "started": started.isoformat(timespec="seconds"),
        "duration_s": round((datetime.now(UTC) - started).total_seconds(), 1),
        "commit": regime.commit(ROOT)[0],
        "mlx": regime.versions()["mlx"],
        "device": regime.machine()["device"],
        "fingerprint": fingerprint(ROOT, CODE),
    }
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found["rows"])
    return f'{{"recorded": {json.dumps(about)},\n"score": {json.dumps(found["score"])},\n"rows": [\n{rows}\n]}}\n'


def caught_by(path: Path = SCORE) -> dict[str, str]:
    """The check that caught each fault when the score was recorded, by the fault's name."""
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else ()
    return {row["name"]: row["by"] for row in rows if row["by"]}


def catalogue_section(path: Path = SCORE) -> dict[str, Any] | None:
    """The report's section `fault_catalogue`: the recorded score, and whether the code is unchanged since."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text("utf-8"))
    return found | {"fresh": found["recorded"]["fingerprint"] == fingerprint(ROOT, CODE)}


def record_signatures(found: Mapping[str, tuple[str, Signature]]) -> str:
    """Text of the signature file; `found` maps a fault's name to its family and signature."""
    return signatures.record(found, fingerprint(ROOT, OF_SIGNATURES))


@cache
def known() -> Known | None:
    """The recorded signatures, if they are there."""
    there = SIGNATURES.is_file() and SCORE.is_file()
    return Known.read(SIGNATURES, SCORE, fingerprint(ROOT, OF_SIGNATURES)) if there else None
