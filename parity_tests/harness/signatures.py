"""What a fault looks like from outside, and which known one a failure looks like.

The signature of a fault is the set of isolated checkpoints that fail under it, each with log10 of its ratio. The same
mistake at another size multiplies all errors alike, so two signatures are compared after a shift: with t the median
difference over the checkpoints that fail under both, what is left of each difference has the rms r, in decades, and

    likeness = 1 / (1 + r + |t| / 4)

A checkpoint that fails under one alone counts by how far over budget the other, shifted, says it should be. Each is
weighted by how few of the known faults it fails under (log of their inverse share): that a whole stage is wrong says
little. `python -m parity_tests.harness.faults --signatures FILE` records the signatures of the catalogue.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from parity_tests.harness.compare import BUDGET
from parity_tests.harness.fingerprint import fingerprint

FILE = Path(__file__).parents[1] / "data" / "fault_signatures.json"
CODE = ("port", "convert", "parity_tests/cases", "parity_tests/harness/fault_catalogue")
LEAST, MOST = math.log10(BUDGET), 6.0  # of a logarithm: the budget; beyond the other, or without a ratio, all is lost
DECADES_OF_SIZE = 4.0  # that weigh as much as one decade of shape
JUDGED = ("PASS", "FAIL", "ERROR", "VACUOUS")
NAMED = 3  # faults that look alike

Signature = Mapping[str, float]


@dataclass(frozen=True)
class Known:
    """Recorded signatures: of which fault, its family, and whether the code has not changed since."""

    signatures: Mapping[str, Signature]
    families: Mapping[str, str]
    fresh: bool

    @classmethod
    def read(cls, path: Path = FILE) -> Known:
        """The file that `record` wrote."""
        content = json.loads(path.read_text("utf-8"))
        names = content["checkpoints"]
        found = {
            fault: {names[int(at)]: value for at, value in row["signature"].items()}
            for fault, row in content["faults"].items()
        }
        families = {fault: row["family"] for fault, row in content["faults"].items()}
        return cls(found, families, content["fingerprint"] == fingerprint(CODE))


@cache
def known() -> Known | None:
    """The committed signatures, if they are there."""
    return Known.read() if FILE.is_file() else None


def record(found: Mapping[str, tuple[str, Signature]]) -> str:
    """Text of a file of signatures; those of faults that no isolated case shows are left out.

    Args:
        found: family and signature by the fault's name.
    """
    names = sorted({name for _, signature in found.values() for name in signature})
    places = {name: i for i, name in enumerate(names)}
    rows = {
        fault: {"family": family, "signature": {str(places[name]): round(v, 2) for name, v in signature.items()}}
        for fault, (family, signature) in found.items()
        if signature
    }
    lines = [f"{json.dumps(fault)}: {json.dumps(row, separators=(',', ':'))}" for fault, row in rows.items()]
    head = f'"fingerprint": "{fingerprint(CODE)}",\n"checkpoints": {json.dumps(names, indent=0)}'
    return "{\n" + head + ',\n"faults": {\n' + ",\n".join(lines) + "\n}\n}\n"


def strength(status: str, ratio: float | None) -> float:
    """How wrong one checkpoint is, for a signature; 0 where it is not."""
    if status not in ("FAIL", "ERROR", "VACUOUS"):
        return 0.0
    return MOST if ratio is None or status != "FAIL" else min(math.log10(ratio), MOST)


def weights(signatures: Collection[Signature]) -> Signature:
    """What each checkpoint tells: log of the inverse share of the faults that it fails under."""
    counts = Counter(name for signature in signatures for name in signature)
    return {name: math.log((len(signatures) + 1) / n) for name, n in counts.items()}


def likeness(one: Signature, other: Signature, weight: Signature) -> float:
    """From 0 (nothing in common) to 1, see above; a checkpoint without a weight counts as much as the rarest."""
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


def name_nearest(rows: Sequence[dict[str, Any]], faults: Known | None = None) -> None:
    """Give each failing row of a report its `nearest_fault`, by all isolated checkpoints that failed in its stage.

    Where none did (a fault that only a walk shows), by those of all stages.
    """
    faults = faults or known()
    if faults is None:
        return
    isolated = [row for row in rows if row["kind"] == "isolated" and row["status"] in JUDGED]
    judged = {row["name"] for row in isolated}
    shown = {fault: {k: v for k, v in s.items() if k in judged} for fault, s in faults.signatures.items()}
    weight = weights([s for s in shown.values() if s])
    broken = [(row["stage"], row["name"], strength(row["status"], row["ratio"])) for row in isolated]
    words: dict[str, str | None] = {}
    for row in rows:
        if strength(row["status"], row["ratio"]):
            stage = row["stage"]
            if stage not in words:
                mine = {name: v for at, name, v in broken if v and at == stage} or {n: v for _, n, v in broken if v}
                words[stage] = _words({fault: likeness(mine, s, weight) for fault, s in shown.items()}, faults)
            row["nearest_fault"] = words[stage]


def _words(found: Mapping[str, float], faults: Known) -> str | None:
    best = max(found.values(), default=0.0)
    if not best:
        return None
    alike = [fault for fault, value in found.items() if value > best - 0.005]
    named = " or ".join(f"{fault} ({faults.families[fault]})" for fault in alike[:NAMED])
    more = f" or {len(alike) - NAMED} more" if len(alike) > NAMED else ""
    return f"{named}{more}, likeness {best:.2f}" + ("" if faults.fresh else ", recorded on other code")
