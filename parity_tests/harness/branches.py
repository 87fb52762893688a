"""Run the suite and measure which lines and branches of `port/` it reaches; runs under a planted fault do not count.

    python -m parity_tests.harness.branches [PYTEST ARGUMENT ...]

With `--report DIR` the measurement becomes the section `coverage` of DIR/report.json. Exit code: pytest's; 2 with
workers, since their part would be missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def section(measured: dict[str, Any]) -> dict[str, Any]:
    """The report's section, from coverage.py's JSON (branches measured)."""
    files = [
        {
            "file": Path(name).as_posix(),
            **_percent(found["summary"]),
            "missing": ", ".join(map(str, found["missing_lines"])) or None,
        }
        for name, found in sorted(measured["files"].items())
        if found["summary"]["num_statements"]
    ]
    return {**_percent(measured["totals"]), "files": files}


def _percent(summary: dict[str, Any]) -> dict[str, float | None]:
    lines, branches = summary["num_statements"], summary["num_branches"]
    return {
        "line_percent": round(100 * summary["covered_lines"] / lines, 1),
        "branch_percent": round(100 * summary["covered_branches"] / branches, 1) if branches else None,
    }


def main(arguments: list[str] | None = None) -> int:
    import coverage
    import pytest

    from reports.model import load, save

    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--report", type=Path)
    parser.add_argument("-n", "--numprocesses")
    options, _ = parser.parse_known_args(arguments)
    if options.numprocesses not in (None, "0"):
        print("branches: what workers reach is not measured; leave out -n, or run pytest itself", file=sys.stderr)
        return 2
    folder = options.report
    os.chdir(ROOT)
    measure = coverage.Coverage(branch=True, source=["port"], data_file=None)
    with measure.collect():
        code = pytest.main(["parity_tests", "--quiet", *arguments])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(code)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "coverage.json"
        measure.json_report(outfile=str(path))
        found = section(json.loads(path.read_text("utf-8")))
    if folder and (folder / "report.json").is_file():
        save(load(folder / "report.json") | {"coverage": found}, folder / "report.json")
    print(f"reached {found['line_percent']} % of the lines and {found['branch_percent']} % of the branches of port/")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
