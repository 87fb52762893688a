"""The optional sections of a report, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from mlx_parity.report.codec import Limits, derived
from mlx_parity.report.data import Count, Outcome, Size, Status, Text

Percent = Annotated[float, Limits(least=0, most=100)]
Base64 = Annotated[str, Limits(pattern="[A-Za-z0-9+/]+={0,2}")]


@dataclass(frozen=True)
class SourceFile:
    """What the converter found in a source file."""

    tensors: Count
    elements: Count
    ignored: Annotated[tuple[Text, ...], "entries beside the weights"] = ()


@dataclass(frozen=True)
class WeightsAudit:
    """The converter's audit: every source tensor is used or dropped, every port parameter is filled."""

    sources: Count
    consumed: Count
    dropped: Annotated[Mapping[Text, Text], "source tensor to the reason"]
    parameters: Count
    parameters_by_part: Mapping[str, Count]
    elements: Count
    transforms: Mapping[str, Count]
    files: Mapping[str, SourceFile]

    @derived
    def filled(self) -> Count:
        return sum(self.parameters_by_part.values())

    @derived
    def unused(self) -> Annotated[int, "source tensors neither consumed nor dropped"]:
        return self.sources - self.consumed - len(self.dropped)

    @derived
    def missing(self) -> Annotated[int, "parameters that nothing fills"]:
        return self.parameters - self.filled


@dataclass(frozen=True)
class Clip:
    """Two waveforms of one request."""

    name: Text
    sample_rate: Annotated[int, Limits(least=1)]
    snr_db: Annotated[float | None, "null when the waves are equal"]
    log_mel_distance: Size
    reference_wav: Base64 | None = None
    port_wav: Base64 | None = None
    spectrogram_png: Base64 | None = None


@dataclass(frozen=True)
class Metric:
    """One number of a variant of reduced precision against the float32 original."""

    variant: Text
    metric: Text
    stage: Text
    unit: Text
    value: Annotated[float | None, "the port's; null where not finite"]
    rounding: Annotated[float, "the reference with the rounded weights"]
    variety: Annotated[float, "the reference with other random numbers"]
    limit: float
    status: Literal["PASS", "FAIL"]


@dataclass(frozen=True)
class Fault:
    """A planted fault, and what became of it."""

    name: Text
    family: Text
    module: Text
    seen_in: str | None
    caught: bool
    by: Annotated[str | None, "the test that caught it"]
    first_failing: str | None
    right_module: bool | None
    equivalent: Annotated[str | None, "proof that it changes nothing; such faults leave the score"] = None

    def problems(self) -> Iterator[str]:
        if self.caught and self.equivalent:
            yield f"{self.name} is caught, so it cannot be equivalent"

    @property
    def state(self) -> str:
        return "caught" if self.caught else "equivalent" if self.equivalent else "SURVIVED"


@dataclass(frozen=True)
class Score:
    """Faults caught, of all that are not proved equivalent."""

    caught: Count
    total: Count


@dataclass(frozen=True)
class Faults:
    """Faults that this run planted."""

    rows: tuple[Fault, ...]

    @derived
    def score(self) -> Score:
        counted = [row for row in self.rows if not row.equivalent]
        return Score(sum(row.caught for row in counted), len(counted))


@dataclass(frozen=True)
class Recorded:
    """When and on what the catalogue was measured; the fingerprint is of the code."""

    started: Text
    duration_s: Size
    commit: Text
    mlx: Text
    device: Text
    fingerprint: Text


@dataclass(frozen=True)
class Catalogue(Faults):
    """The whole catalogue of faults as it was last recorded."""

    recorded: Recorded
    fresh: Annotated[bool, "the code is still the one it was recorded on"]


@dataclass(frozen=True)
class LivenessRow:
    """The effect of changing one tensor. DEAD: it cannot change the result, for a stated reason."""

    case: Text
    tensor: Text
    moved_budgets: Annotated[Size | None, "change of the output; null where only integers could move"]
    status: Literal["PASS", "VACUOUS", "DEAD"]
    reason: str | None = None

    def problems(self) -> Iterator[str]:
        if self.status == "DEAD" and not self.reason:
            yield f"{self.case} {self.tensor} is DEAD without a reason"


@dataclass(frozen=True)
class CoveredFile:
    """Lines and branches of one file that the suite reaches, and the lines that it does not."""

    file: Text
    line_percent: Percent
    branch_percent: Percent | None
    missing: str | None = None


@dataclass(frozen=True)
class Coverage:
    """Lines and branches of the port that the suite reaches."""

    line_percent: Percent
    branch_percent: Percent | None
    files: tuple[CoveredFile, ...] = ()


@dataclass(frozen=True)
class RunName:
    """What tells a run from another."""

    commit: str
    started: str
    status: str


@dataclass(frozen=True)
class DriftRow:
    """A row, test, fault or tensor in both runs: null where a run lacks it."""

    name: Text
    before: str | None
    after: str | None
    ratio_before: Size | None
    ratio_after: Size | None


@dataclass(frozen=True)
class Change:
    """Something around the runs that differs."""

    what: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Drift:
    """What changed between two runs."""

    before: RunName
    after: RunName
    regressions: tuple[Text, ...]
    changes: tuple[Change, ...]
    new_failures: tuple[DriftRow, ...] = ()
    weakened: tuple[DriftRow, ...] = ()
    lost: tuple[DriftRow, ...] = ()
    fixed: tuple[DriftRow, ...] = ()
    moved: tuple[DriftRow, ...] = ()
    gained: tuple[DriftRow, ...] = ()


@dataclass(frozen=True)
class Worst:
    """The row with the largest ratio."""

    row: Text
    ratio: Size


@dataclass(frozen=True)
class Verdict:
    """What follows from all of a report."""

    status: Literal["PASS", "FAIL", "ERROR"]
    sentence: Text = field(compare=False)  # a later version may put it in other words
    counts: Annotated[Mapping[Status, Count], "rows by status"]
    test_counts: Annotated[Mapping[Outcome, Count], "further tests by outcome"]
    worst: Worst | None
    first_over_budget: str | None
    fault_score: Score | None
