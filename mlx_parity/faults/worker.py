"""Run work in separate processes: a fault that breaks, hangs or crashes something ends with its process.

If possible a worker is a fork, which starts with the imports and truths of this process. MLX computes in threads, which
a fork does not inherit: this process must not have evaluated anything. Otherwise a worker is a new interpreter.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mlx_parity.faults.patch import FaultError

Say = Callable[[Any], None]  # announces the check that begins; restarts the time limit


@dataclass
class Outcome:
    """The outcome of one piece of work.

    Attributes:
        result: its return value; None if it did not return.
        said: what it announced.
        seconds: of wall clock.
        endless: a check exceeded the time limit.
        crashed: the process ended by itself.
        problem: why there is no result; "" if there is one.
    """

    result: Any = None
    said: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    endless: bool = False
    crashed: bool = False
    problem: str = ""

    @property
    def killed(self) -> bool:
        """It ended in the middle of a check."""
        return self.endless or self.crashed


@dataclass(frozen=True)
class Workers:
    """Several processes at a time.

    Args:
        jobs: how many.
        limit: seconds that may pass between two calls of `say`; a process that takes longer is killed.
        folder: for temporary files; MLX stores compiled kernels there, and the next process reuses them.
    """

    jobs: int
    limit: float
    folder: Path

    def run(self, work: Callable[[Any, Say], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Outcome]]:
        """Run `work(item, say)` for each item, each in a process of its own; gives each outcome as it is known."""
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        left = deque(items)
        running: dict[Any, _Worker] = {}
        free = [self.folder / str(n) for n in range(self.jobs)]
        try:
            while left or running:
                while left and free:
                    worker = _Worker(context, work, left.popleft(), free.pop(), self.limit)
                    running[worker.pipe] = worker
                soonest = min(worker.until for worker in running.values())
                ready = wait(list(running), max(0.0, soonest - time.monotonic()))
                for worker in list(running.values()):
                    if worker.goes_on(worker.pipe in ready):
                        continue
                    del running[worker.pipe]
                    free.append(worker.folder)
                    yield worker.item, worker.outcome
        finally:
            for worker in running.values():
                worker.kill()


class _Worker:
    """One process, and what is known of it."""

    def __init__(self, context: Any, work: Callable[[Any, Say], Any], item: Any, folder: Path, limit: float) -> None:
        self.item, self.folder, self.limit, self.outcome = item, folder, limit, Outcome()
        self.begun = time.monotonic()
        self.until = self.begun + limit
        self.pipe, other = context.Pipe(duplex=False)
        self.process = context.Process(target=_begin, args=(work, item, other, folder))
        self.process.start()
        other.close()

    def goes_on(self, ready: bool) -> bool:
        """Take what the process sent; whether it still runs. One that took too long is killed."""
        kind, value = "", (None, "")
        try:
            while ready and kind != "end" and self.pipe.poll():
                kind, value = self.pipe.recv()
                if kind == "said":
                    self.outcome.said.append(value)
                    self.until = time.monotonic() + self.limit
        except (EOFError, OSError):
            self.outcome.crashed, kind, value = True, "end", (None, "the process ended by itself")
        if kind != "end":
            if time.monotonic() < self.until:
                return True
            self.outcome.endless, value = True, (None, f"no end within {self.limit:g} s")
        self.outcome.result, self.outcome.problem = value
        self.outcome.seconds = time.monotonic() - self.begun
        self.kill()
        return False

    def kill(self) -> None:
        """End the process and all that it started. What it left half written is of no use to the next."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.join()
        self.pipe.close()
        if self.outcome.problem:
            shutil.rmtree(self.folder, ignore_errors=True)


def _begin(work: Callable[[Any, Say], Any], item: Any, pipe: Connection, folder: Path) -> None:
    os.setpgid(0, 0)
    gc.freeze()  # the collector neither scans nor copies what a fork has from its parent
    # MLX keeps compiled kernels here and writes them in place: no two processes may share it at a time.
    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    try:
        sent = work(item, lambda check: pipe.send(("said", check))), ""
    except BaseException as error:  # a fault may raise anything
        sent = None, str(error) if isinstance(error, FaultError) else f"{type(error).__name__}: {error}"
    pipe.send(("end", sent))
