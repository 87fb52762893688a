"""Audit a port: `python -m parity_tests.audit NAME [--report DIR] [--only GLOB] [--dtype D]`.

Runs every isolated case and the extra ones through the adapter NAME, and writes a report. If
`NAME.requirements.txt` exists beside the adapter, the port is installed from it, without dependencies, into a separate
environment below `build/`, which takes all other packages from this one.
Exit 0 when everything that the port offers conforms, 1 when something diverges, 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_parity.adapter import Adapter, AdapterError, show_tracebacks
from mlx_parity.environment import CannotInstall, environment
from parity_tests.adapters import adapter_names, load_adapter

if TYPE_CHECKING:
    from mlx_parity.report.model import Report

ROOT = Path(__file__).parents[1]
COMMAND = "python -m parity_tests.audit"


def requirements(name: str) -> Path | None:
    """The pinned packages of an adapter's port, if it needs any."""
    path = Path(__file__).parent / "adapters" / f"{name}.requirements.txt"
    return path if path.exists() else None


def judge_all(adapter: Adapter, only: str = "*") -> list[Any]:
    """Rows of every case whose name matches `only`, in the order of the pipeline.

    Raises:
        AdapterError: there is no such case.
    """
    from mlx_parity.judge import judge
    from parity_tests.adapters.extra import extra_cases, noise_rows
    from parity_tests.cases import all_cases

    rows = [row for row in noise_rows(adapter) if fnmatchcase(row.case, only)]
    for case in [*all_cases(), *extra_cases()]:
        if fnmatchcase(case.name, only):
            rows += judge(case, adapter)
    if not rows:
        raise AdapterError(f"--only {only!r}: no case has such a name; python -m parity_tests.trace list names them")
    return rows


def audit(adapter: Adapter, module: str, only: str = "*", dtype: str = "float32") -> Report:
    """The report of one port.

    Args:
        adapter: the port.
        module: the adapter's module name, for commands and findings.
        only: glob of case names.
        dtype: of the port's weights; below float32, rows over budget are only reported (REDUCED).
    """
    from parity_tests.adapters.audit_report import report
    from parity_tests.adapters.findings import load_findings

    clock, started = time.monotonic(), datetime.now(UTC)
    rows = judge_all(adapter, only)
    options = ["--only", only] * (only != "*") + ["--dtype", dtype] * (dtype != "float32")
    about = {
        "command": f"{COMMAND} {shlex.join([module, *options])}",
        "started": started.isoformat(timespec="seconds"),
        "duration_s": round(time.monotonic() - clock, 1),
        "dtype": dtype,
    }
    return report(rows, adapter, module, load_findings(module), about)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Judge a port of CosyVoice 3 part by part and write a report; docs/adapters.md says how to add one",
        epilog=f"example: {COMMAND} mlx_audio_plus --only 'flow.*'",
    )
    parser.add_argument("name", metavar="NAME", help=f"adapter: {', '.join(adapter_names())}")
    parser.add_argument("--report", type=Path, metavar="DIR", help="where to write (default: reports/out/audit-NAME)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases to run, such as 'vocoder.*' (default: all)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float16", "bfloat16"),
        help="of the port's weights; below float32 the rows judge nothing (default: %(default)s)",
    )
    parser.add_argument("--traceback", action="store_true", help="print where the port raised what it raised")
    parser.add_argument("--here", action="store_true", help="use the port that is installed in this environment")
    options = parser.parse_args(argv)
    folder = options.report or ROOT / "reports" / "out" / f"audit-{options.name}"
    try:
        if options.name not in adapter_names():
            raise AdapterError(f"no adapter is named {options.name}; there are {', '.join(adapter_names())}")
        pins = requirements(options.name)
        if pins and not options.here:
            python = environment(ROOT / "build" / f"audit-{options.name}", pins)
            words = [options.name, "--report", str(folder.resolve()), "--only", options.only, "--dtype", options.dtype]
            words += ["--traceback"] * options.traceback
            command = [str(python), "-m", "parity_tests.audit", *words, "--here"]
            return subprocess.run(command, cwd=ROOT, check=False).returncode
        return _run_here(options, folder)
    except (AdapterError, CannotInstall) as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2


def _run_here(options: argparse.Namespace, folder: Path) -> int:
    import torch

    from mlx_parity.report.codec import ReportError
    from mlx_parity.report.page import write_pages
    from mlx_parity.sides.regime import NotFloat32, require_float32
    from parity_tests.adapters.audit_report import lines
    from reports.cosyvoice3 import WORDING

    torch.set_num_threads(1)  # tiny tensors
    try:
        require_float32()
    except NotFloat32 as error:
        raise AdapterError(str(error)) from None
    adapter = load_adapter(options.name, options.dtype)
    if options.traceback:
        show_tracebacks(adapter)
    found = audit(adapter, options.name, options.only, options.dtype)
    try:
        paths = write_pages(found, folder, WORDING)
    except ReportError as error:
        raise AdapterError(f"the report contradicts itself: {error}") from None
    except OSError as error:
        raise AdapterError(f"--report: {error.filename or folder}: {error.strerror}; give a folder") from None
    print("\n".join(lines(found)))
    print(f"report: {paths['report.html']}")
    return 0 if found.verdict.status == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main())
