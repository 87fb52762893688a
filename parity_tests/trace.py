"""Say where the two sides of one case first differ.

    python -m parity_tests.trace CASE [--adapter NAME] [--checkpoint DIR] [--mlx-path DIR]

CASE is an isolated case (`flow.attention`), numbers of the original (`golden.attention_nomask`), or a walk through the
model (`walk.flow.full`, see `walks.py`); `list` prints all names. Exit code 1 when a tensor is over budget.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from convert.quantize import Precision
from mlx_parity.adapter import AdapterError, show_tracebacks
from mlx_parity.judge import Row, judge
from mlx_parity.report.words import budget_unit, failure_sentence, heat_map, number_text, ratio_text
from mlx_parity.sides.regime import NotFloat32, require_float32
from mlx_parity.sides.walk import first_divergence, walk
from parity_tests.adapters import load_adapter
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.golden.judge import EMBEDDED, report_rows
from parity_tests.models import check_folders, prepare_models
from parity_tests.walks import walks
from port.app.device import DEVICES, use_device
from port.config import CosyVoice3Config


def main(argv: list[str] | None = None) -> int:
    """Command line: print every tensor of a case, and describe the first one over budget."""
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.trace",
        description="Run both sides of one case, compare every named part, and say where they first differ.",
        epilog="example: python -m parity_tests.trace walk.flow.full",
    )
    parser.add_argument("case", metavar="CASE", help="case, golden file or walk; 'list' prints all names")
    parser.add_argument(
        "--adapter", default="own", metavar="NAME", help="which port: a module of parity_tests/adapters (default: own)"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="official checkpoint (default: a tiny one)")
    parser.add_argument("--mlx-path", type=Path, metavar="DIR", help="its conversion (default: converted on the fly)")
    parser.add_argument("--seed", type=int, default=0, help="of the tiny checkpoint (default: 0)")
    dtypes = ["float32", "float16", "bfloat16"]
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="dtype of the port's weights")
    parser.add_argument("--plain", action="store_true", help="the port without its fast forms")
    parser.add_argument("--device", default="auto", choices=DEVICES, help="where MLX computes")
    parser.add_argument("--traceback", action="store_true", help="print where the port raised what it raised")
    options = parser.parse_args(argv)
    cases = {case.name: case for case in all_cases()}
    files = {f"golden.{path.stem}": path for path in sorted(EMBEDDED.glob("*.safetensors"))}
    planned = walks(CosyVoice3Config())
    if options.case == "list":
        print("\n".join([*cases, *files, *planned]))
        return 0
    OwnPort.usual = () if options.plain else None
    try:
        use_device(options.device)
        check_folders(options.checkpoint, options.mlx_path)
        require_float32()
    except (ValueError, NotFloat32) as error:
        return _say(str(error))
    if options.case in cases:
        try:
            adapter = load_adapter(options.adapter, options.dtype)
        except AdapterError as error:
            return _say(str(error))
        if options.traceback:
            show_tracebacks(adapter)
        rows = judge(cases[options.case], adapter)
    elif options.adapter != "own" and options.case in (*files, *planned):
        return _say(f"{options.case} runs this repository's port; other adapters run isolated cases")
    elif options.case in files:
        rows = report_rows(files[options.case])
    elif options.case in planned:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                precision = Precision(options.dtype)
                folders = options.checkpoint, options.mlx_path, Path(scratch)
                models = prepare_models(*folders, options.seed, precision)
            except (ValueError, OSError) as error:
                return _say(str(error))
            rows = walk(models, walks(models.config)[options.case])
    else:
        return _say(f"no case is named {options.case}; 'list' prints all names")
    for row in rows:
        ratio = "" if row.reading.ratio is None else f"{row.reading.ratio:9.3g}"
        print(f"{row.reading.status:8} {row.kind:9} {ratio:>9}  {row.name}")
    first = first_divergence(rows)
    if first is None:
        print(f"{len(rows)} tensors, none over budget")
        return 0
    print("first over budget:", *divergence(first, rows), sep="\n  ")
    return 1


def divergence(first: Row, rows: Sequence[Row]) -> list[str]:
    """Describe a tensor over budget in lines: which and how far, isolated and chained, where in the tensor."""
    twins = [row for row in rows if row.name == first.name]
    row = first.entry("trace", first.reproduce or "trace")
    lines = [failure_sentence(row)]
    lines += [f"{row.kind}: {ratio_text(row.reading.ratio)} ({row.reading.status})" for row in twins]
    if len(row.worst) > 1:
        lines.append("worst elements: index, port, float64, float32 reference")
        for at in row.worst:
            lines.append(f"  {list(at.index)}: {', '.join(map(number_text, (at.port, at.oracle, at.reference)))}")
    if row.error_map:
        lines += heat_map(row.error_map, budget_unit(row))
    return lines


def _say(problem: str) -> int:
    print(f"trace: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
