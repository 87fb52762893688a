"""Run the tests marked with a part by pytest, in this process and in a given order."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from mlx_parity.faults.patch import Fault, FaultError
from mlx_parity.faults.verdict import Check, Finding
from mlx_parity.faults.worker import Say
from parity_tests.faults import PACKAGES, TESTS
from parity_tests.faults.parts import ASIDE, is_part, place

ROOT = Path(__file__).parents[2]
OPTIONS: tuple[str, ...] = ("-q", "-m", "not full", "-p", "no:cacheprovider", "-p", "no:unraisableexception")
OPTIONS += ("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"))
NAMES_A_PART = re.compile(r"\bmark\.part\(|\bmarked\(")


@dataclass(eq=False)
class Run:
    """A pytest plugin that runs some tests in their order.

    Attributes:
        order: position of each test by node id; None for all.
        seconds: of the tests that passed.
        failed: node id and last line of the first that failed.
        marked: node id and part of each collected test.
        late: 1 for a slow test, which runs after the others of its part.
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


def import_tests() -> None:
    """Import what pytest and PyTorch would import later, which would cost each worker seconds."""
    # Any failure is enough: Hypothesis need not shrink it.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    how = hypothesis.settings(deadline=None, derandomize=True, report_multiple_bugs=False, phases=phases)
    hypothesis.settings.register_profile("faults", how)
    hypothesis.settings.load_profile("faults")
    files = [file for folder in TESTS for file in sorted((ROOT / folder).rglob("test_*.py"))]
    marked = [file for file in files if NAMES_A_PART.search(file.read_text("utf-8"))]
    for file in (ROOT / "parity_tests" / "fixtures.py", *marked):
        import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    import_module("torch._dynamo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slow on purpose: Hypothesis reads the constants of all modules here once
        hypothesis.given(strategies.integers())(lambda _: None)()


def marked_tests() -> list[Check]:
    """All tests that name a part, smallest parts first.

    Raises:
        FaultError: a test cannot be imported, or names an unknown part.
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
    """Names of the modules that a test file imports from."""
    values = vars(import_module(Path(file).with_suffix("").as_posix().replace("/", "."))).values()
    return frozenset(str(getattr(value, "__module__", None) or getattr(value, "__name__", "")) for value in values)


def knows(test: Check, fault: Fault) -> bool:
    """Whether a test's file imports from the fault's module; within one part such tests run first."""
    path = fault.where.partition(":")[0]
    return (path if path.split(".")[0] in PACKAGES else f"port.{path}") in _modules_of(test.by.partition("::")[0])


def first_failing(tests: Sequence[Check], say: Say) -> Finding | None:
    """Run tests in this order, up to the first failure."""
    if not tests:
        return None
    parts = {test.by: test.part for test in tests}
    for nodeid, message in run_tests(tests, say, "-x").failed.items():
        return Finding(Check(nodeid, parts.get(nodeid, nodeid)), nodeid, message)
    return None


def run_tests(tests: Sequence[Check], say: Say, *options: str) -> Run:
    """Run tests in this order, in this process.

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
