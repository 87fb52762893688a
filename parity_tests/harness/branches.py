"""Measure which lines and branches of `port/` the suite runs.

    python -m parity_tests.harness.branches [PYTEST ARGUMENT ...]

Runs the suite in this process under coverage.py and writes reports/out/coverage.json in the shape of the report's
section `coverage`; the next run of the suite puts it into its report if the code has not changed since.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "reports" / "out" / "coverage.json"


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
    os.environ["MLX_ENABLE_TF32"] = "0"  # before MLX is imported: see conftest.py
    import coverage
    import pytest

    os.chdir(ROOT)
    measure = coverage.Coverage(branch=True, source=["port"], data_file=None)
    with measure.collect():
        code = pytest.main(["parity_tests", "--quiet", *(sys.argv[1:] if arguments is None else arguments)])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "coverage.json"
        measure.json_report(outfile=str(path))
        found = section(json.loads(path.read_text("utf-8")))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['line_percent']} % of lines, {found['branch_percent']} % of branches of port/: {OUTPUT}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
