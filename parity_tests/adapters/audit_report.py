"""Rows of an audit as a report: what conforms, what diverges and why, what the port does not offer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from glob import escape
from typing import Any

from mlx_parity.adapter import Adapter
from mlx_parity.faults.signatures import name_nearest
from mlx_parity.judge import Row, reduced
from mlx_parity.report import data
from mlx_parity.report.model import Report
from mlx_parity.report.rows import in_pipeline_order, status_of
from mlx_parity.report.words import ratio_text
from mlx_parity.sides import regime
from parity_tests.adapters.findings import BROKEN, Findings
from parity_tests.faults.score import known
from parity_tests.parts import PLACES, ROOT
from reports.cosyvoice3 import ORIGINAL, STAGES

ELSEWHERE = (
    data.Gap("the port as a whole", "adapters run parts alone; nothing here walks through a foreign model"),
    data.Gap("real weights", "the cases draw live random weights in the official layout"),
)


def report(rows: Sequence[Row], adapter: Adapter, module: str, findings: Findings, about: dict[str, Any]) -> Report:
    """The report of an audit; `about` gives command, started, duration_s and dtype."""
    if about["dtype"] != "float32":
        rows = reduced(rows, about["dtype"])
    stale = [
        data.Gap(f"finding: {title}", "its cases pass now; take it off the list") for title in findings.stale(rows)
    ]
    entries = [_entry(findings.explain(row), module) for row in rows]
    modules = PLACES.describe((row.module for row in entries), adapter.place)
    about |= {"original": ORIGINAL, "weights": (), "revision": None, "seed": None, "adapter": module}
    return Report(
        provenance=regime.provenance(ROOT, regime.arithmetic(), adapter.versions(), **about),
        stages=STAGES,
        rows=name_nearest(entries, modules, STAGES, known()),
        components=components(entries, findings),
        modules=modules,
        not_checked=(*findings.notes, *stale, *ELSEWHERE),
    )


def components(rows: Sequence[data.Row], findings: Findings) -> tuple[data.Component, ...]:
    """One line for each part: its worst status, the rows that show it, and the causes found."""
    by_module: dict[str, list[data.Row]] = {}
    for row in in_pipeline_order(rows, STAGES):
        by_module.setdefault(row.module, []).append(row)
    return tuple(_component(module, found, findings) for module, found in by_module.items())


def lines(report: Report) -> list[str]:
    """The audit in a few lines for the terminal: counts of parts, each part that diverges, the verdict."""
    parts = report.components
    counts = {status: sum(part.status == status for part in parts) for status in ("PASS", "SKIP", "REDUCED")}
    broken = [part for part in parts if part.status in BROKEN]
    found = [f"{counts['PASS']} parts conform, {len(broken)} diverge, {counts['SKIP']} are not offered"]
    if counts["REDUCED"]:
        found[0] += f", {counts['REDUCED']} only inform"
    for part in broken:
        rows = [row for row in report.rows if row.module == part.component and row.status in BROKEN]
        found.append(f"  {part.status:7} {_size(rows):>9}  {part.component}{_raised(rows)}")
    return [*found, report.verdict.sentence]


def _size(rows: Sequence[data.Row]) -> str:
    """The worst ratio of the failing rows, or a word if none has a ratio."""
    ratios = [row.ratio for row in rows if row.ratio is not None]
    unequal = any(row.status == "FAIL" for row in rows)
    return ratio_text(max(ratios)) if ratios else "unequal" if unequal else "no result"


def _raised(rows: Sequence[data.Row]) -> str:
    """Why a part could not be compared, in one line."""
    why = next((row.message for row in rows if row.status == "ERROR" and row.message), "")
    return f": {' '.join(why.split())}" if why else ""


def _component(module: str, rows: Sequence[data.Row], findings: Findings) -> data.Component:
    causes: dict[str, None] = {}
    for row in rows:
        if row.status not in BROKEN:
            continue
        known = findings.of(row.name)
        for finding, direct in known:
            causes[finding.sentence if direct else f"Follows from: {finding.title}."] = None
        if not known:
            causes[f"{row.name}: {row.message}"] = None
    passed, skipped = (sum(row.status == status for row in rows) for status in ("PASS", "SKIP"))
    reasons = dict.fromkeys(row.message for row in rows if row.status == "SKIP")
    return data.Component(
        component=module,
        status=status_of(row.status for row in rows),
        checked=f"{passed} of {len(rows)} results within budget"
        + (f", {skipped} not offered ({'; '.join(map(str, reasons))})" if skipped else ""),
        evidence=tuple(row.name for row in rows if row.status != "SKIP"),
        issues=tuple(causes),
    )


def _entry(row: Row, module: str) -> data.Row:
    command = shlex.join(["python", "-m", "parity_tests.audit", module, "--only", escape(row.case)])
    return row.entry(command, command)
