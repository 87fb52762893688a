"""The suite as faults meet it: isolated cases of their stage, then the tests marked with parts near their own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from mlx_parity.case import Case
from mlx_parity.compare import Reading
from mlx_parity.faults.patch import Fault, FaultError
from mlx_parity.faults.signatures import Signature, strength
from mlx_parity.faults.verdict import Check, Finding
from mlx_parity.faults.worker import Say, Workers
from mlx_parity.judge import compared
from mlx_parity.sides import regime
from mlx_parity.sides.truth import Truth, truth_of
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.faults import PACKAGES, TESTS
from parity_tests.faults.parts import ASIDE, BEFORE, GROUPS, cases_of, group_of, is_part, place
from port import noise

ROOT = Path(__file__).parents[2]
OPTIONS: tuple[str, ...] = ("-q", "-m", "not full", "-p", "no:cacheprovider", "-p", "no:unraisableexception")
OPTIONS += ("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"))


@dataclass
class Checks:
    """The checks of this repository; see `mlx_parity.faults.verdict.Suite`.

    Args:
        signed: how wrong each isolated case is under a fault is kept as well.
        truths: what the reference gives for each isolated case.
        tests: all that are marked with a part, smallest parts first.
        arithmetic: what this machine was found to compute in.
        caught_by: the check that caught each fault when the score was recorded, by the fault's name.
    """

    signed: bool = False
    truths: dict[str, Truth] = field(default_factory=dict)
    tests: list[Check] = field(default_factory=list)
    arithmetic: dict[Any, Any] = field(default_factory=dict)
    caught_by: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = PACKAGES

    def prepare(self, faults: Iterable[Fault], workers: Workers) -> None:
        """Before any fault: import the tests, and run the reference on the cases that the faults need.

        Nothing of it evaluates an array of MLX: workers are forks of this process.
        """
        names = [case.name for case in cases_for(faults)]
        for batch, outcome in workers.run(
            _prepared, [None, *(names[i :: 2 * workers.jobs] for i in range(2 * workers.jobs))]
        ):
            if outcome.problem:
                raise FaultError(outcome.problem)
            if batch is None:
                self.tests, self.arithmetic = outcome.result
            else:
                self.truths |= outcome.result
        # What a run of pytest imports, and PyTorch at the first use of another order: seconds of each worker.
        import_module("torch._dynamo")
        for plugin in entry_points(group="pytest11"):
            plugin.load()
        for file in {"parity_tests/fixtures.py", *(test.by.partition("::")[0] for test in self.tests)}:
            import_module(Path(file).with_suffix("").as_posix().replace("/", "."))

    def batches(self, faults: Sequence[Fault]) -> Sequence[Sequence[Check]]:
        """The isolated cases that the faults need."""
        checks = [_check(case) for case in cases_for(faults)]
        return [batch for batch in (checks[::2], checks[1::2]) if batch]

    def look(self, fault: Fault, say: Say) -> tuple[Finding | None, Signature]:
        """The first failure of a fault's checks; of all checks before it may count as survived."""
        regime.arithmetic = lambda: self.arithmetic
        noise._FIXED = noise._FixedNoise()
        package, group = fault.part.split(".")[0], group_of(fault.part) or ""
        before = self._of(BEFORE.get(package, ()))
        own = [test for test in self._of((group, *GROUPS.get(group, ()))) if test not in before]
        # Among the tests of one part the order proves nothing: the likely ones first.
        own.sort(key=lambda test: (place(test.part), test.by != self.caught_by.get(fault.name), not knows(test, fault)))
        cases = cases_for([fault])
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
        regime.arithmetic = lambda: self.arithmetic
        tests, seconds = [check for check in checks if "::" in check.by], {}
        for case in (case for case in all_cases() if _check(case) in checks):
            start = time.perf_counter()
            say(_check(case))
            if all(reading.status == "PASS" for _, reading in self._readings(case)):
                seconds[case.name] = time.perf_counter() - start
        return seconds | (run_tests(tests, say).seconds if tests else {})

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
        """Every checkpoint of a case, with its name in the report."""
        if case.name not in self.truths:
            self.truths[case.name] = truth_of(case)
        try:
            readings = compared(case, self.truths[case.name], OwnPort())
        except Exception as error:
            yield case.name, Reading("ERROR", f"{type(error).__name__}: {error}")
            return
        for output, reading in readings.items():
            yield f"{case.name}.{output}", reading


