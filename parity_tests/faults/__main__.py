"""Plant every fault of the catalogue in the port, one at a time, and see whether the suite notices.

    python -m parity_tests.faults [--only NAME ...] [--json FILE] [--signatures FILE]
    python -m parity_tests.faults --patch FILE.patch ...

A fault is caught if some check of the suite fails with it and passes without it. The isolated cases of its stage run
first, then the tests marked with parts near its own, smallest parts first, up to the first failure. The part named by
this failure must be the fault's own part; one that merely contains it counts as wrong.

`make record` runs all and records score and signatures in parity_tests/data, for the report. A patch is applied to a
copy of the checkout, and the suite runs there.

examples:
  python -m parity_tests.faults --only guidance_rate_off_by_a_thousandth
  python -m parity_tests.faults --patch change.patch
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from mlx_parity.faults.patch import Fault, FaultError
from mlx_parity.faults.signatures import Signature
from mlx_parity.faults.table import read_tables
from mlx_parity.faults.verdict import LIMIT, Verdict, examine, summary
from mlx_parity.faults.worker import Workers
from mlx_parity.report.model import write_atomically
from parity_tests.faults import TABLES
from parity_tests.faults.checks import Checks
from parity_tests.faults.parts import part_of
from parity_tests.faults.patches import judge_patches
from parity_tests.faults.score import caught_by, record, record_signatures


def selected(faults: Sequence[Fault], names: Sequence[str]) -> list[Fault]:
    """Faults of the given names, families or parts, else with the given text in their name; all if none is given.

    Raises:
        FaultError: a name that selects nothing.
    """
    wanted: set[str] = set()
    for name in names:
        found = [f.name for f in faults if name in (f.name, f.family, f.part)] or [
            f.name for f in faults if name in f.name
        ]
        if not found:
            raise FaultError(f"no fault is named {name}")
        wanted |= set(found)
    return [fault for fault in faults if not names or fault.name in wanted]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 only if every fault is caught and no equivalent one is; 2 for a usage error."""
    options = _parser().parse_args(argv)
    if options.jobs < 1 or options.limit <= 0:
        return _refused("--jobs and --limit must be positive")
    try:
        if options.patch:
            return judge_patches(options.patch, options.limit)
        return _judge_tables(options)
    except FaultError as error:
        return _refused(str(error))


def _judge_tables(options: argparse.Namespace) -> int:
    faults = selected(read_tables(options.table or TABLES, part_of), options.only)
    torch.set_num_threads(1)
    started, verdicts, suite = datetime.now(UTC), [], Checks(bool(options.signatures), caught_by=caught_by())
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        workers = Workers(options.jobs, options.limit, Path(folder))
        suite.prepare(faults, workers)
        for verdict in examine(faults, suite, workers, partial(print, file=sys.stderr, flush=True)):
            verdicts.append(verdict)
            print(verdict, flush=True)
    print(f"{summary(verdicts)}; {(datetime.now(UTC) - started).total_seconds():.0f} s")
    order = {fault.name: at for at, fault in enumerate(faults)}
    verdicts.sort(key=lambda verdict: order[verdict.fault.name])
    if options.json:
        write_atomically(options.json, record(verdicts, started))
    if options.signatures:
        write_atomically(options.signatures, record_signatures(_signatures(verdicts)))
    return 0 if all(verdict.as_wanted for verdict in verdicts) else 1


def _signatures(verdicts: Sequence[Verdict]) -> dict[str, tuple[str, Signature]]:
    return {v.fault.name: (v.fault.family, v.signature) for v in verdicts if v.caught and v.signature}


def _refused(message: str) -> int:
    print(f"faults: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    text, _, examples = (__doc__ or "").partition("examples:")
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.faults",
        description=text.splitlines()[0],
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="faults of a name, family or part, or with it in the name",
    )
    add("--table", action="append", type=Path, metavar="FILE", help="read this table instead of the catalogue")
    add("--patch", action="append", type=Path, metavar="FILE", help="judge a patch of the checkout; may be repeated")
    add("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)")
    add("--limit", type=float, default=LIMIT, metavar="S", help="seconds that one check may take")
    add("--json", type=Path, metavar="FILE", help="record the score, for the report")
    add(
        "--signatures",
        type=Path,
        metavar="FILE",
        help="record how wrong each isolated case is under each fault as well",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
