"""Measure the port against PyTorch and mlx-audio-plus: ratios within one run, never seconds across runs.

Each side runs in its own process with the same random weights, and waits while another side is timed; repeats
alternate between the sides. Before timing, the suite's rule judges every side's result at a small size, and a side with
a wrong result is not timed. OUT/benchmark.json is written after every case; --resume continues an interrupted run.

examples:
  python -m benchmarks.run                                   every case, tiny: does it work here? (a minute)
  python -m benchmarks.run --size full --against torch,mlx_audio_plus      real sizes (about 45 minutes on 2 cores)
  python -m benchmarks.run --size full --only 'flow.dit.*' --repeats 9     some cases, with more repeats
  python -m benchmarks.run --size full --only 'stream.*' --resume          continue an interrupted run
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import machine, report, targets
from benchmarks.cases import SIDES, Case, all_cases
from benchmarks.measure import Bench
from benchmarks.process import Settings
from mlx_parity.environment import CannotInstall, environment
from port.files.disk import beside

ROOT = Path(__file__).parents[1]
COMMAND = "python -m benchmarks.run"
SCHEMA = 1
FILE = "benchmark.json"
MATRIX = {"tiny": 256, "full": 2048}
# What must be equal before a row of an earlier run may be shown beside those of this one.
SAME = ("size", "seed", "checkpoint", "against", "dtype", "quantize", "threads", "repeats")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument(
        "--size", choices=("tiny", "full"), default="tiny", help="full: the sizes of the real model (default: tiny)"
    )
    made.add_argument(
        "--against",
        default="torch",
        metavar="SIDES",
        help="torch, mlx_audio_plus, both with a comma, or none\n(mlx-audio-plus goes into build/ at first use)",
    )
    made.add_argument("--only", default="*", metavar="GLOB", help="cases by name; --list shows them (default: all)")
    made.add_argument(
        "--repeats", type=_count, metavar="N", help="timed runs of each side (default: each case has its own)"
    )
    made.add_argument(
        "--dtype", default="", metavar="D,D", help="also the port in float16, bfloat16 (default: on a GPU both)"
    )
    made.add_argument(
        "--quantize", default="", metavar="B,B", help="also the port with 8, 4 bits (default: on a GPU both)"
    )
    made.add_argument(
        "--threads", type=_count, default=os.cpu_count() or 1, metavar="N", help="of every side (default: all)"
    )
    made.add_argument("--blas", metavar="PATH", help="OpenBLAS for MLX on Linux, or none (default: the system's)")
    made.add_argument(
        "--plus-python", metavar="PATH", help="interpreter with mlx-audio-plus 0.1.8 (default: see --against)"
    )
    made.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="official folder (default: random weights, no files)"
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights (default: 0)")
    made.add_argument("--timeout", type=_count, default=900, metavar="S", help="for one run of one side (default: 900)")
    made.add_argument(
        "--out",
        type=Path,
        default=ROOT / "reports" / "out" / "benchmark",
        metavar="DIR",
        help="folder to write to (default: reports/out/benchmark)",
    )
    made.add_argument("--resume", action="store_true", help=f"keep the cases that are already in OUT/{FILE}")
    made.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    made.add_argument("--list", action="store_true", help="name the cases and stop")
    return made


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit code 0 when every case ran and no result was wrong, 1 otherwise, 2 for a wrong argument."""
    words = sys.argv[1:] if argv is None else list(argv)
    options = parser().parse_args(words)
    try:
        dtypes, bits = _precisions(options)
        cases = [c for c in all_cases(options.size, dtypes, bits) if fnmatchcase(c.name, options.only)]
        if not cases:
            raise machine.BenchmarkError(f"--only {options.only!r}: no case has this name; --list shows all")
        if options.list:
            for case in cases:
                print(f"{case.name:18} {case.what}: {', '.join(v.name for v in case.variants)}")
            return 0
        if options.checkpoint and not options.checkpoint.is_dir():
            raise machine.BenchmarkError(f"--checkpoint {options.checkpoint}: no such folder")
        sides = _sides(options)
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="benchmark-") as logs:
            result = _measured(options, cases, sides, Path(logs), shlex.join(words))
    except (machine.BenchmarkError, OSError, subprocess.SubprocessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nbenchmarks: stopped; the same command with --resume continues after the cases in {options.out / FILE}"
        )
        return 130
    from benchmarks import plots

    page = report.markdown(result, plots.draw(result, options.out))
    (options.out / "benchmark.md").write_text(page, encoding="utf-8")
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(["", *report.text(report.target_rows(result["targets"]))]))
        print(f"\nreport: {options.out / 'benchmark.md'}")
    bad = [
        row for case in result["cases"] for row in case["variants"].values() if row["status"] in ("refused", "failed")
    ]
    return 1 if bad else 0


