"""What a report holds of a run: its rows, tests and components, and what it was made with.

The JSON, its schema and the checks on reading follow from these types (codec.py). Numbers are finite; None means
not measured. The texts beside the types are the schema's descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from mlx_parity.report.codec import Limits, derived

Text = Annotated[str, Limits(least=1)]
Count = Annotated[int, Limits(least=0)]
Size = Annotated[float, Limits(least=0)]
Positive = Annotated[float, Limits(above=0)]
Sha256 = Annotated[str, Limits(pattern="[0-9a-f]{64}")]
Place = Annotated[str, Limits(pattern=".+:[0-9]+"), "file:line"]
Moment = Annotated[
    str, Limits(pattern=r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"), "ISO 8601, with a zone"
]

Status = Literal["PASS", "FAIL", "ERROR", "SKIP", "REDUCED", "VACUOUS"]
Kind = Literal["isolated", "chained", "golden", "exact"]
Outcome = Literal["passed", "failed", "error", "skipped"]


@dataclass(frozen=True)
class Position:
    """One element: its index, and its value on the three sides (null where not finite)."""

    index: tuple[Count, ...]
    port: float | None
    oracle: float | None
    reference: float | None


@dataclass(frozen=True)
class Histogram:
    """Counts of |error| / rms(oracle) between edges (log10), of the port and of the float32 reference."""

    edges: Annotated[tuple[float, ...], Limits(least=2)]
    port: tuple[Count, ...]
    reference: tuple[Count, ...]

    def problems(self) -> Iterator[str]:
        if {len(self.port), len(self.reference)} != {len(self.edges) - 1}:
            yield "needs one edge more than it has bins"


@dataclass(frozen=True)
class ErrorMap:
    """Port error over two axes of the tensor, coarse: rows of |error| / rms(oracle)."""

    row_axis: Text
    column_axis: Text
    rows: Annotated[tuple[Annotated[tuple[Size, ...], Limits(least=1, most=128)], ...], Limits(least=1, most=64)]

    def problems(self) -> Iterator[str]:
        if len({len(row) for row in self.rows}) != 1:
            yield "has rows of different lengths"


@dataclass(frozen=True)
class Row:
    """One compared tensor."""

    name: Text
    stage: Text
    kind: Kind
    module: Annotated[Text, "class path shared by the twins"]
    case: Text
    status: Status
    reproduce: Annotated[Text, "command that repeats the comparison"]
    test: Text
    message: Annotated[str | None, "what is wrong; why it is skipped or vacuous"] = None
    shape: tuple[Count, ...] | None = None
    dtype: str | None = None
    e_ref_rms: Size | None = None
    e_ref_max: Size | None = None
    e_port_rms: Size | None = None
    e_port_max: Size | None = None
    ratio_rms: Size | None = None
    ratio_max: Size | None = None
    worst: Annotated[tuple[Position, ...], "the worst elements, the worst first"] = ()
    histogram: Histogram | None = None
    error_map: ErrorMap | None = None
    nearest_fault: Annotated[
        str | None,
        "known fault with the nearest signature, and how often one so near was right; only at the first part that "
        "fails, and only where that is measured to be mostly right",
    ] = None

    @derived
    def ratio(self) -> Annotated[Size | None, "the larger of ratio_rms and ratio_max"]:
        return None if self.ratio_rms is None or self.ratio_max is None else max(self.ratio_rms, self.ratio_max)


@dataclass(frozen=True)
class Test:
    """A test that compares no tensor, or that failed for another reason than its rows."""

    __test__ = False  # for pytest, which takes a class of this name for one of tests

    nodeid: Text
    outcome: Outcome
    duration_s: Size
    reason: str | None = None
    part: Annotated[str | None, "path of the part that its failure speaks of"] = None


@dataclass(frozen=True)
class Component:
    """A line of the verification plan: what was checked, by which rows and tests, and what was found."""

    component: Text
    status: Status
    checked: Text
    evidence: Annotated[tuple[Text, ...], "names of rows, or test ids"]
    issues: tuple[Text, ...]

    def problems(self) -> Iterator[str]:
        if self.status == "PASS" and not self.evidence:
            yield f"{self.component} is PASS without evidence"


@dataclass(frozen=True)
class Module:
    """Where a module is on both sides (null where unknown), and which others it contains."""

    reference: Place | None
    port: Place | None
    contains: tuple[Text, ...]


@dataclass(frozen=True)
class Gap:
    """Something that was not checked, and why."""

    what: Text
    why: Text


@dataclass(frozen=True)
class Budget:
    """A tensor passes when e_port <= ratio * max(e_ref, floor), for rms and for max-abs."""

    ratio: Positive = 4.0
    floor: Positive = 8 * 2.0**-24


BUDGET = Budget()


@dataclass(frozen=True)
class WeightFile:
    """A file that the weights came from."""

    file: Text
    sha256: Sha256
    bytes: Count


@dataclass(frozen=True)
class Arithmetic:
    """As measured: the relative rms error of a side's worst float32 product or convolution."""

    regime: Text
    error: Size | None
    worst: Text


@dataclass(frozen=True)
class Precision:
    """The arithmetic of PyTorch (reference) and MLX (port), and MLX_ENABLE_TF32 as the run saw it."""

    reference: Arithmetic
    port: Arithmetic
    tf32_flag: str | None


@dataclass(frozen=True)
class Provenance:
    """What was run, on what, with what."""

    commit: Text
    dirty: bool
    original: Text
    weights: tuple[WeightFile, ...]
    revision: str | None
    versions: Annotated[Mapping[str, str], Limits(keys=("mlx", "torch", "numpy", "python"))]
    os: Text
    machine: Text
    device: Annotated[Text, "the MLX device"]
    precision: Precision
    dtype: Text
    seed: int | None
    started: Moment
    duration_s: Size
    command: Text
    adapter: Text
    fast_forms: Annotated[
        tuple[Text, ...] | None, "faster layers of the port that were in place; null for another port"
    ] = None
