"""Two runs of the suite side by side: `python -m reports.drift BEFORE.json AFTER.json [--ledger F] [--json F]`.

Exit 0 without a regression, 1 with one or when a file cannot be read, 2 for a usage error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from mlx_parity.report.codec import ReportError, plain
from mlx_parity.report.drift import compare, enter, table
from mlx_parity.report.model import load, write_atomically


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reports.drift",
        description="Compare two runs of the suite: what broke, what was mended, which ratios moved.",
        epilog="example: python -m reports.drift monday/report.json tuesday/report.json",
    )
    parser.add_argument("before", type=Path, metavar="BEFORE.json", help="report.json of the older run")
    parser.add_argument("after", type=Path, metavar="AFTER.json", help="report.json of the newer run")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="JSON-lines file to enter both runs in, once each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison here as well")
    options = parser.parse_args(arguments)
    try:
        before, after = load(options.before), load(options.after)
        drift = compare(before, after)
        if options.json:
            write_atomically(options.json, json.dumps(plain(drift), indent=1, allow_nan=False) + "\n")
        if options.ledger:
            enter(options.ledger, (before, after))
    except (ReportError, OSError) as error:
        print(f"drift: {error}", file=sys.stderr)
        return 1
    # A reader that stops early, such as `head`, is no error.
    with contextlib.suppress(BrokenPipeError):
        print(table(drift), flush=True)
    return 1 if drift.regressions else 0


if __name__ == "__main__":
    sys.exit(main())
