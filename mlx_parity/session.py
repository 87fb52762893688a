"""One pytest run of a suite: judges cases, keeps every row, writes report.json at the end."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from mlx_parity.adapter import Adapter
from mlx_parity.case import Case
from mlx_parity.compare import Reading
from mlx_parity.gathered import Gathered
from mlx_parity.judge import Row, failures, judge
from mlx_parity.report import data
from mlx_parity.report.codec import ReportError, plain, read
from mlx_parity.report.model import Report, save
from mlx_parity.sides import regime

T = TypeVar("T")
REPORT_FILES = ("report.json", "report.html", "report.md", "summary.md")  # of an earlier run
ENDED: dict[int, str] = {  # exit codes of pytest with which tests are missing
    pytest.ExitCode.INTERRUPTED: "interrupted",
    pytest.ExitCode.INTERNAL_ERROR: "internal error",
    pytest.ExitCode.USAGE_ERROR: "usage error",
}


class Session(ABC):
    """State of one pytest run, which has an option `--report`; `Session.current` of a suite is the running one.

    Args:
        config: of pytest.
        command: that repeats the run.
    """

    key: ClassVar[pytest.StashKey[Session]] = pytest.StashKey()
    current: ClassVar[Session]

    def __init__(self, config: pytest.Config, command: str) -> None:
        type(self).current = self
        self.config = config
        self.command = command
        self.gathered = Gathered()
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._scratch = tempfile.TemporaryDirectory(prefix="parity-")
        self.arithmetic = regime.arithmetic()
        self._report: Report | None = None
        self._problem = ""

    # ---- what a suite brings

    @property
    @abstractmethod
    def adapter(self) -> Adapter:
        """The port under test."""

    @abstractmethod
    def report(self, rows: Sequence[data.Row], tests: Sequence[data.Test]) -> Report:
        """The report of what the run has gathered."""

    @abstractmethod
    def check_options(self) -> None:
        """Raise pytest.UsageError, with one line, where an option names what cannot be judged."""

    def reduced(self, rows: Iterable[Row]) -> list[Row]:
        """Rows over budget as REDUCED where the port's weights are not float32."""
        return list(rows)

    def again(self, command: str) -> str:
        """A command with the options of this run that decide what it compares."""
        return command

    # ---- the run

    def begin(self) -> None:
        """Check the options, and drop the report of an earlier run: it is not that of this one.

        Raises:
            pytest.UsageError: an option, or a folder that cannot be written to; one line.
        """
        if hasattr(self.config, "workerinput"):
            return  # pytest-xdist: what started the workers has asked
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
        folder = self.config.getoption("--report")
        if folder is None or hasattr(self.config, "workerinput") or self.config.getoption("--collect-only"):
            return None
        return Path(folder)

    def require_float32(self) -> None:
        """End the run, as an ERROR that names the side, where a side does not compute in float32."""
        problems = regime.not_float32(self.arithmetic)
        for side, problem in problems.items():
            name, reading = f"arithmetic.{side}", Reading("ERROR", problem)
            row = Row(name, "whole", "exact", "mlx_parity.sides.regime", name, reading, self.command)
            self.gathered.keep_outside("rows", [plain(self._entry(row, "arithmetic"))])
        if problems:
            pytest.exit("\n".join(problems.values()), returncode=pytest.ExitCode.TESTS_FAILED)

    def check(self, case: Case) -> None:
        """Judge an isolated case and fail the running test on any row over budget."""
        self.add(judge(case, self.adapter))

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows under the running test and fail it when one of them does not pass."""
        rows = self.reduced(rows)
        assert rows, "nothing was compared"
        nodeid = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        self.keep("rows", [plain(self._entry(row, nodeid)) for row in rows])
        if all(row.reading.status == "SKIP" for row in rows):
            pytest.skip(rows[0].reading.message)
        if broken := failures(rows):
            pytest.fail("\n".join(broken), pytrace=False)

    def _entry(self, row: Row, nodeid: str) -> data.Row:
        return row.entry(nodeid, self.again(row.reproduce or shlex.join(["pytest", nodeid])))

    def keep(self, section: str, entries: Iterable[Any]) -> None:
        """Add the running test's entries to a section of the report."""
        self.gathered.keep(section, entries)

    def kept(self, section: str, kind: type[T]) -> tuple[T, ...]:
        """The entries that tests have left of a section."""
        return tuple(read(kind, entry, section) for entry in self.gathered.entries(section))

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return round(time.monotonic() - self._clock, 1)

    def finish(self, exit_code: int) -> int:
        """Write DIR/report.json when asked to, drop what was written on the way, and return the exit code.

        A run that ended early is an error in its report, and a report that is no PASS is no success.
        """
        try:
            if folder := self._folder():
                if exit_code in ENDED:
                    self.gathered.error("session", f"the run ended early: {ENDED[exit_code]}")
                tests = [read(data.Test, entry, nodeid) for nodeid, entry in self.gathered.tests.items()]
                self._report = self.report(self.kept("rows", data.Row), tests)
                save(self._report, folder / "report.json")
                if self._report.verdict.status != "PASS":
                    exit_code = exit_code or pytest.ExitCode.TESTS_FAILED
        except (ReportError, OSError) as error:
            self._problem = f"ERROR: no report was written: {error}"
            exit_code = exit_code or pytest.ExitCode.INTERNAL_ERROR
        finally:
            self._scratch.cleanup()
        return exit_code

    def summary(self) -> list[str]:
        """Lines for the end of pytest's output."""
        return [self._problem] if self._problem else [self._report.verdict.sentence] if self._report else []