def cases_for(faults: Iterable[Fault]) -> list[Case]:
    """The isolated cases of the stages that some faults are in, as they run: smallest parts first."""
    beginnings = dict.fromkeys(beginning for fault in faults for beginning in cases_of(fault.part))
    found = [case for beginning in beginnings for case in all_cases() if case.part.path.startswith(beginning)]
    return list({case.name: case for case in found}.values())


def _check(case: Case) -> Check:
    return Check(case.name, case.part.path)


def _prepared(names: Sequence[str] | None, say: Say) -> Any:
    """The marked tests and the arithmetic, or the truths of some cases."""
    if names is None:
        return marked_tests(), regime.arithmetic()
    found = {}
    for case in (case for case in all_cases() if case.name in names):
        say(_check(case))
        truth = truth_of(case)
        found[case.name] = replace(truth, further=list(truth.further))
    return found


# ---- tests


@dataclass(eq=False)
class Run:
    """A pytest plugin that runs some tests in their order.

    Attributes:
        order: node ids; None for all that are marked.
        seconds: of the tests that passed.
        failed: node id and last line of the first that failed.
        marked: node id and part of what was collected.
        late: 1 for what takes long, after the other tests of its part.
    """

    order: dict[str, int] | None
    say: Say
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    marked: list[Check] = field(default_factory=list)
    late: dict[str, int] = field(default_factory=dict)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if (mark := item.get_closest_marker("part")) is not None:
                self.marked.append(Check(item.nodeid, *mark.args))
                self.late[item.nodeid] = mark.kwargs.get("late", 0)
        if self.order is not None:
            order = self.order
            items[:] = sorted((i for i in items if i.nodeid in order), key=lambda item: order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.say(next((check for check in self.marked if check.by == nodeid), Check(nodeid, "")))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        self._failure(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._failure(report)

    def _failure(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            lines = str(report.longrepr).strip().splitlines() or [""]
            self.failed.setdefault(report.nodeid, lines[-1][:300])
            self.seconds.pop(report.nodeid, None)


def marked_tests() -> list[Check]:
    """All tests that name a part, smallest parts first.

    Raises:
        FaultError: a test that cannot be imported, or that names a part that there is not.
    """
    run = _pytest(Run(None, print), ["--collect-only", *(str(ROOT / folder) for folder in TESTS)])
    for nodeid, message in run.failed.items():
        raise FaultError(f"{nodeid}: {message}")
    for test in run.marked:
        if not is_part(test.part):
            raise FaultError(f"{test.by} is marked with {test.part}, which is no part")
    tests = [test for test in run.marked if test.part not in ASIDE]
    return sorted(tests, key=lambda test: (place(test.part), run.late[test.by]))


@cache
def _modules_of(file: str) -> frozenset[str]:
    """Names of the modules that a test file has something of."""
    values = vars(import_module(Path(file).with_suffix("").as_posix().replace("/", "."))).values()
    return frozenset(str(getattr(value, "__module__", None) or getattr(value, "__name__", "")) for value in values)


def knows(test: Check, fault: Fault) -> bool:
    """Whether a test's file imports from that of the fault: of the tests of one part, those run first."""
    path = fault.where.partition(":")[0]
    return (path if path.split(".")[0] in PACKAGES else f"port.{path}") in _modules_of(test.by.partition("::")[0])


def first_failing(tests: Sequence[Check], say: Say) -> Finding | None:
    """Run tests in their order up to the first that fails."""
    if not tests:
        return None
    parts = {test.by: test.part for test in tests}
    for nodeid, message in run_tests(tests, say, "-x").failed.items():
        return Finding(Check(nodeid, parts.get(nodeid, nodeid)), nodeid, message)
    return None


def run_tests(tests: Sequence[Check], say: Say, *options: str) -> Run:
    """Run tests in their order, in this process.

    Raises:
        FaultError: none ran.
    """
    files = sorted({test.by.partition("::")[0] for test in tests})
    order = {test.by: at for at, test in enumerate(tests)}
    run = _pytest(Run(order, say), [*options, *(str(ROOT / file) for file in files)])
    if not run.seconds and not run.failed:
        raise FaultError(f"no test ran: {', '.join(files)}")
    return run


def _pytest(run: Run, arguments: Sequence[str]) -> Run:
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = pytest.main([*OPTIONS, *arguments], plugins=[run])
    if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERNAL_ERROR):
        raise FaultError(f"pytest: {(printed.getvalue().strip().splitlines() or [str(code)])[-1]}")
    return run
