"""Data for the report's templates: failures first, in the order of the pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mlx_parity.report import plots
from mlx_parity.report.causes import Cause
from mlx_parity.report.data import Module, Row
from mlx_parity.report.model import STATUSES, Report
from mlx_parity.report.rows import by_stage, in_pipeline_order, isolated_of, status_of
from mlx_parity.report.sections import Faults
from mlx_parity.report.words import RESTATED, Wording, budget_unit, failure_sentence, with_it

PANELS, OPEN_PANELS = 100, 5  # causes with their own panel; panels that are open at first


@dataclass(frozen=True)
class Panel:
    """One cause as it is shown; `other` is the run of its module in the other view, isolated or chained."""

    row: Row
    own: Sequence[Row]
    folded: Sequence[Row]
    place: Module | None
    sentence: str
    message: str | None
    other: Row | None
    histogram: Markup | None
    map: Markup | None

    @property
    def with_it(self) -> str:
        return with_it(len(self.own), len(self.folded))


def view_of(report: Report, wording: Wording) -> dict[str, Any]:
    """Everything the templates need."""
    rows, budget, causes = report.rows, report.budget.ratio, report.causes
    names = {stage: wording.stages.get(stage, stage) for stage in report.stages}
    stages, pipeline = by_stage(rows, report.stages), wording.pipeline or report.stages
    blamed = [row for cause in causes for row in cause.rows()]
    first = next((row for row in blamed if row.status == "FAIL"), None)
    rank = {id(row): i for i, row in enumerate(blamed)}
    order = {id(row): i + 1 for i, row in enumerate(rows)}
    return {
        "report": report,
        "wording": wording,
        "verdict": report.verdict,
        "about": report.provenance,
        "budget": budget,
        "floor": report.budget.floor,
        "statuses": STATUSES,
        "stage_names": names,
        "strip": [(stage, found) for stage, found in stages.items() if stage in pipeline],
        "beside": [(stage, found) for stage, found in stages.items() if stage not in pipeline and found.total],
        "ratio_plot": plots.ratio_plot(rows, names, budget, first),
        "error_plot": plots.error_plot(rows, names, report.budget.floor),
        "rows": [(order[id(row)], row) for row in sorted(rows, key=lambda row: rank.get(id(row), len(rows)))],
        "failing": [_panel(cause, report, cause.row is first) for cause in causes[:PANELS]],
        "failing_total": len(causes),
        "open_panels": OPEN_PANELS,
        "modules": list(_modules(rows, report.stages)),
        "failed_tests": [test for test in report.tests if test.outcome in ("failed", "error")],
        "unrun_tests": [test for test in report.tests if test.outcome == "skipped"],
        "unjudged": [row for row in rows if row.status == "SKIP"],
        "faults": report.faults and _faults(report.faults),
        "catalogue": report.fault_catalogue and _faults(report.fault_catalogue),
        "liveness": sorted(report.liveness, key=lambda row: (_ALIVE[row.status], row.moved_budgets or 0)),
        "alive": Counter(row.status for row in report.liveness),
    }


_ALIVE = {"VACUOUS": 0, "DEAD": 1, "PASS": 2}
_FATE = ("SURVIVED", "caught", "equivalent")


def _panel(cause: Cause, report: Report, first: bool) -> Panel:
    row, budget, about = cause.row, report.budget, report.modules.get(cause.row.module)
    isolated = isolated_of(row, report.rows) if row.kind == "chained" else None
    chained = [r for r in report.rows if r.kind == "chained" and r.name == row.name] if row.kind == "isolated" else ()
    sentence = failure_sentence(
        row, budget_ratio=budget.ratio, first=first, isolated=isolated, smallest=cause.alone and about is not None
    )
    said = row.message is None or row.message in sentence or RESTATED in row.message
    unit = budget_unit(row, budget_ratio=budget.ratio, floor=budget.floor)
    return Panel(
        row=row,
        own=cause.own,
        folded=cause.folded,
        place=about,
        sentence=sentence,
        message=None if said else row.message,
        other=isolated or max(chained, key=lambda r: r.ratio or 0, default=None),
        histogram=plots.histogram_plot(row.histogram) if row.histogram else None,
        map=plots.error_map(row.error_map, unit) if row.error_map else None,
    )


def _modules(rows: Sequence[Row], stages: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Worst isolated against worst chained ratio of each module class, in order of first appearance in the pipeline."""
    by_module: dict[tuple[str, str], list[Row]] = {}
    for row in in_pipeline_order(rows, stages):
        if row.ratio is not None and row.kind in ("isolated", "chained"):
            by_module.setdefault((row.stage, row.module), []).append(row)
    for (stage, module), found in by_module.items():
        worst = {k: max((r.ratio for r in found if r.kind == k), default=None) for k in ("isolated", "chained")}
        yield {"stage": stage, "module": module, "status": status_of(r.status for r in found), **worst}


def _faults(faults: Faults) -> dict[str, Any]:
    """Fault rows with survivors first, and the count of each family."""
    rows = sorted(faults.rows, key=lambda row: _FATE.index(row.state))
    families: dict[str, Counter[str]] = {row.family: Counter() for row in rows}
    for row in rows:
        families[row.family].update([row.state, *["right"] * (row.caught and row.right_module is True)])
    return {"score": faults.score, "rows": rows, "families": families}
