"""What follows from the rows: the verdict, the worst of each stage, the isolated run that belongs to a chained one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from reports.words import BUDGET_RATIO, JUDGED, OUTCOMES, STAGES, STATUSES, Row, ratio_text

_SEVERITY = ("ERROR", "FAIL", "VACUOUS", "XFAIL", "REDUCED", "SKIP", "PASS")


def verdict_of(
    checkpoints: Sequence[Row],
    tests: Sequence[Row],
    *,
    budget_ratio: float = BUDGET_RATIO,
    weights_audit: Row | None = None,
    liveness: Sequence[Row] | None = None,
    faults: Row | None = None,
    components: Sequence[Row] | None = None,
    weight_coverage: Row | None = None,
    quality: Sequence[Row] | None = None,
) -> dict[str, Any]:
    """The verdict that follows from the rows.

    FAIL when anything failed: a checkpoint, a test, a vacuous case, an unproved weight, a surviving fault, a component,
    a limit of quality.
    ERROR when nothing failed but something could not be compared, or when nothing was compared at all.
    """
    counts = {status: sum(row["status"] == status for row in checkpoints) for status in STATUSES}
    test_counts = {outcome: sum(row["outcome"] == outcome for row in tests) for outcome in OUTCOMES}
    dead = sum(row["status"] == "VACUOUS" for row in liveness or ())
    alive_errors = sum(row["status"] == "ERROR" for row in liveness or ())
    parts = {status: sum(row["status"] == status for row in components or ()) for status in STATUSES}
    survivors = faults["score"]["total"] - faults["score"]["caught"] if faults else 0
    unproved = len(weights_audit["unused"]) + len(weights_audit["missing"]) if weights_audit else 0
    poor = sum(metric["status"] == "FAIL" for variant in quality or () for metric in variant["metrics"])
    failing = {
        "checkpoints over budget": counts["FAIL"],
        "vacuous checkpoints": counts["VACUOUS"],
        "tests failed": test_counts["failed"],
        "dead tensors": dead,
        "faults survived": survivors,
        "weights unproved": unproved,
        "components failed": parts["FAIL"] + parts["VACUOUS"],
        "limits of quality broken": poor,
    }
    broken = {
        "checkpoints not comparable": counts["ERROR"],
        "tests broken": test_counts["error"],
        "liveness cases broken": alive_errors,
        "components not comparable": parts["ERROR"],
    }
    nothing = not any(counts[status] for status in ("PASS", "FAIL", "ERROR", "VACUOUS"))
    status = "FAIL" if any(failing.values()) else "ERROR" if nothing or any(broken.values()) else "PASS"
    bad = in_pipeline_order(row for row in checkpoints if row["status"] == "FAIL")
    judged = [row for row in checkpoints if row["status"] in JUDGED and row["ratio"] is not None]
    worst = max(judged, key=lambda row: row["ratio"], default=None)
    verdict = {
        "status": status,
        "counts": counts,
        "test_counts": test_counts,
        "worst": worst and {"checkpoint": worst["name"], "ratio": worst["ratio"]},
        "first_over_budget": bad[0]["name"] if bad else None,
        "fault_score": dict(faults["score"]) if faults else None,
        "weight_coverage": dict(weight_coverage) if weight_coverage else None,
    }
    problems = [f"{n} {_counted(what, n)}" for what, n in (failing | broken).items() if n]
    problems += ["no checkpoint was compared"] if nothing else []
    return verdict | {"sentence": _sentence(verdict, len(checkpoints), problems, budget_ratio)}


def _counted(what: str, n: int) -> str:
    noun, _, rest = what.partition("s ")
    return what if n != 1 else f"{noun} {rest}".strip() if rest else what.removesuffix("s")


def _sentence(verdict: Row, total: int, problems: list[str], budget_ratio: float) -> str:
    counts, tests = verdict["counts"], verdict["test_counts"]
    parts = [f"{counts['PASS']} of {total} checkpoints within {budget_ratio:g}x of the reference's own float32 error"]
    if problems:
        parts = [", ".join(problems), *parts]
    if verdict["first_over_budget"]:
        parts.append(f"first over budget {verdict['first_over_budget']}")
    if worst := verdict["worst"]:
        parts.append(f"worst {ratio_text(worst['ratio'], budget_ratio)} at {worst['checkpoint']}")
    parts += [f"{counts[s]} {s}" for s in ("SKIP", "XFAIL", "REDUCED") if counts[s]]
    if n := sum(tests.values()):
        skipped = f", {tests['skipped']} skipped" if tests["skipped"] else ""
        parts.append(f"{tests['passed']} of {n} further tests passed{skipped}")
    if score := verdict["fault_score"]:
        parts.append(f"faults caught {score['caught']} of {score['total']}")
    if cover := verdict["weight_coverage"]:
        parts.append(f"weights exercised {cover['covered']} of {cover['total']}")
    return f"{verdict['status']}: " + "; ".join(parts) + "."


def in_pipeline_order(rows: Iterable[Row]) -> list[Row]:
    """Rows by stage in the order the data flows, and in their own order within a stage."""
    return sorted(rows, key=lambda row: STAGES.index(row["stage"]))


def status_of(statuses: Iterable[str]) -> str | None:
    """The status that stands for a group: the most severe one, but PASS where skipped rows are only some of them."""
    found = set(statuses)
    if "PASS" in found:
        found -= {"SKIP"}
    return next((status for status in _SEVERITY if status in found), None)


def worst_per_stage(checkpoints: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """For each stage: `status`, worst `ratio` and its `checkpoint` (null where none), `total` and `passed` rows."""
    found = {}
    for stage in STAGES:
        rows = [row for row in checkpoints if row["stage"] == stage]
        judged = [row for row in rows if row["status"] in JUDGED and row["ratio"] is not None]
        worst = max(judged, key=lambda row: row["ratio"], default=None)
        found[stage] = {
            "status": status_of(row["status"] for row in rows),
            "ratio": worst and worst["ratio"],
            "checkpoint": worst and worst["name"],
            "total": len(rows),
            "passed": sum(row["status"] == "PASS" for row in rows),
        }
    return found


def isolated_of(row: Row, checkpoints: Iterable[Row]) -> Row | None:
    """The isolated run that belongs to a chained row: same name if there is one, else the worst of its module class."""
    if row["kind"] == "isolated":
        return row
    rows = [r for r in checkpoints if r["kind"] == "isolated" and r["ratio"] is not None]
    same = [r for r in rows if r["name"] == row["name"]]
    same = [r for r in same if r["case"] == row["case"]] or same or [r for r in rows if r["module"] == row["module"]]
    return max(same, key=lambda r: r["ratio"], default=None)
