"""One run of the suite: judges cases, hands out models, keeps every row, writes report.json at the end."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from convert.conversion import convert_folder
from convert.hub import Source
from convert.quantize import FLOAT32, Found, Precision, precision_of
from mlx_parity.adapter import Adapter, AdapterError
from mlx_parity.case import Case
from mlx_parity.compare import Reading
from mlx_parity.gathered import Gathered
from mlx_parity.judge import Row, failures, judge, reduced
from mlx_parity.report import data, sections
from mlx_parity.report.codec import ReportError, plain, read
from mlx_parity.report.model import Report, save
from mlx_parity.sides import regime
from mlx_parity.sides.liveness import summarised
from parity_tests.adapters import load_adapter
from parity_tests.adapters.own import OwnPort
from parity_tests.harness import places
from parity_tests.harness.components import NOT_CHECKED, components
from parity_tests.harness.fingerprint import ROOT
from parity_tests.harness.folders import FolderError, check_folders
from parity_tests.harness.models import Models
from parity_tests.harness.signatures import name_nearest
from port.fast import chosen
from port.files.errors import Refused
from reference.synthesize import synthesize
from reports.cosyvoice3 import ORIGINAL, STAGES

T = TypeVar("T")
LESS_PRECISE = ("llm", "flow")  # stages that `--dtype` makes so
REPORT_FILES = ("report.json", "report.html", "report.md", "summary.md")  # of an earlier run
WITH_OPTIONS = ("pytest ", "python -m parity_tests.trace ")  # commands that take the options of a run
ENDED = {  # exit codes of pytest with which tests are missing
    pytest.ExitCode.INTERRUPTED: "interrupted",
    pytest.ExitCode.INTERNAL_ERROR: "internal error",
    pytest.ExitCode.USAGE_ERROR: "usage error",
}


class Session:
    """State of one pytest run; `Session.current` is the running one."""

    key: ClassVar[pytest.StashKey[Session]] = pytest.StashKey()
    current: ClassVar[Session]

    def __init__(self, config: pytest.Config, command: str) -> None:
        Session.current = self
        OwnPort.usual = () if config.getoption("--plain") else None
        self.config = config
        self.command = command
        self.gathered = Gathered()
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._scratch = tempfile.TemporaryDirectory(prefix="parity-")
        self.arithmetic = regime.arithmetic()
        self._report: Report | None = None
        self._problem = ""

    def begin(self) -> None:
        """Check the folders that the run names, and drop the report of an earlier run: it is not that of this one.

        Raises:
            pytest.UsageError: a folder that is none of its kind, or that cannot be written to; one line.
        """
        if hasattr(self.config, "workerinput"):
            return  # pytest-xdist: what started the workers has asked
        try:
            check_folders(self.config.getoption("--checkpoint"), self.config.getoption("--mlx-path"))
            if folder := self._folder():
                folder.mkdir(parents=True, exist_ok=True)
                for name in REPORT_FILES:
                    (folder / name).unlink(missing_ok=True)
        except FolderError as error:
            raise pytest.UsageError(str(error)) from None
        except OSError as error:
            raise pytest.UsageError(f"--report: {error.filename}: {error.strerror}; give a folder") from None

    def _folder(self) -> Path | None:
        """Where this process writes the report; a worker of pytest-xdist writes none."""
        folder = self.config.getoption("--report")
        if folder is None or hasattr(self.config, "workerinput") or self.config.getoption("--collect-only"):
            return None
        return Path(folder)

    @cached_property
    def adapter(self) -> Adapter:
        """The port under test."""
        try:
            return load_adapter(self.config.getoption("--adapter"), self.config.getoption("--dtype"))
        except AdapterError as error:
            raise pytest.UsageError(str(error)) from None

    @cached_property
    def models(self) -> Models:
        """Reference in both precisions and the converted port, from one checkpoint; made on first use."""
        option, scratch = self.config.getoption, Path(self._scratch.name)
        precision = Precision(option("--dtype"))
        models = prepare_models(option("--checkpoint"), option("--mlx-path"), scratch, option("--seed"), precision)
        about = {"weights": [asdict(file) for file in models.files], "revision": models.revision}
        self.keep("models", [about | {"audit": plain(weights_audit(models.audit)) if models.audit else None}])
        return models

    @property
    def label(self) -> str:
        """Precision of the run: that of `--dtype`, else of the folder that `--mlx-path` names."""
        dtype, folder = self.config.getoption("--dtype"), self.config.getoption("--mlx-path")
        if dtype != "float32" or folder is None:
            return dtype
        try:
            return precision_of(folder).label
        except Refused as error:
            raise pytest.UsageError(f"--mlx-path: {error}") from None

    @cached_property
    def precision(self) -> Found:
        """Precision of the converted folder."""
        return precision_of(self.models.folder)

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
        rows = self._reduced(rows)
        assert rows, "nothing was compared"
        nodeid = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        self.keep("rows", [plain(self._entry(row, nodeid)) for row in rows])
        if all(row.reading.status == "SKIP" for row in rows):
            pytest.skip(rows[0].reading.message)
        if broken := failures(rows):
            pytest.fail("\n".join(broken), pytrace=False)

    def _reduced(self, rows: Iterable[Row]) -> list[Row]:
        """Rows over budget as REDUCED where the port's weights are not float32.

        Single parts have the weights of `--dtype`, walks those of the converted folder.
        """
        dtype, found = self.config.getoption("--dtype"), []
        for row in rows:
            if row.case.startswith("walk."):
                found += reduced([row], self.precision.label, self.precision.stages)
            else:
                found += reduced([row], dtype, () if dtype == "float32" else LESS_PRECISE)
        return found

    def keep(self, section: str, entries: Iterable[Any]) -> None:
        """Add the running test's entries to a section of the report."""
        self.gathered.keep(section, entries)

    def finish(self, exit_code: int) -> int:
        """Write DIR/report.json when asked to, drop what was written on the way, and return the exit code.

        A run that ended early is an error in its report, and a report that is no PASS is no success.
        """
        try:
            if folder := self._folder():
                if exit_code in ENDED:
                    self.gathered.error("session", f"the run ended early: {ENDED[exit_code]}")
                self._report = self._build()
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

    def _build(self) -> Report:
        rows = sorted(self._kept("rows", data.Row), key=_smallest_first)
        modules = places.describe((row.module for row in rows), self.adapter.place)
        tests = {nodeid: read(data.Test, entry, nodeid) for nodeid, entry in self.gathered.tests.items()}
        compared = {row.test for row in rows}
        prepared = next(iter(self.gathered.entries("models")), None)
        faults = self._kept("faults", sections.Fault)
        return Report(
            provenance=self._provenance(prepared),
            stages=STAGES,
            rows=name_nearest(rows, modules, STAGES),
            tests=tuple(test for nodeid, test in tests.items() if nodeid not in compared),
            components=components(rows, list(tests.values()), self._partial()),
            modules=modules,
            not_checked=NOT_CHECKED,
            weights_audit=prepared and read(sections.WeightsAudit | None, prepared["audit"], "weights_audit"),
            audio=self._kept("audio", sections.Clip),
            quality=self._kept("quality", sections.Metric),
            faults=sections.Faults(faults) if faults else None,
            fault_catalogue=next(iter(self._kept("fault_catalogue", sections.Catalogue)), None),
            liveness=tuple(summarised(self._kept("liveness", sections.LivenessRow))),
        )

    def _kept(self, section: str, kind: type[T]) -> tuple[T, ...]:
        """The entries that tests have left of a section."""
        return tuple(read(kind, entry, section) for entry in self.gathered.entries(section))

    def _entry(self, row: Row, nodeid: str) -> data.Row:
        return row.entry(nodeid, self._again(row.reproduce or shlex.join(["pytest", nodeid])))

    def _again(self, command: str) -> str:
        """A command with the options of this run that decide what it compares."""
        option, words = self.config.getoption, []
        usual = {"--adapter": "own", "--dtype": "float32", "--device": "auto", "--seed": 0}
        usual |= {"--checkpoint": None, "--mlx-path": None}
        if not command.startswith(WITH_OPTIONS):
            return command
        for name, value in usual.items():
            if option(name) != value:
                words += [name, str(option(name))]
        words += ["--plain"] * option("--plain")
        if command.startswith("pytest ") and option("--full"):
            words.append("--full")
        return f"{command} {shlex.join(words)}" if words else command

    def _partial(self) -> bool:
        """Whether the command named files, tests or keywords, so that parts of the plan were left out on purpose."""
        option = self.config.option
        whole = [[], ["parity_tests"], ["parity_tests/"], ["parity_tests", "tests"], ["."]]
        chosen = (getattr(option, name, None) for name in ("keyword", "deselect", "lf"))  # the last is a plugin's
        return option.file_or_dir not in whole or any(chosen)

    def _provenance(self, prepared: dict[str, Any] | None) -> data.Provenance:
        option = self.config.getoption
        prepared = prepared or {"weights": [], "revision": None}
        return regime.provenance(
            ROOT,
            self.arithmetic,
            self.adapter.versions(),
            original=ORIGINAL,
            weights=tuple(read(data.WeightFile, file, "weights") for file in prepared["weights"]),
            revision=prepared["revision"],
            fast_forms=(() if option("--plain") else tuple(chosen())) if option("--adapter") == "own" else None,
            dtype=self.label,
            seed=option("--seed"),
            started=self.started.isoformat(timespec="seconds"),
            duration_s=round(time.monotonic() - self._clock, 1),
            command=self.command,
            adapter=option("--adapter"),
        )


