"""Rows of an audit as a report: what conforms, what diverges and why, what the port does not offer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

from mlx_parity.adapter import Adapter
from mlx_parity.compare import BUDGET, FLOOR
from mlx_parity.judge import Row, reduced
from mlx_parity.sides import regime
from parity_tests.adapters.findings import BROKEN, Findings
from parity_tests.harness import places
from parity_tests.harness.signatures import name_nearest
from reports import model as report_model
from reports.verdict import in_pipeline_order, status_of
from reports.words import ratio_text

ORIGINAL = "FunAudioLLM/CosyVoice ace7c47"
ELSEWHERE = (
    {"what": "the port as a whole", "why": "adapters run parts alone; nothing here walks through a foreign model"},
    {"what": "real weights", "why": "the cases draw live random weights in the official layout"},
)


def report(
    rows: Sequence[Row], adapter: Adapter, module: str, findings: Findings, about: dict[str, Any]
) -> dict[str, Any]:
    """A report.json; `about` gives command, started, duration_s and dtype.

    Raises:
        ReportError: the report contradicts itself.
    """
    if about["dtype"] != "float32":
        rows = reduced(rows, about["dtype"])
    stale = [
        {"what": f"finding: {title}", "why": "its cases pass now; take it off the list"}
        for title in findings.stale(rows)
    ]
    checkpoints = [_checkpoint(findings.explain(row), module) for row in rows]
    modules = places.describe((row["module"] for row in checkpoints), adapter.place)
    name_nearest(checkpoints, modules)
    parts = components(checkpoints, findings)
    return report_model.validate(
        {
            "schema_version": report_model.SCHEMA_VERSION,
            "verdict": report_model.verdict_of(checkpoints, [], components=parts, modules=modules),
            "provenance": _provenance(adapter, module, about),
            "budget": {"ratio": BUDGET, "floor": FLOOR},
            "checkpoints": checkpoints,
            "tests": [],
            "components": parts,
            "modules": modules,
            "exceptions": [],
            "not_checked": [*findings.notes, *stale, *ELSEWHERE],
        }
    )


def components(checkpoints: Sequence[dict[str, Any]], findings: Findings) -> list[dict[str, Any]]:
    """One line for each part: its worst status, the rows that show it, and the causes found."""
    by_module: dict[str, list[dict[str, Any]]] = {}
    for row in in_pipeline_order(checkpoints):
        by_module.setdefault(row["module"], []).append(row)
    return [_component(module, rows, findings) for module, rows in by_module.items()]


def lines(report: dict[str, Any]) -> list[str]:
    """The audit in a few lines for the terminal: counts of parts, each part that diverges, the verdict."""
    parts = report["components"]
    names = {status: [p["component"] for p in parts if p["status"] == status] for status in ("PASS", "SKIP")}
    broken = [p for p in parts if p["status"] in BROKEN]
    found = [f"{len(names['PASS'])} parts conform, {len(broken)} diverge, {len(names['SKIP'])} are not offered"]
    if reduced := sum(part["status"] == "REDUCED" for part in parts):
        found[0] += f", {reduced} only inform"
    for part in broken:
        rows = [c for c in report["checkpoints"] if c["module"] == part["component"] and c["status"] in BROKEN]
        found.append(f"  {part['status']:7} {_size(rows):>9}  {part['component']}{_raised(rows)}")
    return [*found, report["verdict"]["sentence"]]


def _size(rows: Sequence[dict[str, Any]]) -> str:
    """The worst ratio of failing rows; what they are where none has one."""
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    unequal = any(row["status"] == "FAIL" for row in rows)
    return ratio_text(max(ratios)) if ratios else "unequal" if unequal else "no result"


def _raised(rows: Sequence[dict[str, Any]]) -> str:
    """Why a part could not be compared, in one line."""
    why = next((row["message"] for row in rows if row["status"] == "ERROR" and row["message"]), "")
    return f": {' '.join(why.split())}" if why else ""


def _component(module: str, rows: list[dict[str, Any]], findings: Findings) -> dict[str, Any]:
    broken = [row for row in rows if row["status"] in BROKEN]
    causes: dict[str, None] = {}
    for row in broken:
        known = findings.of(row["name"])
        for finding, direct in known:
            causes[finding.sentence if direct else f"Follows from: {finding.title}."] = None
        if not known:
            causes[f"{row['name']}: {row['message']}"] = None
    passed, skipped = (sum(row["status"] == status for row in rows) for status in ("PASS", "SKIP"))
    reasons = dict.fromkeys(row["reason"] for row in rows if row["status"] == "SKIP")
    return {
        "component": module,
        "status": status_of(row["status"] for row in rows),
        "checked": f"{passed} of {len(rows)} results within budget"
        + (f", {skipped} not offered ({'; '.join(map(str, reasons))})" if skipped else ""),
        "evidence": [row["name"] for row in rows if row["status"] != "SKIP"],
        "issues": list(causes),
    }


def _checkpoint(row: Row, module: str) -> dict[str, Any]:
    fields = row.to_dict()
    fields["message"] = fields["message"] or None
    fields["reason"] = fields["reason"] or None
    command = shlex.join(["python", "-m", "parity_tests.audit", module, "--only", escape(row.case)])
    return report_model.checkpoint(test=command, **fields | {"reproduce": command})


def _provenance(adapter: Adapter, module: str, about: dict[str, Any]) -> dict[str, Any]:
    head, dirty = regime.commit(Path(__file__).parents[2])
    return {
        "commit": head,
        "dirty": dirty,
        "original": ORIGINAL,
        "weights": [],
        "revision": None,
        "versions": {**regime.versions(), **adapter.versions()},
        **regime.machine(),
        "precision": regime.precision(regime.arithmetic()),
        "seed": None,
        "adapter": module,
        **about,
    }
