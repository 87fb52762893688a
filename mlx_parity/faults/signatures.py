"""Signatures of faults, to name the known fault that a failure resembles most.

The signature of a fault is the set of isolated rows that fail under it, each with log10 of its ratio. The same
mistake at another size multiplies all errors alike, so two signatures are compared after a shift: with t the median
difference over the rows that fail under both, what is left of each difference has the rms r, in decades, and

    likeness = 1 / (1 + r + |t| / 4)

For a row that fails under only one of the two, the difference is how far over budget that one, shifted, predicts
it under the other. Its weight is the log of the inverse share of known faults under which it fails: a row that
fails under most faults says little.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_parity.compare import BUDGET
from mlx_parity.report.causes import causes_of
from mlx_parity.report.data import Module, Row

LEAST, MOST = math.log10(BUDGET), 6.0  # log10 of a ratio: the budget; the cap, also used where there is no ratio
DECADES_OF_SIZE = 4.0  # so many decades of size weigh as much as one of shape
JUDGED = ("PASS", "FAIL", "ERROR", "VACUOUS")
NAMED, ALIKE = 3, 0.005  # faults to name at most; likeness below the best that still counts as equal
PRECISION, TRIALS = 0.9, 20  # share of the trials that must be right; least number of trials

Signature = Mapping[str, float]


@dataclass(frozen=True)
class Known:
    """Recorded signatures, families and modules by fault; `fresh` if the code has not changed since."""

    signatures: Mapping[str, Signature]
    families: Mapping[str, str]
    modules: Mapping[str, str]
    fresh: bool

    @classmethod
    def read(cls, path: Path, score: Path, code: str) -> Known:
        """The file that `record` wrote, and that of the score, which says which module each fault is in.

        Args:
            code: fingerprint of the code as it is now.
        """
        content = json.loads(path.read_text("utf-8"))
        modules = {row["name"]: row["module"] for row in json.loads(score.read_text("utf-8"))["rows"]}
        names = content["rows"]
        found = {
            fault: {names[int(at)]: value for at, value in row["signature"].items()}
            for fault, row in content["faults"].items()
            if fault in modules
        }
        families = {fault: row["family"] for fault, row in content["faults"].items()}
        return cls(found, families, modules, content["fingerprint"] == code)

    def judged_by(self, rows: Collection[str]) -> Known:
        """The known faults with signatures limited to these rows, without those that fail none of them."""
        shown = {f: {k: v for k, v in s.items() if k in rows} for f, s in self.signatures.items()}
        return replace(self, signatures={fault: signature for fault, signature in shown.items() if signature})


def record(found: Mapping[str, tuple[str, Signature]], code: str) -> str:
    """Text of a file of signatures; those of faults that no isolated case shows are left out.

    Args:
        found: family and signature by the fault's name.
        code: fingerprint of the code that they were measured on.
    """
    names = sorted({name for _, signature in found.values() for name in signature})
    places = {name: i for i, name in enumerate(names)}
    rows = {
        fault: {"family": family, "signature": {str(places[name]): round(v, 2) for name, v in signature.items()}}
        for fault, (family, signature) in found.items()
        if signature
    }
    lines = [f"{json.dumps(fault)}: {json.dumps(row, separators=(',', ':'))}" for fault, row in rows.items()]
    head = f'"fingerprint": "{code}",\n"rows": {json.dumps(names, indent=0)}'
    return "{\n" + head + ',\n"faults": {\n' + ",\n".join(lines) + "\n}\n}\n"


def strength(status: str, ratio: float | None) -> float:
    """How wrong one row is, for a signature; 0 where it is not."""
    if status not in ("FAIL", "ERROR", "VACUOUS"):
        return 0.0
    return MOST if ratio is None or status != "FAIL" else min(math.log10(ratio), MOST)


def weights(signatures: Collection[Signature]) -> Signature:
    """What each row tells: log of the inverse share of the faults that it fails under."""
    counts = Counter(name for signature in signatures for name in signature)
    return {name: math.log((len(signatures) + 1) / n) for name, n in counts.items()}


def likeness(one: Signature, other: Signature, weight: Signature) -> float:
    """From 0 (nothing in common) to 1, see above; a row without a weight counts as much as the rarest."""
    both = [name for name in one if name in other]
    if not both:
        return 0.0
    shift = statistics.median(one[name] - other[name] for name in both)
    rarest = max(weight.values(), default=1.0)
    total = spread = 0.0
    for name in {*one, *other}:
        found = one.get(name, LEAST)
        expected = min(other[name] + shift, MOST) if name in other else LEAST + shift
        unseen = (name not in one and expected < LEAST) or (name not in other and found < expected)
        total += weight.get(name, rarest)
        spread += 0.0 if unseen else weight.get(name, rarest) * (found - expected) ** 2
    return 1.0 / (1.0 + math.sqrt(spread / total) + abs(shift) / DECADES_OF_SIZE)


@dataclass(frozen=True)
class Nearest:
    """The faults that a signature is most like, and how much."""

    faults: list[str]
    likeness: float


def nearest(mine: Signature, known: Known, weight: Signature, without: Collection[str] = ()) -> Nearest:
    """The known faults that failures are most like; none where they have nothing in common."""
    found = {f: likeness(mine, s, weight) for f, s in known.signatures.items() if f not in without}
    best = max(found.values(), default=0.0)
    return Nearest([fault for fault, value in found.items() if best and value > best - ALIKE], best)


def trials(known: Known, weight: Signature) -> list[tuple[float, bool]]:
    """Likeness of the nearest other fault and whether all faults so named are in the right module, see above."""
    found = []
    for fault, mine in known.signatures.items():
        for without in ({fault}, {other for other in known.signatures if known.modules[other] == known.modules[fault]}):
            near = nearest(mine, known, weight, without)
            right = bool(near.faults) and {known.modules[other] for other in near.faults} == {known.modules[fault]}
            found.append((near.likeness, right))
    return sorted(found, reverse=True)


@dataclass(frozen=True)
class Reach:
    """The likeness from which the nearest fault is mostly in the right module: in `right` of `of` trials."""

    least: float
    right: int
    of: int


def reach(known: Known, weight: Signature) -> Reach | None:
    """The lowest such likeness; None if no `TRIALS` trials support one."""
    found, right = None, 0
    for of, (value, hit) in enumerate(trials(known, weight), 1):
        right += hit
        if of >= TRIALS and right >= PRECISION * of:
            found = Reach(value, right, of)
    return found


def name_nearest(
    rows: Sequence[Row], modules: Mapping[str, Module], stages: Sequence[str], faults: Known | None
) -> tuple[Row, ...]:
    """The rows, with `nearest_fault` set at the first part that fails, from all isolated rows that failed in its stage.

    It is not set if the nearest fault is not near enough to be mostly right.

    Args:
        rows, modules, stages: of a report.
        faults: the known ones; None where none are recorded.
    """
    causes = causes_of(rows, modules, stages)
    if faults is None or not causes:
        return tuple(rows)
    first = causes[0].row
    isolated = [row for row in rows if row.kind == "isolated" and row.status in JUDGED]
    # Signatures are of the port as it runs: rows of its plain layers would count a failure twice.
    isolated = [row for row in isolated if not row.name.startswith(f"{row.case}.plain")]
    faults = faults.judged_by({row.name for row in isolated})
    weight = weights(faults.signatures.values())
    broken = {row.name: strength(row.status, row.ratio) for row in isolated if row.stage == first.stage}
    near = nearest({name: value for name, value in broken.items() if value}, faults, weight)
    places = {faults.modules[fault] for fault in near.faults}
    if len(places) == 1 and (held := reach(faults, weight)) and near.likeness >= held.least:
        named = replace(first, nearest_fault=_words(near, places.pop(), faults, held))
        return tuple(named if row is first else row for row in rows)
    return tuple(rows)


def _words(near: Nearest, module: str, faults: Known, held: Reach) -> str:
    named = " or ".join(f"{fault} ({faults.families[fault]})" for fault in near.faults[:NAMED])
    more = f" or {len(near.faults) - NAMED} more" if len(near.faults) > NAMED else ""
    stale = "" if faults.fresh else "; recorded on other code"
    return (
        f"{named}{more} in {module}: likeness {near.likeness:.2f}; from {held.least:.2f} on the nearest known fault "
        f"was in the right module in {held.right} of {held.of} trials of the catalogue{stale}"
    )
