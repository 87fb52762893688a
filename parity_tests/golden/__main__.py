"""Replay the golden files (numbers made by running the original) on the reference, on the port, or on both.

    python -m parity_tests.golden DIR [--side reference|port|both] [--json FILE] [--only GLOB]

DIR holds NAME.safetensors: weights `w.*`, inputs `in.*`, the original's results `out.*` (float32) and `out64.*`
(float64). DIR/manifest.json or its own metadata describe a file, never its name: `upstream` (the class or function of
the original), `config` (its sizes) and `call` (arguments of the call). A file without these, or one that contradicts
the manifest, is an ERROR. judge.py says when a tensor passes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from mlx_parity.record import RecordError
from mlx_parity.sides.regime import NotFloat32, require_float32
from parity_tests.adapters.own import OwnPort
from parity_tests.golden.judge import judge_folder
from parity_tests.golden.replay import GoldenRow
from port.files.disk import beside


def main(argv: list[str] | None = None) -> int:
    what, _, more = __doc__.partition("\n")
    more = more.partition("[--only GLOB]")[2].strip()
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.golden",
        description=what,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of golden .safetensors files")
    parser.add_argument("--side", choices=["reference", "port", "both"], default="both")
    parser.add_argument("--only", metavar="GLOB", default="*", help="file names to run, e.g. 'hift_*'")
    parser.add_argument("--plain", action="store_true", help="the port without its fast forms")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    options = parser.parse_args(argv)
    sides: tuple[str, ...] = ("reference", "port") if options.side == "both" else (options.side,)
    OwnPort.usual = () if options.plain else None
    try:
        require_float32()
        rows = judge_folder(options.folder, sides, options.only)
        _print(rows)
        if options.json:
            with beside(options.json) as partial:
                partial.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    except (RecordError, NotFloat32, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    statuses = {row.status for row in rows}
    return 0 if "PASS" in statuses and statuses <= {"PASS", "SKIP"} else 1


def _print(rows: list[GoldenRow]) -> None:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2e}"

    for row in rows:
        line = f"{row.status:8} {row.side:9} {row.file:32} {row.tensor:26} {row.measure:8}"
        print(f"{line} {number(row.value):>9} {number(row.limit):>9} {row.note}".rstrip())
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(r.status for r in rows)}
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f" of {len(rows)} tensors")


if __name__ == "__main__":
    sys.exit(main())
