"""Isolated cases as files, to judge a port that cannot be called from Python (Swift, C++).

    python -m parity_tests.record CASE... --out DIR      write cases (globs allowed) to DIR
    python -m parity_tests.record --list                 print all names
    python -m parity_tests.record --judge DIR RESULTS    judge a port's results

DIR gets one CASE.safetensors for each case, laid out like the golden files (mlx_parity/record.py), weights under their
official names, and manifest.json. The port writes RESULTS/CASE.safetensors with one tensor for each output, named as
in the case (`y`, `wav`). Exit 0 when all is written or everything passes, 1 when something does not, 2 for a wrong
argument.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

import torch

from mlx_parity.case import Case
from mlx_parity.compare import BUDGET
from mlx_parity.judge import Row
from mlx_parity.record import Recorded, RecordError, judge_results, write
from mlx_parity.report.words import ratio_text
from mlx_parity.sides.truth import reference_state, run_reference
from parity_tests.cases import all_cases
from parity_tests.parts import PARTS

COMMAND = ("python", "-m", "parity_tests.record")
ORIGINAL = "FunAudioLLM/CosyVoice ace7c47, by the reference of this repository, which is proved equal to it"


def with_truth(case: Case) -> Recorded:
    """A case with its weights, its inputs and the reference's results."""
    state, inputs, part = reference_state(case), case.draw(), case.part
    arguments = (part, case.config, state, inputs, case.call)
    single, double = (run_reference(*arguments, dtype) for dtype in (torch.float32, torch.float64))
    about = {"stage": part.stage, "module": part.path, "weights_at": part.at}
    path = Path(f"{case.name}.safetensors")
    return Recorded(path, part.name, case.config, case.call, state, inputs, single, double, about)


def judged(folder: Path, results: Path, only: str = "*") -> list[Row]:
    """Judge a port's results on recorded cases; raises as `judge_results` does."""

    def again(name: str) -> str:
        return shlex.join([*COMMAND, "--judge", str(folder), str(results), "--only", escape(name)])

    return judge_results(folder, results, only, {path: part.follows for path, part in PARTS.items()}, again)


def lines(rows: Sequence[Row]) -> list[str]:
    """The table with one line per tensor, then the first failure and the count."""
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
        prog=" ".join(COMMAND), description="Write isolated cases as files, or judge results."
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
            folder, results = options.judge
            rows = judged(folder, results, options.only)
            print("\n".join(lines(rows)))
            return 0 if all(row.reading.status == "PASS" for row in rows) else 1
        elif options.cases and options.out:
            torch.set_num_threads(1)
            count = write(map(with_truth, select(known, options.cases)), options.out, ORIGINAL)
            print(f"{count} cases in {options.out}")
        else:
            raise RecordError("give cases and --out DIR, or --judge DIR RESULTS, or --list")
    except (RecordError, OSError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
