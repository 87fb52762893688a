"""The report: what a run found, the verdict that follows, and what it must not contradict."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from mlx_parity.report import sections
from mlx_parity.report.causes import Cause, causes_of
from mlx_parity.report.codec import ReportError, derived, plain, read
from mlx_parity.report.data import BUDGET, Budget, Component, Gap, Module, Outcome, Provenance, Row, Status, Test, Text
from mlx_parity.report.rows import BAD, JUDGED, worst_of
from mlx_parity.report.sections import Verdict, Worst
from mlx_parity.report.words import ratio_text

STATUSES: tuple[Status, ...] = get_args(Status)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
VERSION: Final = 2
MAX_DIGITS = 19  # of a whole number


@dataclass(frozen=True)
class Report:
    """One run of a parity suite. Every number is finite; what could not be measured is null."""

    provenance: Provenance
    stages: Annotated[tuple[Text, ...], "in the order the data flows"]
    rows: Annotated[tuple[Row, ...], "in the order of the run"]
    tests: Annotated[tuple[Test, ...], "those that are not about rows"] = ()
    components: tuple[Component, ...] = ()
    modules: Annotated[Mapping[Text, Module], "of the rows"] = field(default_factory=dict)
    not_checked: tuple[Gap, ...] = ()
    budget: Budget = BUDGET
    weights_audit: sections.WeightsAudit | None = None
    audio: tuple[sections.Clip, ...] = ()
    quality: Annotated[tuple[sections.Metric, ...], "variants of reduced precision against the float32 original"] = ()
    faults: sections.Faults | None = None
    fault_catalogue: sections.Catalogue | None = None
    liveness: tuple[sections.LivenessRow, ...] = ()
    coverage: sections.Coverage | None = None
    drift: sections.Drift | None = None
    schema_version: Literal[2] = 2

    @derived
    def verdict(self) -> Verdict:
        """FAIL when anything failed: a tensor, a test, a vacuous case, an unproved weight, a fault, a component.

        ERROR when nothing failed but something could not be compared, or when nothing was compared at all.
        `first_over_budget` is the first row over budget of a part that fails alone, where there is one.
        """
        return _verdict(self)

    @cached_property
    def causes(self) -> list[Cause]:
        """Every failing row beneath the part that is to blame."""
        return causes_of(self.rows, self.modules, self.stages)

    def problems(self) -> Iterator[str]:
        """The inconsistencies of the report."""
        seen: set[tuple[str, str, str]] = set()
        for i, row in enumerate(self.rows):
            if (key := (row.name, row.kind, row.case)) in seen:
                yield f"rows[{i}]: {row.name} ({row.kind}, case {row.case}) stands there twice"
            seen.add(key)
            yield from (f"rows[{i}] ({row.name}): {what}" for what in _row_problems(row, self.stages, self.budget))
        states: dict[str, str] = {row.name: row.status for row in self.rows if row.status in BAD}
        states |= {t.nodeid: t.outcome for t in self.tests if t.outcome in ("failed", "error")}
        for part in self.components:
            if part.status == "PASS" and (bad := [name for name in part.evidence if name in states]):
                yield f"components: {part.component} is PASS on evidence that is {states[bad[0]]}: {bad[0]}"


def _row_problems(row: Row, stages: Sequence[str], budget: Budget) -> Iterator[str]:
    if row.stage not in stages:
        yield f"stage is {row.stage}, which the report does not list"
    for norm in ("rms", "max"):
        e_ref, e_port, ratio = (getattr(row, f"{what}_{norm}") for what in ("e_ref", "e_port", "ratio"))
        if None not in (e_ref, e_port, ratio):
            true = e_port / max(e_ref, budget.floor)
            if not math.isclose(ratio, true, rel_tol=1e-9, abs_tol=1e-300):
                yield f"ratio_{norm} is {ratio!r}, its errors give {true!r}"
    integer = row.dtype and not row.dtype.startswith(("float", "bfloat", "complex"))
    if row.status in JUDGED and row.kind in ("isolated", "chained") and row.ratio is None and not integer:
        yield f"is {row.status} but was not measured"
    if row.status == "PASS" and row.ratio is not None and row.ratio > budget.ratio:
        yield f"is PASS at {row.ratio!r}, over the budget of {budget.ratio:g}"
    over = row.status == "FAIL" and row.ratio is not None and row.ratio > budget.ratio
    if row.status not in ("PASS", "REDUCED") and not over and not row.message:
        yield f"is {row.status} and does not say why"


def _verdict(report: Report) -> Verdict:
    rows, faults, audit = report.rows, report.faults, report.weights_audit
    counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
    test_counts = {outcome: sum(test.outcome == outcome for test in report.tests) for outcome in OUTCOMES}
    parts = {status: sum(part.status == status for part in report.components) for status in STATUSES}
    failing = {
        "tensor* over budget": counts["FAIL"],
        "vacuous tensor*": counts["VACUOUS"],
        "test* failed": test_counts["failed"],
        "tensor* without effect": sum(row.status == "VACUOUS" for row in report.liveness),
        "fault* survived": faults.score.total - faults.score.caught if faults else 0,
        "weight* unproved": abs(audit.unused) + abs(audit.missing) if audit else 0,
        "component* failed": parts["FAIL"] + parts["VACUOUS"],
        "limit* of quality broken": sum(metric.status == "FAIL" for metric in report.quality),
    }
    broken = {
        "tensor* not comparable": counts["ERROR"],
        "test* broken": test_counts["error"],
        "component* not comparable": parts["ERROR"],
    }
    nothing = not any(counts[status] for status in ("PASS", "FAIL", "ERROR", "VACUOUS"))
    status: Literal["PASS", "FAIL", "ERROR"] = "PASS"
    if any(failing.values()):
        status = "FAIL"
    elif nothing or any(broken.values()):
        status = "ERROR"
    over = next((row for cause in report.causes for row in cause.rows() if row.status == "FAIL"), None)
    worst = worst_of(rows)
    problems = [f"{n} {what.replace('*', 's' * (n != 1))}" for what, n in (failing | broken).items() if n]
    verdict = Verdict(
        status=status,
        sentence="",
        counts=counts,
        test_counts=test_counts,
        worst=Worst(worst.name, worst.ratio) if worst and worst.ratio is not None else None,
        first_over_budget=over.name if over else None,
        fault_score=faults.score if faults else None,
    )
    return replace(verdict, sentence=_sentence(verdict, report, problems + ["no tensor was compared"] * nothing))


def _sentence(verdict: Verdict, report: Report, problems: list[str]) -> str:
    counts, tests, budget = verdict.counts, verdict.test_counts, report.budget.ratio
    parts = [f"{counts['PASS']} of {len(report.rows)} tensors within {budget:g}x of the reference's own float32 error"]
    if problems:
        parts = [", ".join(problems), *([_blame(report.causes)] if report.causes else []), *parts]
    if worst := verdict.worst:
        parts.append(f"worst {ratio_text(worst.ratio, budget)} at {worst.row}")
    parts += [f"{counts[s]} {s}" for s in ("SKIP", "REDUCED") if counts[s]]
    if n := sum(tests.values()):
        skipped = f", {tests['skipped']} skipped" if tests["skipped"] else ""
        parts.append(f"{tests['passed']} of {n} further tests passed{skipped}")
    if score := verdict.fault_score:
        parts.append(f"faults caught {score.caught} of {score.total}")
    return f"{verdict.status}: " + "; ".join(parts) + "."


def _blame(causes: Sequence[Cause]) -> str:
    """The first part to look at, and how many more there are."""
    first, others = causes[0], len(causes) - 1
    how = "fails alone" if first.alone else "fails first, and only inside the whole"
    if first.row.status == "VACUOUS":
        how = "is vacuous"
    more = f", and {others} more {'part' if others == 1 else 'parts'}" if others else ""
    return f"{first.row.module} {how} ({first.row.name}){more}"


def load(path: str | Path) -> Report:
    """Read a report that somebody else may have written.

    Raises:
        ReportError: the file is missing, is no strict JSON, or is no valid report; one line.
    """

    def refuse(name: str) -> None:
        raise ReportError(f"{path}: holds {name}, which is no JSON; a value that was not measured must be null")

    def count(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise ReportError(f"{path}: holds a whole number of {len(digits)} digits, which nothing measures")
        return int(digits)

    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe might never end
            raise ReportError(f"{path}: cannot be read (no file, but a folder, a pipe or a device); name a report.json")
        content = json.loads(Path(path).read_text("utf-8"), parse_constant=refuse, parse_int=count)
        return _valid(content, path)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); run the parity suite first") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path}: is not UTF-8 text; expected a report.json of the parity suite") from None
    except RecursionError:
        raise ReportError(f"{path}: is nested too deeply to be a report") from None
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: is no JSON (line {error.lineno}: {error.msg}); write it again") from None


def _valid(content: object, path: str | Path) -> Report:
    version = content.get("schema_version", VERSION) if isinstance(content, dict) else VERSION
    if version in range(VERSION):
        raise ReportError(f"{path}: is a report of version {version}, not {VERSION}; run the suite again")
    try:
        return read(Report, content)
    except ReportError as error:
        raise ReportError(f"{path}: not a valid report: {error}") from None


def to_json(report: Report) -> str:
    """The text of a report file, which can be read again.

    Raises:
        ReportError: the report is not valid, or contradicts itself.
    """
    content = plain(report)
    read(Report, content)
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def save(report: Report, path: str | Path) -> None:
    """Write a valid report as strict JSON, atomically; makes the folder.

    Raises:
        ReportError: the report is not valid, or contradicts itself.
    """
    write_atomically(Path(path), to_json(report))


def write_atomically(path: Path, text: str) -> None:
    """Write a temporary file, then rename: no half-written file is ever seen; removes leftovers of killed runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
