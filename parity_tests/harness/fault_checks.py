"""The suite as the fault catalogue runs it: in this process, smallest parts first, up to the first failure.

The reference does not change under a fault of the port, so its results are computed once for each isolated case.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch

from mlx_parity.case import Case
from mlx_parity.compare import Reading
from mlx_parity.judge import compare_all
from mlx_parity.sides.truth import Truth, truth_of
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.harness.fault_catalogue.base import FaultError, clear_caches
from parity_tests.harness.fault_tests import BEFORE, CASES, GOLDEN, TESTS, module_of
from parity_tests.harness.signatures import Signature, strength
from parity_tests.harness.time_limit import TimeLimit, limited
from port import noise

ROOT = Path(__file__).parents[2]
# What one case or test may take under a fault, in seconds; one that does not end counts as a failure if it takes less
# than a tenth of that without the fault.
LIMIT = 300.0


@dataclass(frozen=True)
class Finding:
    """The first check that failed under a fault."""

    by: str
    first_failing: str
    module: str
    message: str

    @property
    def endless(self) -> bool:
        """It did not end within the limit."""
        return TimeLimit.__name__ in self.message


def look(module: str) -> Finding | None:
    """The first failure of what comes before any case, of the isolated cases of a module's stage, then of its tests."""
    beginning = max((prefix for prefix in TESTS if module.startswith(prefix)), key=len)
    before = BEFORE.get(module.split(".")[0], ())
    return _tests(before) or _isolated(cases(module)) or _tests(TESTS[beginning])


def signature(module: str) -> Signature:
    """How wrong each isolated checkpoint of a module's stage is; of all stages for what they share."""
    found = {name: strength(reading.status, reading.ratio) for _, name, reading in _readings(cases(module))}
    return {name: value for name, value in found.items() if value}


def cases(module: str) -> list[Case]:
    """The isolated cases of a module's stage, in the order of `CASES`; of all stages for what they all go through."""
    stages = CASES.get(module) or CASES.get(module.split(".")[0]) or (f"{module.split('.')[0]}.",)
    return [case for stage in stages for case in all_cases() if case.part.path.startswith(stage)]


def look_everywhere() -> Finding | None:
    """The first failure of all isolated cases, then of all tests."""
    return _isolated(all_cases()) or _tests([selection for group in TESTS.values() for selection in group] + [GOLDEN])


def baseline() -> Finding | None:
    """What fails without any fault; nothing should."""
    with clean():
        return _isolated(all_cases())


def objection(finding: Finding) -> str:
    """Why a failure proves nothing about the fault it was found under; '' when it does.

    Isolated cases are known to pass without a fault, from `baseline`.
    """
    if "::" not in finding.by and not finding.endless:
        return ""
    seconds = _seconds(finding.by)
    if seconds is None:
        return f"{finding.by} fails without the fault too"
    if finding.endless and seconds > LIMIT / 10:
        return f"{finding.by} takes {seconds:.0f} s without the fault too"
    return ""


@contextmanager
def clean() -> Iterator[None]:
    """Tables and noise made under a fault must not outlive it, nor those made before hide it."""
    kept, noise._FIXED = noise._FIXED, noise._FixedNoise()
    clear_caches()
    measure = coverage.current() if (coverage := getattr(sys.modules.get("coverage"), "Coverage", None)) else None
    if measure:
        measure.stop()  # what runs under a fault is not covered by that
    try:
        yield
    finally:
        noise._FIXED = kept
        clear_caches()
        if measure:
            measure.start()


_TRUTHS: dict[str, Truth] = {}


def _truth(case: Case) -> Truth:
    if case.name not in _TRUTHS:
        _TRUTHS[case.name] = truth_of(case)
    return _TRUTHS[case.name]


def warm() -> None:
    """While the port is whole, compute the reference's results of all cases and import the tests.

    A test module computes constants when it is imported; made under a fault, they would outlive it.
    """
    for case in all_cases():
        _truth(case)
    files = {selection[0].partition("::")[0] for group in TESTS.values() for selection in group}
    _pytest(("", "--collect-only", *(str(ROOT / "parity_tests" / file) for file in sorted(files))))


def _isolated(cases: Sequence[Case]) -> Finding | None:
    for case, name, reading in _readings(cases):
        if reading.status != "PASS":
            return Finding(case.name, name, case.part.path, f"{reading.status}: {reading.message}")
    return None


def _readings(cases: Sequence[Case]) -> Iterator[tuple[Case, str, Reading]]:
    """Every checkpoint of some cases, one after another, with its name in the report."""
    port = OwnPort()
    for case in cases:
        truth = _truth(case)
        try:
            with limited(LIMIT):
                found = port.run(case.part, case.config, truth.state, truth.inputs, case.call)
        except (Exception, TimeLimit) as error:
            yield case, case.name, Reading("ERROR", f"{type(error).__name__}: {error}")
            continue
        readings = compare_all(found, truth.single, truth.double, truth.further, truth.rounded, case.part.follows)
        for output, reading in readings.items():
            yield case, f"{case.name}.{output}", reading


def _tests(selections: Sequence[Sequence[str]]) -> Finding | None:
    for selection in selections:
        if (failed := _pytest(selection)) is not None:
            nodeid, message = failed
            return Finding(nodeid, nodeid, module_of(nodeid), message)
    return None


class _FirstFailure:
    """A pytest plugin that remembers the first test that failed."""

    found: tuple[str, str] | None = None
    ran = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[object]:
        with limited(LIMIT):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call" and not report.skipped
        if report.failed and self.found is None:
            lines = str(report.longrepr).strip().splitlines()
            self.found = report.nodeid, lines[-1][:300] if lines else ""

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.found is None:
            self.found = report.nodeid, str(report.longrepr).strip().splitlines()[-1][:300]


def _pytest(selection: Sequence[str]) -> tuple[str, str] | None:
    """Run a part of the suite in this process up to its first failure: its node id and last line.

    Raises:
        FaultError: nothing ran.
    """
    from parity_tests.harness.session import Session

    first, (name, *further) = _FirstFailure(), selection
    path = [str(ROOT / "parity_tests" / name.removeprefix("parity_tests/"))] if name else []
    options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    outer, current = getattr(Session, "current", None), os.environ.get("PYTEST_CURRENT_TEST")
    threads, printed = torch.get_num_threads(), StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            pytest.main([*path, "-m", "not full", *further, *options], plugins=[first])
    finally:
        torch.set_num_threads(threads)
        if outer is not None:
            Session.current = outer
        if current is not None:
            os.environ["PYTEST_CURRENT_TEST"] = current
    if not first.ran and first.found is None and "--collect-only" not in selection:
        raise FaultError(f"no test ran: {' '.join(selection)}")
    return first.found


@cache
def _seconds(by: str) -> float | None:
    """What a case or test takes without a fault; None when it fails."""
    start = time.perf_counter()
    with clean():
        failed = _pytest((by,)) if "::" in by else _isolated([case for case in all_cases() if case.name == by])
    return None if failed else time.perf_counter() - start
