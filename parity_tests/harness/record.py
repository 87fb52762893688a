"""Isolated cases as files, to judge a port that cannot be called from Python (Swift, C++).

    python -m parity_tests.harness.record CASE... --out DIR      write cases (globs allowed) to DIR
    python -m parity_tests.harness.record --list                 print all names
    python -m parity_tests.harness.record --judge DIR RESULTS    judge what a port made of them

DIR gets one CASE.safetensors for each case, laid out like the golden files: `w.*` weights under their official names,
`in.*` inputs, `out.*` and `out64.*` the reference's results in float32 and float64; and manifest.json, which describes
them. The port writes RESULTS/CASE.safetensors with one tensor for each output, named as in the manifest (`y`, `wav`).
Exit 0 when all is written or everything passes, 1 when something does not, 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlx_parity.case import Case
from mlx_parity.compare import BUDGET, FLOOR, Reading
from mlx_parity.judge import Row, compare_all
from mlx_parity.report.words import ratio_text
from mlx_parity.sides.truth import Arrays, reference_state, run_reference
from parity_tests.cases import all_cases
from parity_tests.parts import PARTS
from port.files.disk import beside

ORIGINAL = "FunAudioLLM/CosyVoice ace7c47"
NOTE = "reference of this repository, proved equal to the original; see docs/adapters.md"
MANIFEST = "manifest.json"


class RecordError(ValueError):
    """Files that cannot be written or judged; the message is one line."""


def record(cases: Sequence[Case], folder: Path) -> list[dict[str, Any]]:
    """Write cases and their manifest, each file beside its place first; returns the manifest's entries."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_record_one(case, folder) for case in cases]
    manifest = {
        "upstream": ORIGINAL,
        "rule": {"ratio": BUDGET, "floor": FLOOR},
        "torch": torch.__version__,
        "cases": entries,
    }
    _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return entries


def _record_one(case: Case, folder: Path) -> dict[str, Any]:
    state, inputs = reference_state(case), case.draw()
    arguments = (case.part, case.config, state, inputs, case.call)
    single, double = (run_reference(*arguments, dtype) for dtype in (torch.float32, torch.float64))
    groups = {"w": state, "in": inputs, "out": single, "out64": double}
    tensors = {f"{group}.{name}": _plain(value) for group, values in groups.items() for name, value in values.items()}
    place = folder / f"{case.name}.safetensors"
    about = {
        "config": json.dumps(dict(case.config)),
        "call": json.dumps(dict(case.call)),
        "upstream": ORIGINAL,
        "note": NOTE,
        "target": case.part.path,
    }
    with beside(place) as partial:
        save_file(tensors, partial, metadata=about)
    return {
        "case": case.name,
        "file": place.name,
        "sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
        "stage": case.part.stage,
        "module": case.part.path,
        "weights_at": case.part.at,
        "config": dict(case.config),
        "call": dict(case.call),
        "weights": {k: list(v.shape) for k, v in state.items()},
        "inputs": {k: {"shape": list(v.shape), "dtype": str(v.dtype)} for k, v in inputs.items()},
        "outputs": {k: {"shape": list(v.shape), "dtype": str(v.dtype)} for k, v in single.items()},
    }


def judge_results(folder: Path, results: Path, only: str = "*") -> list[Row]:
    """Rows for every output of every recorded case; what a port did not write is an ERROR.

    Args:
        folder: written by `record`.
        results: the port's files.
        only: glob of case names.

    Raises:
        RecordError: `folder` is no folder of recorded cases, or `only` matches none of them.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text("utf-8"))["cases"]
        wanted = [e for e in entries if fnmatchcase(e["case"], only)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{folder}: no recorded cases ({type(error).__name__}: {error}); write some first") from None
    if not wanted:
        raise RecordError(f"{folder}: no recorded case matches {only}")
    if folder.resolve() == results.resolve():
        raise RecordError(f"{results}: is the folder of recorded cases, not of a port's results")
    return [row for entry in wanted for row in _judge_one(entry, folder, results)]


def _judge_one(entry: Mapping[str, Any], folder: Path, results: Path) -> list[Row]:
    path = folder / entry["file"]
    truth = _read(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise RecordError(f"{path}: is not the file that the manifest describes; record it again")
    groups: dict[str, Arrays] = {"out": {}, "out64": {}}
    for key, value in truth.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = value
    found = results / entry["file"]
    try:
        port = _read(found)
    except RecordError as error:
        readings = {output: Reading("ERROR", str(error)) for output in groups["out"]}
    else:
        follow = PARTS[entry["module"]].follows
        readings = compare_all(port, groups["out"], groups["out64"], follow=follow)
    words = ["--judge", str(folder), str(results), "--only", escape(entry["case"])]
    command = shlex.join(["python", "-m", "parity_tests.harness.record", *words])
    about = ("isolated", entry["module"], entry["case"])
    return [Row(f"{entry['case']}.{k}", entry["stage"], *about, reading, command) for k, reading in readings.items()]


def _read(path: Path) -> Arrays:
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except (OSError, SafetensorError, TypeError) as error:
        raise RecordError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def _plain(value: np.ndarray) -> np.ndarray:
    """Masks as uint8, since many readers of safetensors know no bool."""
    return np.ascontiguousarray(value.astype(np.uint8) if value.dtype == bool else value).reshape(value.shape)


def _write(path: Path, data: bytes) -> None:
    with beside(path) as partial:
        partial.write_bytes(data)


def lines(rows: Sequence[Row]) -> list[str]:
    """The table, one line a tensor, the first failure and the count."""
    table = [
        f"{r.reading.status:8} {'' if r.reading.ratio is None else ratio_text(r.reading.ratio):>9}  {r.name}"
        + (f"  {r.reading.message}" if r.reading.message else "")
        for r in rows
    ]
    broken = [r for r in rows if r.reading.status != "PASS"]
    if broken:
        table.append(f"first that does not pass: {broken[0].name} ({broken[0].module})")
    return [*table, f"{len(rows) - len(broken)} of {len(rows)} tensors within {BUDGET:g}x of the reference's own error"]


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases that any of the globs names, in their own order.

    Raises:
        RecordError: a glob names none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise RecordError(f"no case is named {pattern}; --list prints all names")
    return [case for case in cases if any(fnmatchcase(case.name, p) for p in patterns)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    from parity_tests.adapters.extra import extra_cases

    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.harness.record", description="Write isolated cases as files, or judge results."
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names or globs, e.g. 'vocoder.*'")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--list", action="store_true", help="print all names")
    parser.add_argument("--judge", nargs=2, type=Path, metavar=("DIR", "RESULTS"), help="judge a port's files")
    parser.add_argument("--only", default="*", metavar="GLOB", help="with --judge: cases to judge")
    options = parser.parse_args(argv)
    known = [*all_cases(), *extra_cases()]
    try:
        if options.list:
            print("\n".join(case.name for case in known))
        elif options.judge:
            rows = judge_results(*options.judge, options.only)
            print("\n".join(lines(rows)))
            return 0 if all(row.reading.status == "PASS" for row in rows) else 1
        elif options.cases and options.out:
            torch.set_num_threads(1)
            entries = record(select(known, options.cases), options.out)
            print(f"{len(entries)} cases in {options.out}")
        else:
            raise RecordError("give cases and --out DIR, or --judge DIR RESULTS, or --list")
    except (RecordError, OSError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