def weights_audit(audit: Mapping[str, Any]) -> sections.WeightsAudit:
    """The report's section, from the converter's audit as a dictionary."""
    same = ("sources", "consumed", "dropped", "parameters", "parameters_by_part", "transforms")
    files = {
        file["name"]: sections.SourceFile(file["tensors"], file["elements"], tuple(file["ignored"]))
        for file in audit["files"].values()
    }
    return sections.WeightsAudit(**{k: audit[k] for k in same}, elements=audit["parameter_elements"], files=files)


def _smallest_first(row: data.Row) -> int:
    """Single parts, the original's numbers, parts of the checkpoint, whole stages: the smallest wrong part first."""
    if row.kind == "golden":
        return 1
    return 3 if row.kind == "chained" else 2 if row.case.startswith("walk.") else 0


def prepare_models(
    source: Path | None, folder: Path | None, scratch: Path, seed: int, precision: Precision = FLOAT32
) -> Models:
    """Load a checkpoint and its conversion, making whichever is not given below `scratch`, in `precision`."""
    if source is None:
        source = scratch / "checkpoint"
        synthesize(source, "tiny", seed)
    if folder is None:
        folder = scratch / "mlx"
        convert_folder(Source(source, str(source)), folder, precision=precision)
    return Models.load(source, folder)
