"""Wording of ratios, values and failures, and the words that depend on the subject."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_parity.report.codec import printing
from mlx_parity.report.data import BUDGET, ErrorMap, Precision, Row
from mlx_parity.report.rows import Stage


@dataclass(frozen=True)
class Wording:
    """Words of a page about its subject.

    Args:
        title: the model's name.
        stages: names of the stages in words; a stage that is not here goes by its own.
        pipeline: those through which the data flows one after another; the others are shown beside them.
        catalogue: command that measures the whole catalogue of faults anew.
    """

    title: str = "Model"
    stages: Mapping[str, str] = field(default_factory=dict)
    pipeline: tuple[str, ...] = ()
    catalogue: str = ""


RESTATED = "the reference's own float32 error"  # a row's message that has it only repeats the ratio


def failure_sentence(
    row: Row,
    *,
    budget_ratio: float = BUDGET.ratio,
    first: bool = False,
    isolated: Row | None = None,
    smallest: bool = False,
) -> str:
    """What is wrong with one tensor, in a few sentences.

    Args:
        row: the tensor's.
        budget_ratio: what its ratio may be.
        first: it is the first one over budget.
        isolated: the isolated run of the same module, from `isolated_of`.
        smallest: no module that this one contains fails alone.
    """
    name, ratio = row.name, row.ratio
    if row.status in ("ERROR", "VACUOUS"):
        kind = "could not be compared" if row.status == "ERROR" else "proves nothing"
        return f"{name}: {kind}. {row.message or ''}".rstrip()
    if ratio is None:
        parts = [f"{name}: {row.message or 'not equal'}."]
    else:
        which = ""
        rms, largest = row.ratio_rms, row.ratio_max
        if rms is not None and largest is not None and min(rms, largest) <= budget_ratio < ratio:
            inside = "rms" if rms < largest else "max-abs"
            outside = "max-abs" if inside == "rms" else "rms"
            low = ratio_text(min(rms, largest), budget_ratio)
            which = f" in {outside} ({low} in {inside})"
        parts = [f"{name}: {ratio_text(ratio, budget_ratio)} {RESTATED}{which}"]
        parts[0] += f" (budget {budget_ratio:g}x)."
    if first:
        parts.append("First tensor over budget.")
    for worst in row.worst[:1]:
        values = f"port {number_text(worst.port)}, float64 {number_text(worst.oracle)}"
        parts.append(f"Worst element {list(worst.index)}: {values}.")
    if row.kind == "isolated" and ratio is not None:
        where = "and nothing in it fails alone: the fault is in" if smallest else "so the fault is inside"
        of = "" if smallest else " or a part of it"
        parts.append(f"Fed the reference's own inputs, {where} this module{of}.")
    if row.kind == "chained":
        if isolated is None:
            parts.append("Its module was not run in isolation.")
        else:
            inside = isolated.ratio > budget_ratio
            verdict = "so the fault is inside this module" if inside else "so the fault comes from what feeds it"
            where = "" if isolated.name == name else f" ({isolated.name}, same class)"
            parts.append(f"Isolated{where}: {ratio_text(isolated.ratio, budget_ratio)}, {verdict}.")
    return " ".join(parts)


def with_it(own: int, folded: int) -> str:
    """A sentence with the number of other failing rows of a cause: of its part, and folded beneath it."""
    rows = [f"{own} more of this part"] * bool(own) + [f"{folded} of what contains it or comes after it"] * bool(folded)
    return f"With it fail {' and '.join(rows)}." if rows else ""


def ratio_text(ratio: float | None, budget_ratio: float = BUDGET.ratio, *, padded: bool = False) -> str:
    """`9.3x`, or `9.30x` in columns; with enough digits that rounding never crosses the budget."""
    if ratio is None:
        return "not measured"
    if ratio >= 1e5 or 0 < ratio < 0.005:
        return f"{ratio:.1e}x"
    digits = 0 if ratio >= 1000 else 1 if ratio >= 10 else 2
    while digits < 9 and (round(ratio, digits) > budget_ratio) != (ratio > budget_ratio):
        digits += 1
    text = f"{ratio:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text and not padded else text) + "x"


def budget_unit(row: Row, *, budget_ratio: float = BUDGET.ratio, floor: float = BUDGET.floor) -> float:
    """The allowed error of one element, |error| / rms(oracle): the unit of an error map."""
    return budget_ratio * max(row.e_ref_max or 0.0, floor)


def precision_text(precision: Precision) -> str:
    """The arithmetic of a run: the regime of both sides with the product that was the worst, and the flag."""
    measured = [
        f"the {side} computes in {found.regime} (worst: a {found.worst}, {sci_text(found.error, 'not finite')})"
        for side, found in (("reference", precision.reference), ("port", precision.port))
    ]
    flag = "not set" if precision.tf32_flag is None else precision.tf32_flag
    return ", ".join([*measured, f"MLX_ENABLE_TF32 {flag}"])


def heat_map(grid: ErrorMap, unit: float) -> list[str]:
    """An error map as lines of text, one character a cell, and its legend.

    Args:
        grid: `error_map` of a row.
        unit: one budget, from `budget_unit`.
    """

    def shade(value: float) -> str:
        budgets = value / unit
        return str(min(int(math.log10(budgets)), 9)) if budgets >= 1 else "." if budgets >= 0.1 else " "

    lines = ["|" + "".join(map(shade, row)) + "|" for row in grid.rows]
    return [
        *lines,
        f"rows: {grid.row_axis}; columns: {grid.column_axis}; a cell is the largest |error| in it",
        "in budgets of one element: n from 10^n on, '.' from 0.1 to 1 (within), blank below",
    ]


def stage_number(found: Stage, budget_ratio: float = BUDGET.ratio) -> str:
    """The text in the box of a stage: a ratio, or what replaces it."""
    if found.ratio is not None:
        return ratio_text(found.ratio, budget_ratio)
    instead = {"FAIL": "unequal", "ERROR": "error", "VACUOUS": "vacuous", "PASS": "exact"}
    return instead.get(found.status or "", "-")


def number_text(value: float | None) -> str:
    return "not finite" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"


def sci_text(value: float | None, missing: str = "-") -> str:
    return missing if value is None else f"{value:.2e}"


def markdown(text: str) -> str:
    """Text without characters that Markdown or a terminal would interpret."""
    return printing(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
