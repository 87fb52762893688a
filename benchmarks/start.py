"""Where the time from the command line to the first sample goes: CPU seconds by part, of processes of their own.

The command runs as it is, with a watch around the functions that do the work, and ends at the first audio. One run
before the measured ones fills the page cache.

example:
  python -m benchmarks.start --repeats 5 say --model MLX --voice me --text 'Good morning.' --stream
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import BenchmarkError, find_blas, worker_environment
from benchmarks.report import seconds, text
from benchmarks.watch import PARTS

ROOT = Path(__file__).parents[1]


def measure(words: Sequence[str], repeats: int, threads: int, blas: str | None) -> list[dict[str, float]]:
    """CPU seconds by part of each run, and its wall time as `wall`; a first run is not counted.

    Raises:
        BenchmarkError: the command ends without audio.
    """
    environment = worker_environment(threads, blas)
    found = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        file = Path(folder) / "spent.json"
        command = [sys.executable, "-m", "benchmarks.watch", str(file), *words, "-o", f"{folder}/out.wav"]
        for _ in range(1 + repeats):
            begun = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            wall = time.perf_counter() - begun
            if not file.exists():
                raise BenchmarkError(f"no audio came: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
            found.append(json.loads(file.read_text("utf-8")) | {"wall": wall})
            file.unlink()
    return found[1:]


def table(runs: Sequence[dict[str, float]]) -> list[tuple[str, ...]]:
    """Part, median of its CPU seconds with their range, its share of the run (median of each run's), what it is."""
    rows: list[tuple[str, ...]] = [("part", "CPU", "range", "share", "")]
    for part, what in (PARTS | {"all": "CPU seconds together"}).items():
        spent = [sum(run[p] for p in PARTS) if part == "all" else run[part] for run in runs]
        share = statistics.median(s / sum(run[p] for p in PARTS) for s, run in zip(spent, runs, strict=True))
        span = f"{seconds(min(spent))} .. {seconds(max(spent))}"
        rows.append((part, seconds(statistics.median(spent)), span, f"{100 * share:.0f} %", what))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__, formatter_class=form)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measured runs (default: 5)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of MLX and its BLAS (default: 1)")
    parser.add_argument("--blas", metavar="PATH", help="OpenBLAS for MLX on Linux, or none (default: the system's)")
    parser.add_argument("--json", action="store_true", help="print the seconds of each run instead of the table")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="of python -m port, without -o")
    options = parser.parse_args(argv)
    try:
        runs = measure(options.words, options.repeats, options.threads, find_blas(options.blas))
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(runs))
    else:
        print("\n".join(text(table(runs))))
        print(f"wall time, beside what else ran: {seconds(statistics.median(run['wall'] for run in runs))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
