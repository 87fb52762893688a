"""One run of the suite: judges cases, hands out models, keeps every row, writes report.json at the end."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

from convert.conversion import convert_folder
from convert.hub import Source
from convert.quantize import FLOAT32, Found, Precision, precision_of
from mlx_parity.adapter import Adapter, AdapterError
from mlx_parity.case import Case
from mlx_parity.compare import BUDGET, FLOOR, Reading
from mlx_parity.judge import Row, failures, judge, reduced
from mlx_parity.sides import regime
from mlx_parity.sides.liveness import LivenessRow, summarised
from parity_tests.adapters import load_adapter
from parity_tests.adapters.own import OwnPort
from parity_tests.harness import places
from parity_tests.harness.components import EXCEPTIONS, NOT_CHECKED, components
from parity_tests.harness.folders import FolderError, check_folders
from parity_tests.harness.gathered import Gathered
from parity_tests.harness.models import Models
from parity_tests.harness.signatures import name_nearest
from port.fast import chosen
from port.files.errors import Refused
from reference.synthesize import synthesize
from reports import model as report_model

STAGES = ("llm", "flow")  # that `--dtype` makes less precise
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
        self._report: dict[str, Any] | None = None
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
        self.keep("models", [about | {"audit": report_model.weights_section(models.audit) if models.audit else None}])
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
            self.gathered.keep_outside("rows", [self._checkpoint(row, "arithmetic")])
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
        self.keep("rows", [self._checkpoint(row, nodeid) for row in rows])
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
                found += reduced([row], dtype, () if dtype == "float32" else STAGES)
        return found

    def keep(self, section: str, entries: Iterable[Any]) -> None:
        """Add the running test's entries to a section of the report."""
        self.gathered.keep(section, entries)

    def finish(self, root: Path, exit_code: int) -> int:
        """Write DIR/report.json when asked to, drop what was written on the way, and return the exit code.

        A run that ended early is an error in its report, and a report that is no PASS is no success.
        """
        try:
            if folder := self._folder():
                if exit_code in ENDED:
                    self.gathered.error("session", f"the run ended early: {ENDED[exit_code]}")
                self._report = self._build(root)
                report_model.save(self._report, folder / "report.json")
                if self._report["verdict"]["status"] != "PASS":
                    exit_code = exit_code or pytest.ExitCode.TESTS_FAILED
        except (report_model.ReportError, OSError) as error:
            self._problem = f"ERROR: no report was written: {error}"
            exit_code = exit_code or pytest.ExitCode.INTERNAL_ERROR
        finally:
            self._scratch.cleanup()
        return exit_code

    def summary(self) -> list[str]:
        """Lines for the end of pytest's output."""
        return [self._problem] if self._problem else [self._report["verdict"]["sentence"]] if self._report else []

    def _build(self, root: Path) -> dict[str, Any]:
        checkpoints = sorted(self.gathered.entries("rows"), key=_smallest_first)
        modules = places.describe((row["module"] for row in checkpoints), self.adapter.place)
        name_nearest(checkpoints, modules)
        compared = {row["test"] for row in checkpoints}
        tests = [entry for nodeid, entry in self.gathered.tests.items() if nodeid not in compared]
        prepared = next(iter(self.gathered.entries("models")), None)
        found = self._sections() | {"weights_audit": prepared and prepared["audit"]}
        parts = components(checkpoints, list(self.gathered.tests.values()), self._partial())
        judged = {name: found.get(name) for name in ("weights_audit", "liveness", "faults", "quality")}
        return {
            "schema_version": report_model.SCHEMA_VERSION,
            "verdict": report_model.verdict_of(checkpoints, tests, components=parts, modules=modules, **judged),
            "provenance": self._provenance(root, prepared),
            "budget": {"ratio": BUDGET, "floor": FLOOR},
            "checkpoints": checkpoints,
            "tests": tests,
            "components": parts,
            "modules": modules,
            "exceptions": EXCEPTIONS,
            "not_checked": NOT_CHECKED,
            **found,
        }

    def _checkpoint(self, row: Row, nodeid: str) -> dict[str, Any]:
        fields = row.to_dict()
        fields["message"] = fields["message"] or None
        fields["reason"] = fields["reason"] or None
        command = fields["reproduce"] or shlex.join(["pytest", nodeid])
        return report_model.checkpoint(test=nodeid, **fields | {"reproduce": self._again(command)})

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

    def _sections(self) -> dict[str, Any]:
        """The further sections that tests have left entries of."""
        kept = {name: self.gathered.entries(name) for name in ("liveness", "faults", "quality", "audio")}
        found: dict[str, Any] = {name: entries for name, entries in kept.items() if entries}
        if rows := found.get("liveness"):
            found["liveness"] = summarised(LivenessRow(**row) for row in rows)
        if rows := found.get("faults"):
            found["faults"] = report_model.faults_section(rows)
        for entry in self.gathered.entries("fault_catalogue"):
            found["fault_catalogue"] = entry
        return found

    def _partial(self) -> bool:
        """Whether the command named files, tests or keywords, so that parts of the plan were left out on purpose."""
        option = self.config.option
        whole = [[], ["parity_tests"], ["parity_tests/"], ["."]]
        chosen = (getattr(option, name, None) for name in ("keyword", "deselect", "lf"))  # the last is a plugin's
        return option.file_or_dir not in whole or any(chosen)

    def _provenance(self, root: Path, prepared: dict[str, Any] | None) -> dict[str, Any]:
        head, dirty = regime.commit(root)
        option = self.config.getoption
        return {
            "commit": head,
            "dirty": dirty,
            "original": "FunAudioLLM/CosyVoice ace7c47",
            "weights": prepared["weights"] if prepared else [],
            "revision": prepared and prepared["revision"],
            "versions": {**regime.versions(), **self.adapter.versions()},
            **regime.machine(),
            "precision": regime.precision(self.arithmetic),
            "fast_forms": ([] if option("--plain") else list(chosen())) if option("--adapter") == "own" else None,
            "dtype": self.label,
            "seed": option("--seed"),
            "started": self.started.isoformat(timespec="seconds"),
            "duration_s": round(time.monotonic() - self._clock, 1),
            "command": self.command,
            "adapter": option("--adapter"),
        }


def _smallest_first(row: dict[str, Any]) -> int:
    """Single parts, the original's numbers, parts of the checkpoint, whole stages: the smallest wrong part first."""
    if row["kind"] == "golden":
        return 1
    return 3 if row["kind"] == "chained" else 2 if row["case"].startswith("walk.") else 0


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
