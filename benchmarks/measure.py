"""Measure: a process per side, a check before timing, and repeats that alternate between the sides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import BAKED, TO_SAMPLES, VARIED, Case, Variant
from benchmarks.process import Settings, WorkerError, WorkerProcess
from mlx_parity.compare import Reading, compare

# Longer than BLAS and OpenMP threads spin for new work, so that no other side's thread is awake during timing.
PAUSE_S = 0.1
# Further float32 runs of the reference (mlx_parity/compare.py): of inputs moved by an ulp, and, from tokens to
# samples, of a mel as near to the truth as its own: the pitch integrates to a phase, so one run may be right by luck.
NUDGES, NUDGES_OF_MEL = 2, 6
LIMITS = {"matrix_flops": "square", "memory_bytes": "sweep"}  # of a machine, and what a worker is asked for them
# What changes the result, and not only the way to it; the reference is run the same way.
MEANING = {"offline": "offline", "causal_final": "causal_final"}


@dataclass
class Bench:
    """The running workers, and what was measured with them.

    Args:
        settings: how to start workers.
        sides: the sides to time; torch always runs, for the check.
        tell: called with the name of each step, for the progress bar.

    Attributes:
        workers: the running ones, by name.
        references: the reference's outputs for the checks.
    """

    settings: Settings
    sides: Sequence[str]
    tell: Callable[[str], None] = lambda _: None
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    references: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def worker(self, side: str, parts: Sequence[str]) -> WorkerProcess:
        """The side's worker with these parts; a worker with other parts is stopped first, to free memory.

        A model with baked timesteps is a different model, and one that keeps its plain layers holds them twice: each
        has its own worker.
        """
        name = ".".join((side, *(part for part in parts if part in (BAKED, VARIED))))
        found = self.workers.get(name)
        if not found or not found.alive or set(found.parts) - set(parts):
            self.close(name)
            self.workers[name] = found = WorkerProcess(side, (), self.settings)
        if set(parts) - set(found.parts):
            self.tell(f"{name}: loading {', '.join(parts)}")
            found.load(parts)
        return found

    def close(self, name: str | None = None) -> None:
        """End one worker, or all."""
        for key in [name] if name else list(self.workers):
            if worker := self.workers.pop(key, None):
                worker.close()

    def about(self) -> dict[str, Any]:
        """Versions, device, BLAS and matrix product of every side that starts; why the others do not."""
        found = {}
        for side in dict.fromkeys(("torch", *self.sides)):
            try:
                worker = self.worker(side, ())
                found[side] = worker.ask("about") | {"matrix_flops": worker.ask("square", n=self.settings.matrix)}
            except WorkerError as error:
                found[side] = {"error": str(error)}
        return found

    def measure(self, case: Case, repeats: int | None = None) -> dict[str, Any]:
        """Check and time one case; a failure is marked in its row and does not stop the others."""
        variants = [v for v in case.variants if v.side in self.sides]
        rows: dict[str, dict[str, Any]] = {v.name: self._checked(case, v) for v in variants}
        running = [v for v in variants if rows[v.name]["status"] not in ("refused", "failed")]
        limits = self._limits(case, running, {})
        if case.warm:
            self._round(case, [v for v in running if v.repeats is None], rows, timed=False)
        for turn in range(repeats or case.repeats):
            due = [v for v in running if self._due(case, v, rows[v.name], turn)]
            if not due:
                break
            self._round(case, due, rows)
        limits = self._limits(case, running, limits)
        for row in rows.values():
            if row["seconds"]:
                row |= {"median": statistics.median(row["seconds"]), "low": min(row["seconds"])}
                row["high"] = max(row["seconds"])
        return {
            "name": case.name,
            "what": case.what,
            "kind": case.kind,
            "size": dict(case.size),
            "audio_seconds": case.seconds,
            "variants": rows,
            "ratios": ratios(rows),
            **limits,
            "counts": self._counts(case, running),
        }

    def _due(self, case: Case, variant: Variant, row: Mapping[str, Any], turn: int) -> bool:
        if row["status"] == "failed" or turn >= (variant.repeats or turn + 1):
            return False
        return sum(row["seconds"]) < case.limit_s or not turn

    def _round(self, case: Case, variants: Sequence[Variant], rows: Mapping[str, Any], timed: bool = True) -> None:
        before = None
        for variant in variants:
            row = rows[variant.name]
            if row["status"] == "failed":
                continue
            if variant.side != before:
                time.sleep(PAUSE_S)
            before = variant.side
            self.tell(f"{case.name}: {variant.name}")
            try:
                found = self._run(case, variant, case.size)
                if not found["finite"]:
                    raise WorkerError(f"{variant.name}: the result holds NaN or Inf")
            except WorkerError as error:
                row |= {"status": "failed", "message": str(error)}
                continue
            if timed:
                row["seconds"] += found["seconds"]
                row |= {key: found[key] for key in ("peak_bytes", "peak_rss_bytes", "marks") if found[key] is not None}

    def _run(self, case: Case, variant: Variant, size: Mapping[str, Any], **further: Any) -> dict[str, Any]:
        options = {**variant.options, **further.pop("options", {})}
        worker = self.worker(variant.side, (*case.parts, *variant.further))
        return worker.ask("run", kind=case.kind, size=dict(size), options=options, **further)

    def _checked(self, case: Case, variant: Variant) -> dict[str, Any]:
        """A new row with the verdict of the suite's rule on the small size."""
        row: dict[str, Any] = {"side": variant.side, "status": "measured", "message": "", "seconds": [], "check": None}
        if variant.side == "torch":
            return row
        self.tell(f"{case.name}: checking {variant.name}")
        try:
            reading = worst(self._readings(case, variant))
        except WorkerError as error:
            return row | {"status": "failed", "message": str(error)}
        row["check"] = {"status": reading.status, "ratio": reading.ratio, "error_rms": reading.e_port_rms}
        if variant.reduced and reading.status == "FAIL":
            row["check"]["status"] = "REDUCED"
        elif variant.side != "port" and reading.status == "FAIL":
            row |= {"status": "differs", "message": f"not the original's result: {reading.message}"}
        elif reading.status != "PASS":
            row |= {"status": "refused", "message": f"wrong result, not timed: {reading.message}"}
        return row

    def _readings(self, case: Case, variant: Variant) -> list[Reading]:
        way = MEANING.get(variant.options.get("way", ""))
        single, double = (self._reference(case, way, double=double) for double in (False, True))
        if case.kind in TO_SAMPLES:
            spread = float(np.sqrt(np.mean((single.pop("mel") - double.pop("mel")) ** 2)))
            further = [self._reference(case, way, mel_error=(spread, n)) for n in range(NUDGES_OF_MEL)]
        else:
            further = [self._reference(case, way, nudge=n + 1) for n in range(NUDGES)]
        path = self.settings.logs / "variant.npz"
        self._run(case, variant, case.check, options={"check": True}, save=str(path))
        own = arrays(path)
        if missing := double.keys() - own.keys():
            return [Reading("ERROR", f"{', '.join(missing)} is missing")]
        return [compare(own[k], single[k], double[k], further=[run[k] for run in further]) for k in double]

    def _reference(self, case: Case, way: str | None, nudge: int = 0, **options: Any) -> dict[str, np.ndarray]:
        """Outputs of the reference on the small size, computed once per check."""
        key = str((case.kind, case.check, way, nudge, options))
        if key not in self.references:
            reference = Variant("reference", "torch", {"way": way, "check": True})
            path = self.settings.logs / "reference.npz"
            self._run(case, reference, case.check, options=options, nudge=nudge, save=str(path))
            self.references[key] = arrays(path)
        return dict(self.references[key])

    def _limits(
        self, case: Case, variants: Sequence[Variant], before: Mapping[str, Mapping[str, float]]
    ) -> dict[str, dict[str, float]]:
        """By side, the speed of matrix products and of reading memory; the better of now and `before`."""
        found: dict[str, dict[str, float]] = {}
        for name, asked in LIMITS.items():
            found[name] = dict(before.get(name, {}))
            for side in dict.fromkeys(v.side for v in variants):
                time.sleep(PAUSE_S)
                try:
                    speed = self.worker(side, case.parts).ask(asked, n=self.settings.matrix)
                except WorkerError:
                    continue  # reported where it was to be timed
                found[name][side] = max(speed, found[name].get(side, 0.0))
        return found

    def _counts(self, case: Case, variants: Sequence[Variant]) -> dict[str, Any]:
        found = {}
        for variant in variants:
            if variant.side == "port" and not variant.options.get("guidance") and BAKED not in variant.further:
                options = {"kind": case.kind, "size": dict(case.size), "options": dict(variant.options)}
                try:
                    counted = self.worker("port", (*case.parts, *variant.further)).ask("counts", **options)
                except WorkerError as error:
                    counted = {"error": str(error)}
                if counted:
                    found[variant.name] = counted
        return found


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the outputs that a worker saved."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def worst(readings: Sequence[Reading]) -> Reading:
    """The reading that decides: first an error, then a failure, then the largest ratio."""
    order = {"ERROR": 3, "VACUOUS": 2, "FAIL": 1}
    return max(readings, key=lambda r: (order.get(r.status, 0), r.ratio or 0.0))


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Time of each variant over torch's and over the port's: median and range of the ratios of all turns.

    The runs of one turn follow each other directly, so a slow spell of the machine affects both.
    """
    found = {}
    for base in ("torch", "port"):
        for name, row in rows.items():
            if name == base or not row["seconds"] or not rows.get(base, {}).get("seconds"):
                continue
            turns = [a / b for a, b in zip(row["seconds"], rows[base]["seconds"], strict=False)]
            found[f"{name}/{base}"] = {"median": statistics.median(turns), "low": min(turns), "high": max(turns)}
    return found
