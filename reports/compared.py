"""Whether a run compared anything: `python -m reports.compared RUN.json [--device cpu|gpu]`.

For jobs that report without being a gate: exit 0 whatever the verdict says, 1 when nothing was compared or the device
was another one, 2 for a usage error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.model import ReportError, load

JUDGED = ("PASS", "FAIL", "REDUCED")


def complaint(report: dict[str, Any], device: str | None = None) -> str | None:
    """Why this run is no comparison, or None when it is one."""
    compared = sum(report["verdict"]["counts"][status] for status in JUDGED)
    if not compared:
        return "nothing was compared"
    ran_on = report["provenance"]["device"]
    if device and not ran_on.startswith(f"Device({device}"):
        return f"{compared} checkpoints were compared on {ran_on}, not on the {device}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.compared", description=__doc__.partition("\n")[0])
    parser.add_argument("report", type=Path, metavar="RUN.json", help="written by pytest parity_tests --report DIR")
    parser.add_argument("--device", choices=["cpu", "gpu"], help="where it must have run")
    options = parser.parse_args(arguments)
    try:
        report = load(options.report)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if found := complaint(report, options.device):
        print(f"error: {options.report}: {found}", file=sys.stderr)
        return 1
    print(report["verdict"]["sentence"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
