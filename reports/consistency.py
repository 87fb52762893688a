"""What a report must not contradict, beyond its schema: its own arithmetic, its statuses, its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from reports.verdict import verdict_of
from reports.words import BAD, Row


def contradictions(report: Row) -> list[str]:
    """Everything a report of valid shape says against itself, one line each; empty when it is sound."""
    if not all_finite(report):
        return ["report: holds NaN or Inf; a value that was not measured must be null"]
    found = list(_duplicates(report["checkpoints"]))
    for i, row in enumerate(report["checkpoints"]):
        found += (f"checkpoints[{i}] ({row['name']}): {what}" for what in _of_checkpoint(row, report["budget"]))
    for section in ("faults", "fault_catalogue"):
        for row in (report.get(section) or {"rows": ()})["rows"]:
            if row["caught"] and row.get("equivalent"):
                found.append(f"{section}: {row['name']} is caught, so it cannot be equivalent")
    return found + list(_of_sums(report)) + list(_of_verdict(report))


def _duplicates(rows: list[Row]) -> Iterator[str]:
    seen = set()
    for i, row in enumerate(rows):
        key = (row["name"], row["kind"], row["case"])
        if key in seen:
            yield f"checkpoints[{i}]: {row['name']} ({row['kind']}, case {row['case']}) is there twice"
        seen.add(key)


def _of_checkpoint(row: Row, budget: Row) -> Iterator[str]:
    for norm in ("rms", "max"):
        e_ref, e_port, ratio = row[f"e_ref_{norm}"], row[f"e_port_{norm}"], row[f"ratio_{norm}"]
        if None in (e_ref, e_port, ratio):
            continue
        true = e_port / max(e_ref, budget["floor"])
        if not math.isclose(ratio, true, rel_tol=1e-9, abs_tol=1e-300):
            yield f"ratio_{norm} is {ratio!r}, its errors give {true!r}"
    ratios = [row["ratio_rms"], row["ratio_max"]]
    if None not in ratios and row["ratio"] != max(ratios):
        yield f"ratio is {row['ratio']!r}, the larger of its two ratios {max(ratios)!r}"
    status, ratio = row["status"], row["ratio"]
    if status in ("PASS", "FAIL") and row["kind"] in ("isolated", "chained"):
        integer = row["dtype"] and not row["dtype"].startswith(("float", "bfloat", "complex"))
        if ratio is None and not integer:
            yield f"is {status} but was not measured"
    if status == "PASS" and ratio is not None and ratio > budget["ratio"]:
        yield f"is PASS at {ratio!r}, over the budget of {budget['ratio']:g}"
    if status == "FAIL" and ratio is not None and ratio <= budget["ratio"] and not row["message"]:
        yield "is FAIL within the budget and does not say why"
    if status in ("SKIP", "XFAIL") and not row["reason"]:
        yield f"is {status} without a reason"
    if status in ("ERROR", "VACUOUS") and not (row["message"] or row["reason"]):
        yield f"is {status} and does not say why"
    histogram = row["histogram"]
    if histogram and {len(histogram["port"]), len(histogram["reference"])} != {len(histogram["edges"]) - 1}:
        yield "histogram needs one edge more than it has bins"
    if (grid := row.get("error_map")) and len({len(r) for r in grid["rows"]}) != 1:
        yield "error_map has rows of different lengths"


def _of_sums(report: Row) -> Iterator[str]:
    for section in ("faults", "fault_catalogue"):
        faults = report.get(section) or {"rows": (), "score": {"caught": 0, "total": 0}}
        counted = [row for row in faults["rows"] if not row.get("equivalent")]
        true = {"caught": sum(row["caught"] for row in counted), "total": len(counted)}
        if faults["score"] != true:
            yield f"{section}: score says {faults['score']}, the rows {true}"
    if audit := report.get("weights_audit"):
        used = audit["sources"] - len(audit["unused"])
        if used not in (audit["consumed"], audit["consumed"] + len(audit["dropped"])):
            yield "weights_audit: consumed, dropped and unused do not add up to sources"
        if audit["filled"] + len(audit["missing"]) != audit["parameters"]:
            yield "weights_audit: filled and missing do not add up to parameters"
    states = {row["name"]: row["status"] for row in report["checkpoints"] if row["status"] in BAD}
    states |= {t["nodeid"]: t["outcome"] for t in report["tests"] if t["outcome"] in ("failed", "error")}
    for part in report["components"]:
        bad = [name for name in part["evidence"] if name in states]
        if part["status"] == "PASS" and bad:
            yield f"components: {part['component']} is PASS on evidence that is {states[bad[0]]}: {bad[0]}"


def _of_verdict(report: Row) -> Iterator[str]:
    said = report["verdict"]
    true = verdict_of(
        report["checkpoints"],
        report["tests"],
        budget_ratio=report["budget"]["ratio"],
        weights_audit=report.get("weights_audit"),
        liveness=report.get("liveness"),
        faults=report.get("faults"),
        components=report["components"],
        quality=report.get("quality"),
        modules=report.get("modules"),
    )
    for field in ("status", "counts", "test_counts", "worst", "first_over_budget", "fault_score"):
        if said[field] != true[field]:
            yield f"verdict.{field} is {said[field]!r}, the rows give {true[field]!r}"


def all_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