def _measured(
    options: argparse.Namespace, cases: list[Case], sides: list[str], logs: Path, words: str
) -> dict[str, Any]:
    """Measure the cases one by one; the file is complete after each."""
    settings = Settings(
        size=options.size,
        seed=options.seed,
        checkpoint=options.checkpoint and options.checkpoint.resolve(),
        threads=options.threads,
        blas=machine.find_blas(options.blas),
        plus_python=options.plus_python,
        logs=logs,
        timeout_s=options.timeout,
        matrix=MATRIX[options.size],
    )
    file, say = options.out / FILE, (lambda _: None) if options.json else tqdm.write
    bench = Bench(settings, sides)
    try:
        result = _header(options, bench, words)
        kept = _earlier(file, result) if options.resume else {}
        result["cases"] = [found for name, found in kept.items() if name not in {case.name for case in cases}]
        for line in _opening(result):
            say(line)
        with tqdm(cases, unit="case", disable=True if options.json else None) as progress:
            bench.tell = progress.set_postfix_str
            for case in progress:
                found = kept.get(case.name) or bench.measure(case, options.repeats)
                result["cases"].append(found)
                result["targets"] = [t.to_dict() for t in targets.judge({c["name"]: c for c in result["cases"]})]
                _write(file, result)
                for line in _lines(found, result["blas"]["meaningless"]):
                    say(line)
    finally:
        bench.close()
    return result


def _header(options: argparse.Namespace, bench: Bench, words: str) -> dict[str, Any]:
    from mlx_parity.sides import regime

    about = bench.about()
    for side in ("torch", "port"):
        if "error" in about[side]:
            raise machine.BenchmarkError(about[side]["error"])
    commit, changed = regime.commit(ROOT)
    return {
        "schema": SCHEMA,
        "command": f"{COMMAND} {words}".strip(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "uncommitted": changed,
        "machine": regime.machine() | {"cores": os.cpu_count(), "mlx_device": about["port"]["device"]},
        "versions": regime.versions(),
        "options": {name: str(value) if (value := getattr(options, name)) is not None else None for name in SAME},
        "blas": report.describe_blas(about, bench.settings.blas),
        "sides": about,
        "cases": [],
        "targets": [],
    }


def _opening(result: dict[str, Any]) -> list[str]:
    about = result["machine"]
    lines = [f"{about['machine']}, {about['os']}, {result['options']['threads']} threads, MLX on {about['mlx_device']}"]
    lines += [result["blas"]["sentence"]] if result["blas"]["sentence"] else []
    if about["mlx_device"] == "cpu" and not result["options"]["dtype"] + result["options"]["quantize"]:
        lines.append("Half precision and quantized weights are left out: MLX's CPU runs them 2 to 50 times slower.")
    return lines


def _lines(case: dict[str, Any], marked: bool) -> list[str]:
    head = f"\n{case['name']}: {case['what']}"
    notes = [f"  {note}" for note in report.notes(case)]
    return [head, *(f"  {line}" for line in report.text([report.HEADER, *report.table(case, marked)])), *notes]


def _earlier(file: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Cases of an earlier run of the same kind that have no failed row.

    Raises:
        BenchmarkError: the file is of another kind of run.
    """
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        different = [k for k in ("schema", "commit", "versions", "options") if found[k] != result[k]]
        cases = {case["name"]: case for case in found["cases"]}
    except (KeyError, TypeError, ValueError):
        raise machine.BenchmarkError(f"--resume: {file} is not readable; remove it") from None
    if different:
        raise machine.BenchmarkError(
            f"--resume: {file} is of another run ({', '.join(different)}); choose another --out"
        )
    return {n: c for n, c in cases.items() if all(row["status"] != "failed" for row in c["variants"].values())}


def _write(file: Path, result: dict[str, Any]) -> None:
    with beside(file) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _sides(options: argparse.Namespace) -> list[str]:
    """The sides to time, with mlx-audio-plus installed when it is one."""
    wanted = [name.strip() for name in options.against.split(",") if name.strip() not in ("", "none")]
    if unknown := [name for name in wanted if name not in SIDES]:
        raise machine.BenchmarkError(f"--against {unknown[0]}: not known; there are torch and mlx_audio_plus")
    if "mlx_audio_plus" in wanted and not options.plus_python:
        try:
            pins = ROOT / "parity_tests" / "adapters" / "mlx_audio_plus.requirements.txt"
            options.plus_python = str(environment(ROOT / "build" / "audit-mlx_audio_plus", pins))
        except CannotInstall as error:
            raise machine.BenchmarkError(str(error)) from None
    return [side for side in SIDES if side in wanted or side == "port"]


def _precisions(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[int, ...]]:
    dtypes = tuple(filter(None, options.dtype.split(",")))
    bits = tuple(filter(None, options.quantize.split(",")))
    for dtype in dtypes:
        if dtype not in ("float16", "bfloat16"):
            raise machine.BenchmarkError(f"--dtype {dtype}: float32 is always run; further ones are float16, bfloat16")
    if wrong := [b for b in bits if b not in ("4", "8")]:
        raise machine.BenchmarkError(f"--quantize {wrong[0]}: choose 4, 8 or 4,8")
    if machine.has_gpu():
        dtypes, bits = dtypes or ("float16", "bfloat16"), bits or ("8", "4")
    return dtypes, tuple(int(b) for b in bits)


if __name__ == "__main__":
    sys.exit(main())
