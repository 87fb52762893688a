"""Run the suite and measure which lines and branches of `port/` it reaches; runs under a planted fault do not count.

    python -m parity_tests.coverage [PYTEST ARGUMENT ...]

With `--report DIR` the measurement becomes the section `coverage` of DIR/report.json. Exit code: pytest's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_parity.report.sections import Coverage, CoveredFile

ROOT = Path(__file__).parents[1]


def section(measured: dict[str, Any]) -> Coverage:
    """The report's section, from coverage.py's JSON (branches measured)."""
    files = tuple(
        CoveredFile(
            Path(name).as_posix(),
            **_percent(found["summary"]),
            missing=", ".join(map(str, found["missing_lines"])) or None,
        )
        for name, found in sorted(measured["files"].items())
        if found["summary"]["num_statements"]
    )
    return Coverage(**_percent(measured["totals"]), files=files)


def _percent(summary: dict[str, Any]) -> dict[str, float | None]:
    lines, branches = summary["num_statements"], summary["num_branches"]
    return {
        "line_percent": round(100 * summary["covered_lines"] / lines, 1),
        "branch_percent": round(100 * summary["covered_branches"] / branches, 1) if branches else None,
    }


def main(arguments: list[str] | None = None) -> int:
    import pytest

    from mlx_parity.report.model import load, save

    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--report", type=Path)
    folder = parser.parse_known_args(arguments)[0].report
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "coverage.json"
        os.environ["COVERAGE_FILE"] = str(Path(scratch) / "data")
        measure = ["--cov=port", "--cov-branch", f"--cov-report=json:{path}"]
        code = pytest.main(["parity_tests", "tests", "--quiet", *measure, *arguments])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not path.is_file():
            return int(code)
        found = section(json.loads(path.read_text("utf-8")))
    if folder and (folder / "report.json").is_file():
        save(replace(load(folder / "report.json"), coverage=found), folder / "report.json")
    print(f"reached {found.line_percent} % of the lines and {found.branch_percent} % of the branches of port/")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
