"""Build the report pages from a run of the suite, for people and for GitHub.

    python -m reports.build RUN.json [--out DIR] [--against OLD.json | --last OLD.json] [--ledger FILE] [--annotations]

With `--card DIR`, write the model card of a converted folder instead, with the verdict of RUN.json if it is given.

Writes report.html (one file, no outside links), report.md, summary.md (for a GitHub step summary) and report.json.
Exit 0 when the verdict is PASS, 1 when it is not or when the file cannot be read, 2 for a usage error. With
`--compared DEVICE`, for runs that only inform, exit 0 when the run compared anything on that device.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from mlx_parity.report import drift
from mlx_parity.report.model import Report, ReportError, load
from mlx_parity.report.page import annotation_lines, write_pages
from reports.cosyvoice3 import WORDING

OUT = Path(__file__).with_name("out")


def _write_card(folder: Path, report: Report | None) -> int:
    from reports.card import Refused, card, write_card

    try:
        print(f"card: {write_card(folder, card(folder, report))}")
    except (Refused, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


def not_compared(report: Report, device: str) -> str | None:
    """Why a run compared nothing on a device (`cpu`, `gpu`); None if it did."""
    compared = sum(report.verdict.counts[status] for status in ("PASS", "FAIL", "REDUCED"))
    if not compared:
        return "nothing was compared"
    ran_on = report.provenance.device
    return None if ran_on.startswith(f"Device({device}") else f"{compared} tensors were compared on {ran_on}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reports.build",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m reports.build report.json --against earlier/report.json",
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN.json", help="report.json that the suite wrote")
    parser.add_argument("--card", type=Path, metavar="DIR", help="write the model card of a converted folder instead")
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="folder to write to (default: reports/out)"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--against", type=Path, metavar="OLD.json", help="report.json of an earlier run: adds what changed since"
    )
    earlier.add_argument("--last", type=Path, metavar="OLD.json", help="the same, if that file is there and readable")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="JSON-lines file to enter the run in, once")
    parser.add_argument("--annotations", action="store_true", help="print failures as GitHub annotations too")
    parser.add_argument("--compared", choices=["cpu", "gpu"], help="succeed when anything was compared there")
    options = parser.parse_args(arguments)
    if options.run is None and options.card is None:
        parser.error("give the suite's JSON file, or --card with a converted folder")
    try:
        if options.card:
            return _write_card(options.card, load(options.run) if options.run else None)
        report, before = load(options.run), _earlier(options)
        shown = replace(report, drift=drift.compare(before, report)) if before else report
        paths = write_pages(shown, options.out, WORDING)
        if options.ledger:
            drift.enter(options.ledger, [report])
    except (ReportError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    if options.annotations:
        print("\n".join(annotation_lines(report, WORDING)))
    print(f"report: {paths['report.html']}")
    print(report.verdict.sentence)
    if report.fault_catalogue and not report.fault_catalogue.fresh:
        print(f"note: the recorded score of faults is of other code; {WORDING.catalogue} makes it anew")
    if options.compared:
        if problem := not_compared(report, options.compared):
            print(f"build: {options.run}: {problem}", file=sys.stderr)
        return 1 if problem else 0
    return 0 if report.verdict.status == "PASS" else 1


def _earlier(options: argparse.Namespace) -> Report | None:
    """The report to compare with: `--against` must be readable, `--last` may be missing or damaged."""
    if options.against:
        return load(options.against)
    if options.last is None or not options.last.is_file():
        return None
    try:
        return load(options.last)
    except ReportError as error:
        print(f"build: compared with no earlier run: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
