"""Judge golden files, tensor by tensor.

The reference passes if its float64 run agrees with the original's to 1e-12 relative rms (the mathematics is the same)
and if the float32 errors of the two differ by no more than the ratio of compare.py. The truth is the original's
float64, or the reference's where the original has none. The port is judged by the same ratio.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

import numpy as np

from mlx_parity.case import Case
from mlx_parity.compare import BUDGET, FLOOR, Reading, agreement, compare
from mlx_parity.judge import Row
from mlx_parity.record import MANIFEST, Entry, Recorded, RecordError, differences, read_manifest
from mlx_parity.report.data import Status
from parity_tests.golden.functions import NOT_DOUBLE
from parity_tests.golden.onnx import read_pair
from parity_tests.golden.replay import GoldenRow, Replays, cases
from parity_tests.golden.table import OMITTED, named_by
from parity_tests.parts import PARTS, ROOT

DOUBLE_LIMIT = 1e-12
EMBEDDED = ROOT / "parity_tests" / "data" / "golden"


def judge_file(file: Recorded, *sides: str) -> list[GoldenRow]:
    """Every tensor of one file on each side."""
    if not file.out and not file.out64:
        return [_error(file.name, sides[0], "holds no out.* tensor: nothing to compare")]
    try:
        return judge_replays(Replays(file), *sides)
    except RecordError as error:
        return [_error(file.name, sides[0], str(error))]


def judge_replays(replays: Replays, *sides: str) -> list[GoldenRow]:
    """Every tensor of one file on each side, from the runs in `replays`."""
    file, part, rows = replays.file, replays.part, []
    names = dict.fromkeys([*file.out, *file.out64])
    for side in sides:
        try:
            for name in names:
                if reason := _omitted(part, name, side):
                    rows.append(GoldenRow(file.name, name, side, "", None, None, "SKIP", reason))
                else:
                    rows += Judge(replays, name).rows(side)
        except Exception as error:
            rows.append(_error(file.name, side, _line(error)))
    return rows


def judge_pair(path: Path, *sides: str) -> list[GoldenRow]:
    """Every length of an ONNX file against onnxruntime's embedding, see onnx.py."""
    try:
        files, others = read_pair(path)
    except Exception as error:
        return [_error(path.stem, sides[0], _line(error))]
    rows: list[GoldenRow] = []
    for length, file in files.items():
        replays = Replays(file)
        found = judge_replays(replays, *sides)
        rows += [replace(row, tensor=f"out.{length}") for row in found]
        if "reference" in sides and length in others and found[0].status != "ERROR":
            rows += _not_the_other(replays, others[length], f"out132.{length}", found[0].status == "PASS")
    return rows


def _not_the_other(replays: Replays, other: np.ndarray, name: str, passed: bool) -> list[GoldenRow]:
    """Where the embedding of 1.32 differs from that of 1.18, the reference must not agree with 1.32."""
    reading = Judge(replays, "embedding").compare(other, replays.single["embedding"])
    if passed and reading.status == "PASS":
        return []
    opposite: dict[str, Status] = {"FAIL": "PASS", "PASS": "FAIL"}
    status = opposite.get(reading.status, "ERROR")
    note = "onnxruntime 1.32 divides the last segment by what it holds"
    return [GoldenRow(replays.file.name, name, "reference", "differs", reading.ratio, BUDGET, status, note)]


def _line(error: Exception) -> str:
    kind = "" if isinstance(error, RecordError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())


def _error(file: str, side: str, note: str, tensor: str = "") -> GoldenRow:
    return GoldenRow(file, tensor, side, "", None, None, "ERROR", note)


def _omitted(part: str, name: str, side: str) -> str | None:
    reasons = OMITTED.get(part, {}).items()
    return next((why for like, (on, why) in reasons if on in ("both", side) and re.fullmatch(like, name)), None)


