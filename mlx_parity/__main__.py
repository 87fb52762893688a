"""The judge as a command: `python -m mlx_parity run SUBJECT.py --out DIR`."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from mlx_parity.environment import CannotInstall, environment
from mlx_parity.report.codec import printing
from mlx_parity.subject import SubjectError, load_subject

COMMAND = "python -m mlx_parity"
FLAGS = ("faults", "as-shipped", "declared", "annotations")
MOST_JOBS = 64
BUILD = Path("build")  # below the current folder; environments are cached there


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Judge MLX ports against their PyTorch originals")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="judge a subject and write the results",
        description="Judge a subject, a program that defines subject(seed). Packages that PROGRAM.requirements.txt "
        "beside it pins are installed into a separate environment below build/. Exit 0 when everything conforms, "
        "1 when something diverges, 2 when it cannot run.",
        epilog=f"example: {COMMAND} run examples/ports/qwen2_mlx_lm.py --out results --faults",
    )
    parser.epilog = run.epilog
    run.add_argument(
        "subject", type=Path, nargs="+", metavar="SUBJECT.py", help="programs; each result in DIR/NAME if several"
    )
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the results")
    run.add_argument("--seed", type=int, default=0, help="weights and inputs follow from it (default: %(default)s)")
    run.add_argument("--only", default="*", metavar="GLOB", help="parts to run (default: all)")
    run.add_argument("--faults", action="store_true", help="measure how many generic faults the comparison sees")
    run.add_argument(
        "--as-shipped", action="store_true", help="judge it again without MLX_ENABLE_TF32=0, as users run it"
    )
    run.add_argument("--declared", action="store_true", help="exit 0 when exactly the known findings diverge")
    run.add_argument("--annotations", action="store_true", help="print GitHub's ::error lines for divergences")
    run.add_argument(
        "--jobs", type=_jobs, default=1, metavar="N", help="programs that run at once (default: %(default)s)"
    )
    run.add_argument("--here", action="store_true", help="use the packages that are installed in this environment")
    options = parser.parse_args(argv)
    several = len(options.subject) > 1

    def end(program: Path) -> tuple[int, str]:
        out = options.out / program.stem if several else options.out
        try:
            return _run(program, out, options, apart=several)
        except (SubjectError, CannotInstall, OSError, ValueError) as error:
            said = f"{program.stem}: {_line(error)}"
            print(f"run: {said}", file=sys.stderr)
            return 2, said

    with ThreadPoolExecutor(options.jobs) as at_once:
        ends = [*at_once.map(end, options.subject)]
    if several:
        print("\n".join(end for _, end in ends))
    return max(code for code, _ in ends)


def _run(program: Path, out: Path, options: argparse.Namespace, apart: bool) -> tuple[int, str]:
    """Judge one program, in its own environment if it has one; returns the exit code and the last line."""
    if not program.is_file() or program.suffix != ".py":
        raise SubjectError(f"{program}: is not a Python program; name a file that ends in .py")
    pins = program.with_suffix(".requirements.txt")
    own = pins.is_file() and not options.here
    if not own and not apart:
        return _run_here(program, out, options)
    python = environment(BUILD / f"parity-{program.stem}", pins) if own else Path(sys.executable)
    words = ["run", str(program), "--out", str(out), "--seed", str(options.seed), "--only", options.only, "--here"]
    words += [f"--{name}" for name in FLAGS if getattr(options, name.replace("-", "_"))]
    command = [str(python), "-m", "mlx_parity", *words]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            last = line.rstrip() or last
            print(line, end="", flush=True)
    if process.returncode < 0:
        return 2, f"{program.stem}: ended by signal {-process.returncode}"
    return process.returncode, last or f"{program.stem}: exit {process.returncode}"


def _run_here(program: Path, out: Path, options: argparse.Namespace) -> tuple[int, str]:
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # MLX reads it when it is imported
    from mlx_parity.report.page import annotation_lines
    from mlx_parity.report.words import Wording
    from mlx_parity.results import About, verdict, write_results
    from mlx_parity.run import judge
    from mlx_parity.shipped import as_shipped

    clock, started = time.monotonic(), datetime.now(UTC)
    outcome = judge(load_subject(program), options.seed, options.only, options.faults)
    words = ["run", str(program), "--out", str(out), "--seed", str(options.seed), *["--faults"] * options.faults]
    command = f"{COMMAND} {shlex.join(words)}"
    about = About(program, command, options.seed, started.isoformat(timespec="seconds"), time.monotonic() - clock)
    shipped = as_shipped(program, options.seed, options.only) if options.as_shipped else None
    report = write_results(outcome, about, out, shipped)
    for name, judged in outcome.parts.items():
        print(f"{printing(name)}: {judged.comparison.verdict()}")
    said = printing(verdict(outcome)) + ("; as declared" if options.declared and outcome.as_declared else "")
    fine = outcome.as_declared if options.declared else outcome.conforms
    if options.annotations and not fine:
        print("\n".join(annotation_lines(report, Wording(outcome.subject.name))))
    if shipped:
        print(f"as shipped: {shipped.status}, MLX computes in {shipped.regime}")
    print(f"results: {out}")
    print(said)
    return int(not fine), said


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_JOBS:
        raise argparse.ArgumentTypeError(f"{printing(text)}: needs a whole number from 1 to {MOST_JOBS}")
    return int(text)


def _line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or '--out'}: {error.strerror}; give another place"
    return printing(str(error))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread of the frameworks can abort the interpreter's usual end
