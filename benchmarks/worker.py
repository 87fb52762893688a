"""One side in its own process: `python -m benchmarks.worker SIDE ...`, one line of JSON in, one line out.

It loads its weights once and then answers requests; between two requests it waits for standard input and nothing
runs. Requests: `load`, `run`, `counts`, `square`, `about`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import BAKED, SIDES, VARIED
from benchmarks.inputs import make_inputs
from benchmarks.machine import blas_kernel, loaded_blas, peak_rss, reset_peak_rss
from benchmarks.weights import receive

MATRIX_RUNS = 5
MATRICES_READ = 16  # of the full size together more than any cache holds


class Worker:
    """The side, and the case that it prepared last.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.side = importlib.import_module(f"benchmarks.side_{options.side}").Side(options.threads)
        self.config: Any = None
        self.squares: dict[int, Callable[[], Any]] = {}

    def about(self) -> dict[str, Any]:
        """Versions, device and the BLAS that is loaded."""
        return {
            **self.side.about(),
            "python": sys.version.split()[0],
            "blas": loaded_blas(),
            "blas_kernel": blas_kernel(),
        }

    def load(self, part: str) -> dict[str, Any]:
        """Load one part, or change the loaded model."""
        if part in (BAKED, VARIED):
            getattr(self.side, part)()
            return {}
        given = self.options
        words = ["--size", given.size, "--seed", str(given.seed)]
        words += ["--checkpoint", str(given.checkpoint)] if given.checkpoint else []
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        self.config, state = receive([given.python, "-m", "benchmarks.weights", part, *words], environment)
        self.side.load(part, self.config, state)
        return {}

    def run(
        self,
        kind: str,
        size: dict[str, Any],
        options: dict[str, Any],
        repeats: int = 1,
        save: str | None = None,
        nudge: int = 0,
    ) -> dict[str, Any]:
        """Run a kind of case; seconds of each repeat, peaks of memory, and its outputs in the file `save`.

        `nudge` is a seed that moves each float input up or down by one ulp.
        """
        inputs = make_inputs(kind, size, self.config)
        if nudge:
            inputs = nudged(inputs, nudge)
        seconds, marks, outputs = [], None, {}
        for _ in range(repeats):
            job = self.side.prepare(kind, inputs, size, options)
            gc.collect()
            reset_peak_rss()
            self.side.reset_peak()
            start = time.perf_counter()
            outputs = job()
            seconds.append(time.perf_counter() - start)
            marks = outputs.pop("marks", None)
        found = {"seconds": seconds, "peak_bytes": self.side.peak(), "peak_rss_bytes": peak_rss(), "marks": marks}
        arrays = {name: self.side.to_numpy(value) for name, value in outputs.items()}
        found["finite"] = all(bool(np.isfinite(a).all()) for a in arrays.values())
        found["shapes"] = {name: list(a.shape) for name, a in arrays.items()}
        if save:
            np.savez(save, **arrays)
        return found

    def counts(self, kind: str, size: dict[str, Any], options: dict[str, Any]) -> dict[str, Any] | None:
        """Counts of the graph; None where there is none."""
        found = self.side.counts(kind, make_inputs(kind, size, self.config), size, options)
        return None if found is None else found.to_dict()

    def square(self, n: int) -> float:
        """FLOP/s of a matrix product of `n` by `n`, the best of a few."""
        return 2 * n**3 / fastest(self.squares.setdefault(n, self.side.square(n)))

    def sweep(self, n: int) -> float:
        """Bytes a second at which MATRICES_READ matrices of `n` by `n` are read and summed, the best of a few."""
        return 4 * MATRICES_READ * n * n / fastest(self.side.sweep(MATRICES_READ * n * n))


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few runs."""
    best = float("inf")
    for _ in range(MATRIX_RUNS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        if best > 1:
            break
    return best


def nudged(inputs: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The inputs with each float moved by one ulp."""
    rng = np.random.default_rng(seed)
    return {
        k: np.nextafter(v, rng.choice(np.array([-np.inf, np.inf], np.float32), v.shape)) if v.dtype == np.float32 else v
        for k, v in inputs.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Answer requests until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__.split(":")[0])
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", default=sys.executable, help="interpreter that makes the weights")
    options = parser.parse_args(argv)
    # Libraries that write to standard output must not corrupt the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or Worker(options)
            answer = {"result": getattr(worker, request.pop("do"))(**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
