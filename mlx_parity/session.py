"""One pytest run: compares models, judges cases, keeps every row, writes the report at the end."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from mlx_parity.adapter import Adapter
from mlx_parity.case import Case
from mlx_parity.compare import Reading
from mlx_parity.comparison import Comparison, nested
from mlx_parity.gathered import RUNNING, Gathered
from mlx_parity.judge import Row, failures, judge
from mlx_parity.models import compare_models
from mlx_parity.report import data
from mlx_parity.report.codec import ReportError, plain, read
from mlx_parity.report.model import Report
from mlx_parity.report.page import write_pages
from mlx_parity.report.plan import Plan, Planned
from mlx_parity.report.words import Wording
from mlx_parity.sides import regime

if TYPE_CHECKING:
    import mlx.nn
    import torch

T = TypeVar("T")
REPORT_FILES = ("report.json", "report.html", "report.md", "summary.md")  # removed when a run begins
ENDED: dict[int, str] = {  # exit codes of pytest after which tests are missing
    pytest.ExitCode.INTERRUPTED: "interrupted",
    pytest.ExitCode.INTERNAL_ERROR: "internal error",
    pytest.ExitCode.USAGE_ERROR: "usage error",
}


class Session:
    """State of one pytest run, and the plugin that serves it. A suite can extend it.

    Args:
        config: of pytest; its option `parity_report` is the folder of the report, or None.
        command: repeats the run; pytest with this run's arguments when None.
    """

    def __init__(self, config: pytest.Config, command: str | None = None) -> None:
        self.config = config
        self.command = command or shlex.join(["pytest", *map(str, config.invocation_params.args)])
        self.gathered = Gathered()
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._scratch = tempfile.TemporaryDirectory(prefix="parity-")
        self.arithmetic = regime.arithmetic()
        self._report: Report | None = None
        self._problem = ""

    # ---- what a suite may override

    @property
    def adapter(self) -> Adapter:
        """The port under test, for cases."""
        raise pytest.UsageError("cases need a suite that brings an adapter; compare_models needs none")

    def report(self, rows: Sequence[data.Row], tests: Sequence[data.Test]) -> Report:
        """The report of the run, with one stage and one component for each part."""
        stages = tuple(dict.fromkeys(row.stage for row in rows))
        parts = dict.fromkeys([*stages, *(test.part for test in tests if test.part)])
        inside = {part: tuple(dict.fromkeys(row.module for row in rows if row.stage == part)) for part in parts}
        plan = Plan(tuple(Planned(part, "all that its tests compare", (part, *inside[part])) for part in parts))
        compared = {row.test for row in rows}
        return Report(
            provenance=self.provenance(),
            stages=stages,
            rows=tuple(rows),
            tests=tuple(test for test in tests if test.nodeid not in compared),
            components=plan.components(rows, tests),
            modules={m: data.Module(None, None, within) for m, within in nested(row.module for row in rows).items()},
            not_checked=self.kept("not_checked", data.Gap),
        )

    def provenance(self, versions: Mapping[str, str] | None = None, **about: Any) -> data.Provenance:
        """Command, versions and machine of the run; a suite can set further fields by `about`."""
        about = {"original": "PyTorch", "weights": (), "revision": None, "dtype": "float32", "seed": None} | about
        about = {"adapter": self.config.rootpath.name, "command": self.command, **about}
        about |= {"started": self.started.isoformat(timespec="seconds"), "duration_s": self.seconds}
        return regime.provenance(self.config.rootpath, self.arithmetic, versions or {}, **about)

    def write(self, report: Report, folder: Path) -> None:
        """Write a report's pages."""
        write_pages(report, folder, Wording(self.config.rootpath.name))

    def words(self, part: str) -> Iterable[str]:
        """Words by which `-k` finds the tests of a part."""
        return (part,)

    def check_options(self) -> None:
        """Raise a pytest.UsageError of one line if an option names something that cannot be judged."""

    def reduced(self, rows: Iterable[Row]) -> list[Row]:
        """The rows; a suite marks those over budget as REDUCED if the port's weights are not float32."""
        return list(rows)

    def again(self, command: str) -> str:
        """A command with those options of this run that change what is compared."""
        return command

    # ---- the run

    def begin(self) -> None:
        """Check the options, and delete the report of an earlier run, which could be mistaken for this one's.

        Raises:
            pytest.UsageError: a wrong option, or a folder that cannot be written to; one line.
        """
        if hasattr(self.config, "workerinput"):
            return  # a worker of pytest-xdist: the main process has checked
        self.check_options()
        try:
            if folder := self._folder():
                folder.mkdir(parents=True, exist_ok=True)
                for name in REPORT_FILES:
                    (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise pytest.UsageError(f"--report: {error.filename}: {error.strerror}; give a folder") from None

    def _folder(self) -> Path | None:
        """Where this process writes the report; a worker of pytest-xdist writes none."""
        folder = self.config.getoption("parity_report")
        if folder is None or hasattr(self.config, "workerinput") or self.config.getoption("--collect-only"):
            return None
        return Path(folder)

    def require_float32(self) -> None:
        """End the run, with an ERROR row for each side, if a side does not compute in float32."""
        problems = regime.not_float32(self.arithmetic)
        for side, problem in problems.items():
            name, reading = f"arithmetic.{side}", Reading("ERROR", problem)
            row = Row(name, "whole", "exact", "mlx_parity.sides.regime", name, reading, self.command)
            self.gathered.keep_outside("rows", [plain(self._entry(row, "arithmetic"))])
        if problems:
            pytest.exit("\n".join(problems.values()), returncode=pytest.ExitCode.TESTS_FAILED)

    def compare_models(
        self, torch_model: torch.nn.Module, mlx_model: mlx.nn.Module, inputs: Any, *, part: str = "", **options: Any
    ) -> Comparison:
        """`mlx_parity.compare_models` in the running test, which fails unless every row passes.

        Args:
            part: name in the report; by default the part that marks the test, or the test's name.
            options: further arguments of the function.
        """
        item = self.config.stash[RUNNING]
        mark = item.get_closest_marker("part")
        part = part or (mark.args[0] if mark else item.name)
        found = compare_models(torch_model, mlx_model, inputs, **options)
        self.keep("not_checked", [plain(data.Gap(note, part)) for note in found.notes()])
        self._keep_rows(found.entries(part, item.nodeid))
        if not found.passed:
            pytest.fail("\n".join([*map(str, found.blamed), found.verdict()]), pytrace=False)
        return found

    def check(self, case: Case) -> None:
        """Judge an isolated case and fail the running test on any row over budget."""
        self.add(judge(case, self.adapter))

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows of the running test, and fail it if one of them does not pass."""
        rows = self._keep_rows(rows)
        assert rows, "nothing was compared"
        if all(row.reading.status == "SKIP" for row in rows):
            pytest.skip(rows[0].reading.message)
        if broken := failures(rows):
            pytest.fail("\n".join(broken), pytrace=False)

    def _keep_rows(self, rows: Iterable[Row]) -> list[Row]:
        rows, nodeid = self.reduced(rows), self.config.stash[RUNNING].nodeid
        self.keep("rows", [plain(self._entry(row, nodeid)) for row in rows])
        return rows

    def _entry(self, row: Row, nodeid: str) -> data.Row:
        return row.entry(nodeid, self.again(row.reproduce or shlex.join(["pytest", nodeid])))

    def keep(self, section: str, entries: Iterable[Any]) -> None:
        """Add the running test's entries to a section of the report."""
        self.gathered.keep(section, entries)

    def kept(self, section: str, kind: type[T]) -> tuple[T, ...]:
        """The entries that tests have added to a section."""
        return tuple(read(kind, entry, section) for entry in self.gathered.entries(section))

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self._clock, 1)

    def finish(self, exit_code: int) -> int:
        """Write the report if asked to, delete temporary files, and return the exit code.

        A run that ended early is an error in its report. With a report, the exit code is 0 only if its verdict is PASS.
        """
        try:
            if folder := self._folder():
                if exit_code in ENDED:
                    self.gathered.error("session", f"the run ended early: {ENDED[exit_code]}")
                tests = [read(data.Test, entry, nodeid) for nodeid, entry in self.gathered.tests.items()]
                self._report = self.report(self.kept("rows", data.Row), tests)
                self.write(self._report, folder)
                if self._report.verdict.status != "PASS":
                    exit_code = exit_code or pytest.ExitCode.TESTS_FAILED
        except (ReportError, OSError) as error:
            self._problem = f"ERROR: no report was written: {error}"
            exit_code = exit_code or pytest.ExitCode.INTERNAL_ERROR
        finally:
            self._scratch.cleanup()
        return exit_code

    # ---- pytest's hooks

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        if not self.config.option.collectonly and not hasattr(self.config, "workerinput"):
            self.require_float32()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self.gathered.attach(item, report)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.gathered.receive(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.gathered.failed_collection(report)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        session.exitstatus = self.finish(exitstatus)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        said = self._problem or (self._report and self._report.verdict.sentence)
        if said:
            terminalreporter.write_line(said)
