"""What follows from the rows: the verdict, the worst of each stage, the isolated run that belongs to a chained one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reports.causes import Cause, causes_of, in_pipeline_order
from reports.words import BAD, BUDGET_RATIO, JUDGED, OUTCOMES, STAGES, STATUSES, Row, ratio_text

__all__ = ["in_pipeline_order", "isolated_of", "status_of", "verdict_of", "worst_of", "worst_per_stage"]

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
    modules: Mapping[str, Row] | None = None,
) -> dict[str, Any]:
    """The verdict that follows from the rows.

    `first_over_budget` is the first row over budget of a part that fails alone, where there is one; `modules` says
    what the parts contain.

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
    causes = causes_of(checkpoints, modules)
    bad = [row for cause in causes for row in cause.rows() if row["status"] == "FAIL"]
    worst = worst_of(checkpoints)
    measured = worst if worst and worst["ratio"] is not None else None
    verdict = {
        "status": status,
        "counts": counts,
        "test_counts": test_counts,
        "worst": measured and {"checkpoint": measured["name"], "ratio": measured["ratio"]},
        "first_over_budget": bad[0]["name"] if bad else None,
        "fault_score": dict(faults["score"]) if faults else None,
        "weight_coverage": dict(weight_coverage) if weight_coverage else None,
    }
    problems = [f"{n} {_counted(what, n)}" for what, n in (failing | broken).items() if n]
    problems += ["no checkpoint was compared"] if nothing else []
    return verdict | {"sentence": _sentence(verdict, len(checkpoints), problems, budget_ratio, causes)}


def _counted(what: str, n: int) -> str:
    noun, _, rest = what.partition("s ")
    return what if n != 1 else f"{noun} {rest}".strip() if rest else what.removesuffix("s")


def _sentence(verdict: Row, total: int, problems: list[str], budget_ratio: float, causes: Sequence[Cause]) -> str:
    counts, tests = verdict["counts"], verdict["test_counts"]
    parts = [f"{counts['PASS']} of {total} checkpoints within {budget_ratio:g}x of the reference's own float32 error"]
    if problems:
        parts = [", ".join(problems), *([_blame(causes)] if causes else []), *parts]
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


def _blame(causes: Sequence[Cause]) -> str:
    """The first part to look at, and how many more there are."""
    first, others = causes[0], len(causes) - 1
    how = "fails alone" if first.alone else "fails first, and only inside the whole"
    if first.row["status"] == "VACUOUS":
        how = "is vacuous"
    more = f", and {others} more {'part' if others == 1 else 'parts'}" if others else ""
    return f"{first.row['module']} {how} ({first.row['name']}){more}"


def status_of(statuses: Iterable[str]) -> str | None:
    """The status that stands for a group: the most severe one, but PASS where skipped rows are only some of them."""
    found = set(statuses)
    if "PASS" in found:
        found -= {"SKIP"}
    return next((status for status in _SEVERITY if status in found), None)


def worst_of(rows: Sequence[Row]) -> Row | None:
    """The row with the largest ratio, of those that fail where some do; without a ratio where none of these has one."""
    bad = [row for row in rows if row["status"] in BAD]
    measured = [row for row in bad or rows if row["ratio"] is not None and (bad or row["status"] in JUDGED)]
    return max(measured, key=lambda row: row["ratio"], default=bad[0] if bad else None)


def worst_per_stage(checkpoints: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """For each stage: `status`, worst `ratio` and its `checkpoint` (null where none), `total` and `passed` rows.

    Where rows fail, the worst is one of them, and its ratio is null when none of them has one (unequal integers).
    """
    found = {}
    for stage in STAGES:
        rows = [row for row in checkpoints if row["stage"] == stage]
        worst = worst_of(rows)
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
