"""How often would a conforming port fail, on another machine or with other numbers?

    python -m parity_tests.alarms [--machines 20] [--seeds 5] [--only GLOB] [--json FILE]

This measures the suite's specificity, the fault catalogue its sensitivity. Each comparison runs on virtual machines
and for several seeds of weights and inputs. A virtual machine changes the order of sums on both sides, as another BLAS
or GPU would (mlx_parity/sides). No code is wrong, so a row over budget is a false alarm. Parts of a walk are judged
inside the whole; alone they are cases. `before` judges with one float32 run of the reference, `after` with several, as
the suite does.

Exit code 1 when a row is over budget by the suite's rule.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from mlx_parity.alarms import Alarms
from mlx_parity.compare import BUDGET, Reading
from mlx_parity.faults.patch import clear_caches
from mlx_parity.judge import compare_all
from mlx_parity.record import Recorded
from mlx_parity.sides import orders_mlx
from mlx_parity.sides.orders_pytorch import BLOCKS, FURTHER, Order
from mlx_parity.sides.regime import NotFloat32, require_float32
from mlx_parity.sides.truth import Reference, truth_of
from mlx_parity.sides.walk import Runs, compare, run_port, run_reference
from mlx_parity.spool import Spool
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.faults import PACKAGES
from parity_tests.golden.judge import EMBEDDED, judge_replays
from parity_tests.golden.replay import Replays
from parity_tests.models import prepare_models
from parity_tests.walks import walks
from port.config import CosyVoice3Config
from port.files.disk import beside

FIRST_MACHINE = 1000  # seeds below are the suite's own orders
Result = TypeVar("Result")
# One virtual machine: the port's result, the reference's, and the reference's in other orders.
Machine = tuple[Result, Result, list[Result]]


def machines(count: int, reference: Callable[[], Result], port: Callable[[], Result]) -> Iterator[Machine[Result]]:
    """Run both sides on `count` machines; the next machines, each of another kind, are the other orders of one."""
    singles, ports = [], []
    for seed in range(count):
        with Order(FIRST_MACHINE + seed):
            singles.append(reference())
        with orders_mlx.Order(seed, partial(clear_caches, PACKAGES)):
            ports.append(port())
    for seed in range(count):
        yield ports[seed], singles[seed], [singles[(seed + i) % count] for i in range(1, 1 + FURTHER)]


def _of_case(name: str, seed: int, count: int) -> Iterator[tuple[str, Reading, Reading]]:
    case = replace(next(case for case in all_cases() if case.name == name), seed=seed)
    truth, reference, port = truth_of(case), Reference(), OwnPort()
    arguments = (case.part, case.config, truth.state, truth.inputs, case.call)
    port.run(*arguments)  # fill the caches in the usual order
    found = machines(count, lambda: reference.run(*arguments), lambda: port.run(*arguments))
    for own, single, further in found:
        before = compare_all(own, single, truth.double, follow=case.part.follows)
        for output, after in compare_all(own, single, truth.double, further, truth.rounded, case.part.follows).items():
            yield f"{name}.{output}", before[output], after


def _of_walk(name: str, seed: int, count: int) -> Iterator[tuple[str, Reading, Reading]]:
    with tempfile.TemporaryDirectory() as scratch, Spool() as spool:
        models = prepare_models(None, None, Path(scratch), seed)
        plan = walks(models.config, seed)[name]
        double = run_reference(models.double, plan, torch.float64, spool)
        run_port(models.port, plan, spool)
        found = machines(
            count,
            lambda: run_reference(models.single, plan, torch.float32, spool),
            lambda: run_port(models.port, plan, spool),
        )
        for port, single, further in found:
            one, several = (
                compare(plan, spool, Runs(single, double, port, more), isolated=False) for more in ([], further)
            )
            for before, after in zip(one, several, strict=True):
                yield f"{after.name} ({after.kind})", before.reading, after.reading


def _of_golden(name: str, seed: int, count: int) -> Iterator[tuple[str, Reading, Reading]]:
    """A golden file on both sides; its weights and inputs are recorded, so seeds change nothing."""
    file = Recorded.read(EMBEDDED / f"{name.removeprefix('golden.')}.safetensors")
    plain = Replays(file)
    doubles = {"double": plain.double, "rounded": plain.rounded, "moved": plain.moved, "port": plain.port}
    found = machines(count, lambda: plain.run(Reference()), lambda: plain.run(OwnPort()))
    for port, single, further in found:
        rules = []
        for more in ([single], further):
            given = Replays(file)
            vars(given).update(doubles | {"port": port, "single": single, "further": more})
            rules.append(judge_replays(given, "reference", "port"))
        for before, after in zip(*rules, strict=True):
            readings = [row.reading or Reading(row.status, row.note) for row in (before, after)]
            if any(reading.ratio is not None or reading.status != "PASS" for reading in readings):
                yield f"{name}.{after.tensor} ({after.side})", readings[0], readings[1]


def _ratio(reading: Reading) -> float:
    if reading.ratio is None or reading.status not in ("PASS", "FAIL"):
        return 0.0 if reading.status in ("PASS", "SKIP") else math.inf
    return reading.ratio


def _measure(task: tuple[str, int, int]) -> dict[str, list[tuple[float, float]]]:
    """One case, walk or golden file with one seed on all machines: pairs of ratios, before and after, by row."""
    name, seed, count = task
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, float]]] = {}
    kind = {"walk": _of_walk, "golden": _of_golden}.get(name.partition(".")[0], _of_case)
    for row, before, after in kind(name, seed, count):
        found.setdefault(row, []).append((_ratio(before), _ratio(after)))
    return found


def measure(names: Sequence[str], seeds: int, count: int, jobs: int) -> dict[str, Alarms]:
    """Ratios of every row of these cases, walks and golden files on all seeds and machines, by `before` and `after`."""
    tasks = [
        (name, seed, count) for seed in range(seeds) for name in names if not (seed and name.startswith("golden."))
    ]
    pairs: dict[str, list[tuple[float, float]]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        results = pool.map(_measure, tasks)
        for found in tqdm(results, total=len(tasks), desc="alarms", unit="case", file=sys.stderr, disable=None):
            for row, more in found.items():
                pairs.setdefault(row, []).extend(more)
    rules = enumerate(("before", "after"))
    return {rule: Alarms({row: [pair[i] for pair in found] for row, found in pairs.items()}) for i, rule in rules}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.alarms",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m parity_tests.alarms --machines 8 --seeds 1 --only 'flow.attention*'",
    )
    parser.add_argument(
        "--machines", type=int, default=20, metavar="N", help=f"a multiple of {len(BLOCKS)}, 8 or more (default: 20)"
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of weights and inputs (default: 5)")
    parser.add_argument(
        "--only", default="*", metavar="GLOB", help="cases, walks, golden files: 'vocoder.*', 'walk.*' (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every ratio of every row")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: a core)"
    )
    options = parser.parse_args(argv)
    names = [case.name for case in all_cases()] + list(walks(CosyVoice3Config()))
    names += [f"golden.{path.stem}" for path in sorted(EMBEDDED.glob("*.safetensors"))]
    names = [name for name in names if fnmatchcase(name, options.only)]
    problem = None
    if options.machines < 2 * len(BLOCKS) or options.machines % len(BLOCKS):
        problem = f"--machines {options.machines}: a multiple of {len(BLOCKS)}, 8 or more, is needed"
    elif options.seeds < 1 or options.jobs < 1:
        problem = "--seeds and --jobs are 1 or more"
    elif not names:
        problem = f"no case, walk or golden file matches {options.only}"
    try:
        require_float32()
    except NotFloat32 as error:
        problem = str(error)
    if problem:
        print(f"alarms: {problem}", file=sys.stderr)
        return 2
    found = measure(names, options.seeds, options.machines, options.jobs)
    print("\n".join(f"{rule:7} {alarms.distribution}" for rule, alarms in found.items()), found["after"], sep="\n")
    if options.json:
        rows = [{"row": row} | {rule: found[rule].ratios[row] for rule in found} for row in found["after"].ratios]
        content: dict[str, Any] = {"machines": options.machines, "seeds": options.seeds, "budget": BUDGET}
        with beside(options.json) as partial:
            partial.write_text(json.dumps(content | {"rows": rows}), encoding="utf-8")
    return 1 if found["after"].alarms else 0


if __name__ == "__main__":
    sys.exit(main())
