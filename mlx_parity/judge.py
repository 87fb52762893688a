"""Run one case on both sides and turn the comparison into report rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Literal

from mlx_parity.adapter import Adapter, NotOffered
from mlx_parity.case import Case
from mlx_parity.compare import Reading, compare
from mlx_parity.report import data
from mlx_parity.report.codec import read
from mlx_parity.sides.truth import Arrays, Truth, truth_of

Kind = Literal["isolated", "chained", "golden", "exact"]


@dataclass(frozen=True)
class Row:
    """One row of the report: what was compared and what was found."""

    name: str
    stage: str
    kind: Kind
    module: str
    case: str
    reading: Reading
    reproduce: str = ""

    def entry(self, test: str, reproduce: str) -> data.Row:
        """The row as the report has it, of a test and with the command that repeats it."""
        fields = asdict(self.reading)
        first, positions = fields.pop("worst"), fields.pop("worst_positions")
        fields |= {"worst": positions or [first] * bool(first), "shape": list(self.reading.shape)}
        fields |= {key: fields[key] or None for key in ("message", "dtype")}
        about = {key: getattr(self, key) for key in ("name", "stage", "kind", "module", "case")}
        return read(data.Row, {**about, "reproduce": reproduce, "test": test, **fields}, self.name)


def judge(case: Case, adapter: Adapter) -> list[Row]:
    """Compare every output of a case; an exception of the port is an ERROR row, a part that it lacks a SKIP row."""
    truth = truth_of(case)
    rows = _rows(case, truth, adapter, case.name)
    for form, other in adapter.also(case.part, case.config).items():
        rows += _rows(case, truth, other, f"{case.name}.{form}")
    return rows


def _rows(case: Case, truth: Truth, adapter: Adapter, name: str) -> list[Row]:
    try:
        readings = compared(case, truth, adapter)
    except NotOffered as reason:
        readings = {"": Reading("SKIP", str(reason) or f"{adapter.name} has no {case.part.path}")}
    except Exception as error:
        readings = {"": Reading("ERROR", f"{adapter.name} raised {type(error).__name__}: {error}")}
    return [
        Row(
            name=f"{name}.{output}" if output else name,
            stage=case.part.stage,
            kind="isolated",
            module=case.part.path,
            case=case.name,
            reading=reading,
            reproduce=case.reproduce,
        )
        for output, reading in readings.items()
    ]


def compared(case: Case, truth: Truth, adapter: Adapter) -> dict[str, Reading]:
    """Readings of a case by output name; exceptions of the port are raised."""
    port = adapter.run(case.part, case.config, truth.state, truth.inputs, case.call)
    return compare_all(port, truth.single, truth.double, truth.further, truth.rounded, case.part.follows)


def compare_all(
    port: Arrays,
    single: Arrays,
    double: Arrays,
    further: Sequence[Arrays] = (),
    rounded: Arrays | None = None,
    follow: Callable[[Arrays], Arrays] | None = None,
) -> dict[str, Reading]:
    """Readings by output name; an output that one side lacks is an ERROR, and so are two whose names are exchanged.

    Args:
        follow: as `Part.follows`.
    """
    if follow and port.keys() == double.keys():
        port, single, double, rounded = follow(port), follow(single), follow(double), rounded and follow(rounded)

    def read(name: str, of: str) -> Reading:
        """The port's output `name` against the reference's output `of`."""
        more = ((follow(run) if follow else run)[of] for run in further)
        return compare(port[name], single[of], double[of], further=more, rounded=rounded[of] if rounded else None)

    readings = {}
    for output in dict.fromkeys([*double, *single, *port]):
        absent = [side for side, found in (("port", port), ("reference", double)) if output not in found]
        if absent or output not in single:
            readings[output] = Reading("ERROR", f"{output} is missing on the side of the {' and '.join(absent)}")
        else:
            readings[output] = read(output, output)
    failed = [output for output, reading in readings.items() if reading.status == "FAIL"]
    for one, other in combinations(failed, 2):
        if read(one, other).status == read(other, one).status == "PASS":
            for name, holds in ((one, other), (other, one)):
                message = f"the port's {name} is the reference's {holds}, and the other way round: exchanged names"
                readings[name] = replace(readings[name], status="ERROR", message=message)
    return readings


def reduced(rows: Iterable[Row], precision: str, stages: Collection[str] | None = None) -> list[Row]:
    """Rows of a port whose weights are not float32: those over budget become REDUCED, which does not fail.

    A row that could not be compared (another shape, NaN) stays an error in any precision.

    Args:
        precision: named in the message.
        stages: parts of the model that are not float32, as in `Found.stages`; all when None.
    """
    if stages is not None and set(stages) & {"flow", "vocoder"}:
        stages = {*stages, "whole"}
    return [
        replace(row, reading=replace(row.reading, status="REDUCED", message=f"in {precision}: {row.reading.message}"))
        if row.reading.status == "FAIL" and (stages is None or row.stage in stages)
        else row
        for row in rows
    ]


def failures(rows: Iterable[Row]) -> list[str]:
    """One line for each row that is neither passed nor skipped with a reason."""
    return [
        f"{row.name}: {row.reading.status}: {row.reading.message}"
        for row in rows
        if row.reading.status not in ("PASS", "SKIP", "REDUCED")
    ]
