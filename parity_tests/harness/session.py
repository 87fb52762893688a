"""One run of the suite: judges cases, hands out models, keeps every row, writes report.json at the end."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

from convert.quantize import FLOAT32, Found, Precision, precision_of
from convert.run import Source, convert_folder
from parity_tests.adapters.base import Adapter, AdapterError, load_adapter
from parity_tests.harness import regime
from parity_tests.harness.cases import Case
from parity_tests.harness.compare import BUDGET, FLOOR, Reading
from parity_tests.harness.components import EXCEPTIONS, NOT_CHECKED, components
from parity_tests.harness.judge import Row, failures, judge, reduced
from parity_tests.harness.models import Models
from parity_tests.harness.signatures import name_nearest
from port.config import ConfigError
from port.storage import WeightsError
from reference.synthesize import synthesize
from reports import model as report_model

STAGES = ("llm", "flow")  # that `--dtype` makes less precise


class Session:
    """State of one pytest run; `Session.current` is the running one."""

    key: ClassVar[pytest.StashKey[Session]] = pytest.StashKey()
    current: ClassVar[Session]

    def __init__(self, config: pytest.Config, command: str) -> None:
        Session.current = self
        self.config = config
        self.command = command
        self.rows: list[tuple[Row, str]] = []
        self.tests: dict[str, dict[str, Any]] = {}
        self.sections: dict[str, Any] = {}
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._scratch = tempfile.TemporaryDirectory(prefix="parity-")
        self.arithmetic = regime.arithmetic()
        self._report: dict[str, Any] | None = None

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
        return prepare_models(option("--checkpoint"), option("--mlx-path"), scratch, option("--seed"), precision)

    @property
    def label(self) -> str:
        """Precision of the run: that of `--dtype`, else of the folder that `--mlx-path` names."""
        dtype, folder = self.config.getoption("--dtype"), self.config.getoption("--mlx-path")
        if dtype != "float32" or folder is None:
            return dtype
        try:
            return precision_of(folder).label
        except (ConfigError, WeightsError) as error:
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
            self.rows.append((Row(name, "whole", "exact", "harness.regime", name, reading), "arithmetic"))
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
        self.rows += [(row, nodeid) for row in rows]
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

    def log(self, report: pytest.TestReport) -> None:
        """Keep the outcome of every test; a failure outside the call phase counts as an error."""
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        else:
            reason = "" if report.passed else str(report.longrepr).strip().splitlines()[-1][:500]
        entry = {"nodeid": report.nodeid, "outcome": outcome, "duration_s": round(report.duration, 3), "reason": reason}
        self.tests[report.nodeid] = entry

    def finish(self, root: Path) -> None:
        """Write DIR/report.json when asked to, and drop what was written on the way."""
        if folder := self.config.getoption("--report"):
            self._report = self._build(root)
            report_model.save(self._report, Path(folder) / "report.json")
        self._scratch.cleanup()

    def summary(self) -> list[str]:
        """Lines for the end of pytest's output."""
        return [self._report["verdict"]["sentence"]] if self._report else []

    def _build(self, root: Path) -> dict[str, Any]:
        checkpoints = [_checkpoint(row, nodeid) for row, nodeid in sorted(self.rows, key=_smallest_first)]
        name_nearest(checkpoints)
        compared = {nodeid for _, nodeid in self.rows}
        tests = [entry for nodeid, entry in self.tests.items() if nodeid not in compared]
        prepared: Models | None = self.__dict__.get("models")
        audit = report_model.weights_section(prepared.audit) if prepared else None
        parts = components(checkpoints, list(self.tests.values()), self._partial())
        verdict = report_model.verdict_of(
            checkpoints,
            tests,
            weights_audit=audit,
            components=parts,
            liveness=self.sections.get("liveness"),
            faults=self.sections.get("faults"),
            quality=self.sections.get("quality"),
        )
        return {
            "schema_version": report_model.SCHEMA_VERSION,
            "verdict": verdict,
            "provenance": self._provenance(root, prepared),
            "budget": {"ratio": BUDGET, "floor": FLOOR},
            "checkpoints": checkpoints,
            "tests": tests,
            "components": parts,
            "exceptions": EXCEPTIONS,
            "not_checked": NOT_CHECKED,
            "weights_audit": audit,
            **self.sections,
        }

    def _partial(self) -> bool:
        """Whether the command named files, tests or keywords, so that parts of the plan were left out on purpose."""
        option = self.config.option
        whole = [[], ["parity_tests"], ["parity_tests/"], ["."]]
        return option.file_or_dir not in whole or bool(option.keyword or option.deselect or option.lf)

    def _provenance(self, root: Path, prepared: Models | None) -> dict[str, Any]:
        head, dirty = regime.commit(root)
        option = self.config.getoption
        return {
            "commit": head,
            "dirty": dirty,
            "original": "FunAudioLLM/CosyVoice ace7c47",
            "weights": [asdict(file) for file in prepared.files] if prepared else [],
            "revision": prepared.revision if prepared else None,
            "versions": {**regime.versions(), **self.adapter.versions()},
            **regime.machine(),
            "precision": regime.precision(self.arithmetic),
            "fast_paths": regime.fast_paths() if option("--adapter") == "own" else None,
            "dtype": self.label,
            "seed": option("--seed"),
            "started": self.started.isoformat(timespec="seconds"),
            "duration_s": round(time.monotonic() - self._clock, 1),
            "command": self.command,
            "adapter": option("--adapter"),
        }


def _smallest_first(entry: tuple[Row, str]) -> int:
    """Single parts, the original's numbers, parts of the checkpoint, whole stages: the smallest wrong part first."""
    row, _ = entry
    if row.kind == "golden":
        return 1
    return 3 if row.kind == "chained" else 2 if row.case.startswith("walk.") else 0


def _checkpoint(row: Row, nodeid: str) -> dict[str, Any]:
    fields = row.to_dict()
    fields["message"] = fields["message"] or None
    fields["reason"] = fields["reason"] or None
    fields["reproduce"] = fields["reproduce"] or f"pytest '{nodeid}'"
    return report_model.checkpoint(test=nodeid, **fields)


def prepare_models(
    source: Path | None, folder: Path | None, scratch: Path, seed: int, precision: Precision = FLOAT32
) -> Models:
    """Load a checkpoint and its conversion, making whichever is not given below `scratch`, in `precision`."""
    if source is None:
        source = scratch / "checkpoint"
        synthesize(source, "tiny", seed)
    if folder is None:
        folder = scratch / "mlx"
        # The suite itself is the parity check here; the command runs its own before it lets a folder stand.
        judged = [{"checkpoint": "", "status": "PASS"}]
        convert_folder(Source(source, str(source)), folder, lambda *_: judged, precision=precision)
    return Models.load(source, folder)
