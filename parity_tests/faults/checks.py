"""The checks that run for a fault: isolated cases of its stage, then tests marked with parts near its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from convert.quantize import FLOAT32, Precision
from mlx_parity import judge
from mlx_parity.case import Case
from mlx_parity.compare import Reading
from mlx_parity.faults.patch import Fault, FaultError, clear_caches
from mlx_parity.faults.reach import Place, entered, reaches
from mlx_parity.faults.signatures import Signature, strength
from mlx_parity.faults.verdict import Check, Finding
from mlx_parity.faults.worker import Say, Workers
from mlx_parity.sides import regime
from mlx_parity.sides.truth import Truth, truth_of
from parity_tests import models
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.faults import PACKAGES
from parity_tests.faults.parts import BEFORE, GROUPS, cases_of, group_of, place
from parity_tests.faults.tests import first_failing, import_tests, knows, marked_tests, run_tests
from parity_tests.models import prepare_folders
from port import noise

FOLDERS = "folders"
EMBEDDED_SEED = 0  # the default seed of a run


@dataclass
class Checks:
    """The checks of this repository; see `mlx_parity.faults.verdict.Suite`.

    Args:
        signed: also keep how wrong each isolated case is under a fault.
        truths: the reference's results for each isolated case.
        folders: where the embedded checkpoint and its conversion were made.
        reached: the port's functions that run in each isolated case, and to make these folders.
        tests: all tests marked with a part, smallest parts first.
        arithmetic: what `regime.arithmetic` found on this machine.
        caught_by: the check that caught each fault when the score was recorded, by the fault's name.
    """

    signed: bool = False
    truths: dict[str, Truth] = field(default_factory=dict)
    folders: Path | None = None
    reached: dict[str, set[Place]] = field(default_factory=dict)
    tests: list[Check] = field(default_factory=list)
    arithmetic: dict[Any, Any] = field(default_factory=dict)
    caught_by: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = PACKAGES

    def prepare(self, faults: Iterable[Fault], workers: Workers) -> None:
        """Before any fault: import the tests, and run the reference on the cases that the faults need.

        This process must not evaluate an MLX array, because workers are its forks.
        """
        import_tests()
        names = [case.name for case in cases_for(faults)]
        parts = [partial(_truths, names[i :: 2 * workers.jobs]) for i in range(2 * workers.jobs)]
        for _, outcome in workers.run(_call, [_tests, partial(_folders, workers.folder / FOLDERS), *parts]):
            if outcome.problem:
                raise FaultError(outcome.problem)
            for name, found in outcome.result.items():
                setattr(self, name, getattr(self, name) | found if isinstance(found, dict) else found)

    def batches(self, faults: Sequence[Fault]) -> Sequence[Sequence[Check]]:
        """The isolated cases that the faults need."""
        checks = [_check(case) for case in cases_for(faults)]
        return [batch for batch in (checks[::2], checks[1::2]) if batch]

    def lasts(self, fault: Fault) -> int:
        """Expected duration: 2 if all tests run (equivalent), 0 if an isolated case caught it last time, else 1."""
        return 2 if fault.equivalent else int("::" in self.caught_by.get(fault.name, "::"))

    def look(self, fault: Fault, say: Say) -> tuple[Finding | None, Signature]:
        """The first failure among the fault's own checks, else among all checks: only then has it survived.

        Isolated cases that do not run the changed function are skipped first: the fault cannot change them.
        """
        self._hand_on(fault)
        noise._FIXED = noise._FixedNoise()
        package, group = fault.part.split(".")[0], group_of(fault.part) or ""
        before = self._of(BEFORE.get(package, ()))
        own = [test for test in self._of((group, *GROUPS.get(group, ()))) if test not in before]
        # Within one part the order does not matter, so the likely tests run first.
        own.sort(key=lambda test: (place(test.part), test.by != self.caught_by.get(fault.name), not knows(test, fault)))
        cases = [case for case in cases_for([fault]) if fault.equivalent or self._reaches(case.name, fault)]
        signature: Signature = {}
        finding = first_failing(before, say)
        if finding is None or self.signed:
            isolated, signature = self._isolated(cases, say)
            finding = finding or isolated
        finding = finding or first_failing(own, say)
        if finding is None and fault.equivalent is None:
            others = [case for case in all_cases() if case not in cases]
            finding = self._isolated(others, say)[0]
            finding = finding or first_failing([test for test in self.tests if test not in (*before, *own)], say)
        return finding, signature

    def alone(self, checks: Sequence[Check], say: Say) -> dict[str, float]:
        """Seconds of the checks that pass without any fault."""
        self._hand_on()
        tests, seconds = [check for check in checks if "::" in check.by], {}
        for case in (case for case in all_cases() if _check(case) in checks):
            start = time.perf_counter()
            say(_check(case))
            if all(reading.status == "PASS" for _, reading in self._readings(case)):
                seconds[case.name] = time.perf_counter() - start
        return seconds | (run_tests(tests, say).seconds if tests else {})

    def _hand_on(self, fault: Fault | None = None) -> None:
        """Let tests reuse what the fault cannot change: arithmetic, the reference's results, perhaps the folders."""
        regime.arithmetic = lambda: self.arithmetic
        judge.truth_of = self._truth_of
        if self.folders and not (fault and self._reaches(FOLDERS, fault)):
            models.prepare_folders = partial(_copied, self.folders)

    def _truth_of(self, case: Case) -> Truth:
        if not any(case is known for known in all_cases()):
            return truth_of(case)
        if case.name not in self.truths:
            self.truths[case.name] = truth_of(case)
        return self.truths[case.name]

    def _reaches(self, what: str, fault: Fault) -> bool:
        return reaches(self.reached.get(what), fault, self.packages)

    def _of(self, groups: Iterable[str]) -> list[Check]:
        return [test for test in self.tests if group_of(test.part) in groups]

    def _isolated(self, cases: Iterable[Case], say: Say) -> tuple[Finding | None, Signature]:
        found, signature = None, {}
        for case in cases:
            say(_check(case))
            for name, reading in self._readings(case):
                if reading.status != "PASS" and found is None:
                    found = Finding(_check(case), name, f"{reading.status}: {reading.message}")
                if value := strength(reading.status, reading.ratio):
                    signature[name] = value
            if found and not self.signed:
                break
        return found, signature

    def _readings(self, case: Case) -> Iterator[tuple[str, Reading]]:
        """The reading of every output of a case, with its name in the report."""
        truth = self._truth_of(case)
        try:
            readings = judge.compared(case, truth, OwnPort())
        except Exception as error:
            yield case.name, Reading("ERROR", f"{type(error).__name__}: {error}")
            return
        for output, reading in readings.items():
            yield f"{case.name}.{output}", reading


