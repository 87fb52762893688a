"""A run of this suite extends a session of the judge: it provides the models and builds the report."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from convert.quantize import Found, Precision, precision_of
from mlx_parity import session
from mlx_parity.adapter import Adapter, AdapterError
from mlx_parity.faults.signatures import name_nearest
from mlx_parity.judge import Row
from mlx_parity.judge import reduced as lowered
from mlx_parity.report import data, sections
from mlx_parity.report.codec import plain, read
from mlx_parity.report.model import Report, save
from mlx_parity.report.plan import Plan
from mlx_parity.sides.liveness import summarised
from parity_tests.adapters import load_adapter
from parity_tests.adapters.own import OwnPort
from parity_tests.faults.score import known
from parity_tests.models import FolderError, Models, check_folders, prepare_models
from parity_tests.parts import PARTS, PLACES
from port.fast import chosen
from port.files.errors import Refused
from reports.cosyvoice3 import NOT_CHECKED, ORIGINAL, STAGES

PLAN = Plan.read(Path(__file__).with_name("plan.txt").read_text("utf-8"), elsewhere="tests/")
LESS_PRECISE = ("llm", "flow")  # stages that `--dtype` applies to
WITH_OPTIONS = ("pytest ", "python -m parity_tests.trace ")  # commands that take the options of a run


class Session(session.Session):
    """A run on a checkpoint of CosyVoice 3 and its conversion."""

    def __init__(self, config: pytest.Config, command: str) -> None:
        super().__init__(config, command)
        OwnPort.usual = () if config.getoption("--plain") else None

    def check_options(self) -> None:
        try:
            check_folders(self.config.getoption("--checkpoint"), self.config.getoption("--mlx-path"))
        except FolderError as error:
            raise pytest.UsageError(str(error)) from None

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

    def reduced(self, rows: Iterable[Row]) -> list[Row]:
        """Rows over budget as REDUCED where the port's weights are not float32.

        Single parts have the precision of `--dtype`, walks that of the converted folder.
        """
        dtype, found = self.config.getoption("--dtype"), []
        for row in rows:
            if row.case.startswith("walk."):
                found += lowered([row], self.precision.label, self.precision.stages)
            else:
                found += lowered([row], dtype, () if dtype == "float32" else LESS_PRECISE)
        return found

    def report(self, rows: Sequence[data.Row], tests: Sequence[data.Test]) -> Report:
        rows = sorted(rows, key=_smallest_first)
        modules = PLACES.describe((row.module for row in rows), self.adapter.place)
        compared = {row.test for row in rows}
        prepared = next(iter(self.gathered.entries("models")), None)
        faults = self.kept("faults", sections.Fault)
        audit = prepared and prepared["audit"]
        return Report(
            provenance=self._provenance(prepared),
            stages=STAGES,
            rows=name_nearest(rows, modules, STAGES, known()),
            tests=tuple(test for test in tests if test.nodeid not in compared),
            components=PLAN.components(rows, tests, self._partial()),
            modules=modules,
            not_checked=NOT_CHECKED,
            weights_audit=audit and read(sections.WeightsAudit, audit, "weights_audit"),
            audio=self.kept("audio", sections.Clip),
            quality=self.kept("quality", sections.Metric),
            faults=sections.Faults(faults) if faults else None,
            fault_catalogue=next(iter(self.kept("fault_catalogue", sections.Catalogue)), None),
            liveness=tuple(summarised(self.kept("liveness", sections.LivenessRow))),
        )

    def write(self, report: Report, folder: Path) -> None:
        """Write `report.json`; `reports.build` makes the pages from it."""
        save(report, folder / "report.json")

    def words(self, part: str) -> Iterable[str]:
        return PARTS[part].words if part in PARTS else ()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        reasons = {} if self.config.getoption("--full") else {"full": "real sizes: run with --full"}
        if self.label != "float32":
            reasons["float32"] = f"equal numbers need float32, this run is {self.label}: test_quality.py judges it"
        for item in items:
            for marker, reason in reasons.items():
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))

    def again(self, command: str) -> str:
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
        return self.provenance(
            self.adapter.versions(),
            original=ORIGINAL,
            weights=tuple(read(data.WeightFile, file, "weights") for file in prepared["weights"]),
            revision=prepared["revision"],
            fast_forms=(() if option("--plain") else tuple(chosen())) if option("--adapter") == "own" else None,
            dtype=self.label,
            seed=option("--seed"),
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
    """Sort key: single parts, golden files, parts inside walks, whole stages; the smallest wrong part comes first."""
    if row.kind == "golden":
        return 1
    return 3 if row.kind == "chained" else 2 if row.case.startswith("walk.") else 0