class Judge:
    """One tensor of a file: the original's, the reference's, and which of them is the truth."""

    def __init__(self, replays: Replays, name: str) -> None:
        self.replays, self.name, file = replays, name, replays.file
        self.out, self.out64 = file.out.get(name), file.out64.get(name)
        self.single, self.double = replays.single.get(name), replays.double.get(name)
        self.exact = self.out is not None and self.out.dtype.kind in "biu"
        self.truth = self.out if self.exact else self.double

    def rows(self, side: str) -> list[GoldenRow]:
        reference = self._reference()
        if side == "reference":
            return reference
        failed = next((row for row in reference if row.status != "PASS"), None)
        if failed is not None:
            note = f"no truth to judge by: the reference is not the original here ({failed.note or failed.measure})"
            return [self._row("port", "", status=failed.status, note=note)]
        port = self.replays.port.get(self.name)
        if port is None:
            return [self._row("port", "", status="ERROR", note="the port did not compute this tensor")]
        return [self._judged("port", "ratio", self.compare(port, self.out, self.single))]

    def _row(self, side: str, measure: str, **rest: object) -> GoldenRow:
        values = {"value": None, "limit": None} | rest
        return GoldenRow(self.replays.file.name, self.name, side, measure, **values)  # type: ignore[arg-type]

    def _judged(self, side: str, measure: str, reading: Reading, note: str = "") -> GoldenRow:
        measure, limit = ("equal", None) if reading.ratio is None else (measure, BUDGET)
        note = "; ".join(filter(None, (reading.message, note)))
        return self._row(
            side, measure, value=reading.ratio, limit=limit, status=reading.status, note=note, reading=reading
        )

    def compare(self, value: np.ndarray, *measures: np.ndarray | None) -> Reading:
        """Judge by the truth; e_ref is the largest of `measures`. After a failure sums in other orders count too."""
        first, *others = (measure for measure in measures if measure is not None)
        if not self.exact and self.truth.size and not self.truth.any():  # the time of the first step: exact or wrong
            same = value.shape == self.truth.shape and not value.any()
            return Reading("PASS" if same else "FAIL", "" if same else "the truth is zero everywhere, this is not")
        reading = compare(value, first, self.truth, allow_inf=True, further=others)
        if reading.status == "FAIL" and not self.exact:  # more runs can only raise e_ref: a pass needs none
            run, *runs = (run[self.name] for run in self.replays.further)
            rounded, others = self.replays.rounded[self.name], [*runs, first, *others]
            reading = compare(value, run, self.truth, allow_inf=True, further=others, rounded=rounded)
        return reading

    def _reference(self) -> list[GoldenRow]:
        """Rows of the reference; sets the truth."""
        if self.single is None or self.truth is None:
            return [self._row("reference", "", status="ERROR", note="the reference did not compute this tensor")]
        if self.exact:
            return [self._judged("reference", "equal", self.compare(self.single, self.out))]
        rows = []
        if self.out64 is not None:
            rows.append(self._float64())
            if agreement(self.double, self.out64) <= DOUBLE_LIMIT:
                self.truth = self.out64
        if self.out is not None:
            here, there = self.compare(self.single, self.out), self.compare(self.out, self.single)
            worse = max(here, there, key=lambda reading: (reading.status != "PASS", reading.ratio or 0.0))
            note = "the original's own float32" if worse is there and there.status != "PASS" else ""
            rows.insert(0, self._judged("reference", "float32", worse, note))
        return rows

    def _float64(self) -> GoldenRow:
        names, why = NOT_DOUBLE.get(self.replays.part, ((), ""))
        distance, limit, note = agreement(self.double, self.out64), DOUBLE_LIMIT, ""
        if not distance <= limit:
            if self.name in names:  # it is only a float32 run of the original
                return self._judged("reference", "ratio64", self.compare(self.out64, self.single), why)
            cost = agreement(self.replays.moved[self.name], self.double)
            limit = min(max(limit, BUDGET * cost), FLOOR)
            note = f"a rounding of the inputs in float64 moves it by {cost:.1e}"
        status = "PASS" if distance <= limit else "FAIL"
        return self._row("reference", "float64", value=distance, limit=limit, status=status, note=note)


def judge_folder(folder: Path, sides: Sequence[str], only: str = "*") -> list[GoldenRow]:
    """Every file of a folder and every entry of its manifest.

    Raises:
        RecordError: no folder, nothing in it that matches, or a manifest that cannot be read.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder} is no folder")
    manifest = read_manifest(folder)
    pairs = {path.with_suffix(".safetensors").name for path in folder.glob("*.onnx")}
    names = {path.name for path in folder.glob("*.safetensors")} | pairs | {*(manifest or ())}
    names = {name for name in names if fnmatchcase(Path(name).stem, only)}
    if not names:
        raise RecordError(f"{folder} holds no golden file that matches {only}")
    rows = []
    for name in sorted(names):
        rows += _judge_path(folder / name, manifest, sides)
    return rows


def _judge_path(path: Path, manifest: dict[str, Entry] | None, sides: Sequence[str]) -> list[GoldenRow]:
    entry, rows = (manifest or {}).get(path.name), []
    if not path.is_file() and not path.with_suffix(".onnx").is_file():
        return [_error(path.stem, sides[0], f"{MANIFEST} lists this file, the folder lacks it")]
    if manifest is not None and entry is None:
        rows.append(_error(path.stem, sides[0], f"{MANIFEST} does not list this file"))
    if path.with_suffix(".onnx").is_file():
        return rows + judge_pair(path, *sides)
    try:
        file = Recorded.read(path, entry)
        rows += [_error(path.stem, sides[0], what, name) for name, what in differences(path, entry or {})]
    except RecordError as error:
        return [*rows, _error(path.stem, sides[0], str(error))]
    return rows + judge_file(file, *sides)


def cases_of(path: Path) -> list[Case]:
    """An embedded file as cases: one for each call that reproduces it, none if it has a function in `FUNCTIONS`."""
    file = Recorded.read(path)
    return [case for case, _ in cases(file, Replays(file).part)]


def report_rows(path: Path) -> list[Row]:
    """The port on an embedded file, as rows of the report."""
    file = Recorded.read(path)
    module, folder = named_by(file.upstream) or file.name, path.parent.relative_to(ROOT)
    return [report_row(row, module, folder) for row in judge_file(file, "port")]


def report_row(row: GoldenRow, module: str, folder: Path) -> Row:
    """A row of the report; `folder` appears in the command that repeats it."""
    package = module.split(".")[0]
    stage = PARTS[module].stage if module in PARTS else {"model": "whole"}.get(package, package)
    reading = row.reading or Reading(row.status, row.note or numbers(row))
    words = ["python", "-m", "parity_tests.golden", str(folder), "--side", "port", "--only", escape(row.file)]
    return Row(f"golden.{row.file}.{row.tensor}", stage, "golden", module, row.file, reading, shlex.join(words))


def numbers(row: GoldenRow) -> str:
    """Value and limit of a row, or '' without a value."""
    return "" if row.value is None else f"{row.measure}: {row.value:.3g}, limit {row.limit:.3g}"
