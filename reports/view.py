"""What the templates of the report show: failures first, in the order of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from reports import plots
from reports.causes import Cause, causes_of
from reports.verdict import in_pipeline_order, isolated_of, status_of, worst_per_stage
from reports.words import PIPELINE, RESTATED, STAGE_NAMES, STAGES, STATUSES, Row, budget_unit, failure_sentence, with_it

PANELS, OPEN_PANELS = 100, 5  # causes with a panel of their own; those that are open at first
OPTIONAL = (
    "weights_audit",
    "llm",
    "audio",
    "quality",
    "faults",
    "fault_catalogue",
    "liveness",
    "coverage",
    "drift",
)


def view_of(report: Row) -> dict[str, Any]:
    """Everything the templates need, derived from a valid report."""
    rows, budget = report["checkpoints"], report["budget"]["ratio"]
    causes = causes_of(rows, report.get("modules"))
    first = next((row for cause in causes for row in cause.rows() if row["status"] == "FAIL"), None)
    rank = {id(row): i for i, row in enumerate(row for cause in causes for row in cause.rows())}
    order = {id(row): i + 1 for i, row in enumerate(rows)}
    return {
        "report": dict.fromkeys(OPTIONAL) | dict(report),
        "verdict": report["verdict"],
        "about": report["provenance"],
        "budget": budget,
        "floor": report["budget"]["floor"],
        "statuses": STATUSES,
        "stage_names": {stage: STAGE_NAMES[stage] for stage in STAGES},
        "strip": [(stage, worst_per_stage(rows)[stage]) for stage in PIPELINE],
        "beside": [(s, found) for s, found in worst_per_stage(rows).items() if s not in PIPELINE and found["total"]],
        "ratio_plot": plots.ratio_plot(rows, budget, first),
        "error_plot": plots.error_plot(rows, report["budget"]["floor"]),
        "rows": [(order[id(row)], row) for row in sorted(rows, key=lambda row: rank.get(id(row), len(rows)))],
        "failing": [_panel(cause, report, cause.row is first) for cause in causes[:PANELS]],
        "failing_total": len(causes),
        "open_panels": OPEN_PANELS,
        "modules": list(_modules(rows)),
        "failed_tests": [test for test in report["tests"] if test["outcome"] in ("failed", "error")],
        "unrun_tests": [test for test in report["tests"] if test["outcome"] in ("skipped", "xfailed", "xpassed")],
        "unjudged": [row for row in rows if row["status"] in ("SKIP", "XFAIL")],
        "faults": _faults(report.get("faults")),
        "catalogue": _faults(report.get("fault_catalogue")),
        "liveness": _liveness(report.get("liveness")),
    }


def _panel(cause: Cause, report: Row, first: bool) -> dict[str, Any]:
    row, rows, budget, floor = cause.row, report["checkpoints"], report["budget"]["ratio"], report["budget"]["floor"]
    about = (report.get("modules") or {}).get(row["module"])
    isolated = isolated_of(row, rows) if row["kind"] == "chained" else None
    chained = [r for r in rows if r["kind"] == "chained" and r["name"] == row["name"] and r is not row]
    sentence = failure_sentence(
        row, budget_ratio=budget, first=first, isolated=isolated, smallest=cause.alone and about is not None
    )
    said = row["message"] is None or row["message"] in sentence or RESTATED in row["message"]
    return {
        "row": row,
        "message": None if said else row["message"],
        "own": cause.own,
        "folded": cause.folded,
        "with_it": with_it(len(cause.own), len(cause.folded)),
        "alone": cause.alone,
        "place": about,
        "sentence": sentence,
        "isolated": isolated,
        "chained": max(chained, key=lambda r: r["ratio"] or 0, default=None) if row["kind"] == "isolated" else None,
        "histogram": row["histogram"] and plots.histogram_plot(row["histogram"]),
        "map": plots.error_map(row["error_map"], budget_unit(row, budget_ratio=budget, floor=floor))
        if row.get("error_map")
        else None,
        "positions": row.get("worst_positions") or ([row["worst"]] if row["worst"] else []),
    }


def _modules(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Worst isolated against worst chained ratio of each module class, in order of first appearance in the pipeline."""
    by_module: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in in_pipeline_order(rows):
        if row["ratio"] is not None and row["kind"] in ("isolated", "chained"):
            kinds = by_module.setdefault((row["stage"], row["module"]), {"isolated": [], "chained": []})
            kinds[row["kind"]].append(row)
    for (stage, module), kinds in by_module.items():
        worst = {kind: max((r["ratio"] for r in found), default=None) for kind, found in kinds.items()}
        status = status_of(r["status"] for found in kinds.values() for r in found)
        yield {"stage": stage, "module": module, "status": status, **worst}


def _faults(faults: Row | None) -> dict[str, Any] | None:
    """Fault rows with survivors first, and the count of each family."""
    if not faults:
        return None

    def state(row: Row) -> str:
        return "caught" if row["caught"] else "equivalent" if row.get("equivalent") else "SURVIVED"

    rank = {"SURVIVED": 0, "caught": 1, "equivalent": 2}
    rows = sorted(((state(row), row) for row in faults["rows"]), key=lambda pair: rank[pair[0]])
    families: dict[str, dict[str, int]] = {}
    for what, row in rows:
        found = families.setdefault(row["family"], dict.fromkeys(rank, 0) | {"right": 0})
        found[what] += 1
        found["right"] += what == "caught" and row["right_module"] is True
    return {**faults, "rows": rows, "families": families}


def _liveness(rows: Sequence[Row] | None) -> dict[str, Any] | None:
    """Liveness rows, the weakest first."""
    if rows is None:
        return None
    rank = {"VACUOUS": 0, "ERROR": 0, "XFAIL": 1, "PASS": 2}
    ordered = sorted(rows, key=lambda row: (rank[row["status"]], row["moved_budgets"] or 0))
    counts = {status: sum(row["status"] == status for row in rows) for status in rank}
    return {"rows": ordered, "counts": counts}