def cases_for(faults: Iterable[Fault]) -> list[Case]:
    """The isolated cases of these faults' stages, smallest parts first."""
    beginnings = dict.fromkeys(beginning for fault in faults for beginning in cases_of(fault.part))
    found = [case for beginning in beginnings for case in all_cases() if case.part.path.startswith(beginning)]
    return list({case.name: case for case in found}.values())


def _check(case: Case) -> Check:
    return Check(case.name, case.part.path)


def _call(work: Callable[[Say], dict[str, Any]], say: Say) -> dict[str, Any]:
    return work(say)


def _tests(say: Say) -> dict[str, Any]:
    """The marked tests, and the arithmetic."""
    return {"tests": marked_tests(), "arithmetic": regime.arithmetic()}


def _folders(folder: Path, say: Say) -> dict[str, Any]:
    """Make the embedded checkpoint and its conversion; returns the folder and the functions that ran."""
    clear_caches(PACKAGES)
    with entered(PACKAGES) as reached:
        models.prepare_folders(None, None, folder, EMBEDDED_SEED)
    return {"folders": folder, "reached": {FOLDERS: reached}}


def _copied(
    made: Path, source: Path | None, folder: Path | None, scratch: Path, seed: int, *precision: Precision
) -> tuple[Path, Path]:
    """`models.prepare_folders`; it copies what `_folders` made if the arguments ask for the same."""
    if source or folder or seed != EMBEDDED_SEED or precision not in ((), (FLOAT32,)):
        return prepare_folders(source, folder, scratch, seed, *precision)
    shutil.copytree(made, scratch, dirs_exist_ok=True)
    return scratch / "checkpoint", scratch / "mlx"


def _truths(names: Sequence[str], say: Say) -> dict[str, Any]:
    """The reference's results for some cases, and the port's functions that run in them."""
    truths, reached = {}, {}
    for case in (case for case in all_cases() if case.name in names):
        say(_check(case))
        truth = truth_of(case)
        truths[case.name] = replace(truth, further=list(truth.further))
        clear_caches(PACKAGES)
        noise._FIXED = noise._FixedNoise()
        with entered(PACKAGES) as reached[case.name], suppress(Exception):  # failures show later
            judge.compared(case, truth, OwnPort())
    return {"truths": truths, "reached": reached}
