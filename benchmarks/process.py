"""A worker seen from its parent: started with its environment and weights, given one request at a time."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.machine import worker_environment

ROOT = Path(__file__).parents[1]


class WorkerError(RuntimeError):
    """A worker refused a request, died or timed out; the message is one line."""


@dataclass
class Settings:
    """How to start workers.

    Args:
        size, seed, checkpoint: which weights.
        threads: of each worker.
        blas: preloaded by the workers that run MLX.
        plus_python: interpreter of the environment that mlx-audio-plus is installed in.
        logs: folder for the workers' output.
        timeout_s: for one request.
        matrix: width of the square matrices that measure the machine's limit.
    """

    size: str
    seed: int
    checkpoint: Path | None
    threads: int
    blas: str | None
    plus_python: str | None
    logs: Path
    timeout_s: float
    matrix: int


class WorkerProcess:
    """One worker, started with its parts.

    Raises:
        WorkerError: it does not start, or a part cannot be loaded.
    """

    def __init__(self, side: str, parts: Sequence[str], settings: Settings) -> None:
        self.side, self.settings = side, settings
        self.parts: tuple[str, ...] = ()
        python = (settings.plus_python if side == "mlx_audio_plus" else None) or sys.executable
        words = ["--size", settings.size, "--seed", str(settings.seed), "--threads", str(settings.threads)]
        words += ["--checkpoint", str(settings.checkpoint)] if settings.checkpoint else []
        environment = worker_environment(settings.threads, None if side == "torch" else settings.blas)
        self.log = settings.logs / f"{side}.log"
        command = [python, "-m", "benchmarks.worker", side, *words, "--python", sys.executable]
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
                )
        except OSError as error:
            raise WorkerError(f"{side}: {python} does not start ({error.strerror})") from None
        self.stdin, self.stdout = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        self.load(parts)

    def load(self, parts: Sequence[str]) -> None:
        """Load those of `parts` that are missing."""
        for part in parts:
            if part not in self.parts:
                self.ask("load", part=part)
                self.parts += (part,)

    def ask(self, do: str, **arguments: Any) -> Any:
        """One request.

        Raises:
            WorkerError: it refused the request, died or timed out.
        """
        try:
            self.stdin.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self.stdin.flush()
        except OSError:
            raise WorkerError(self._died()) from None
        ready, _, _ = select.select([self.stdout], [], [], self.settings.timeout_s)
        if not ready:
            self.close()
            raise WorkerError(f"{self.side}: no answer to {do} within {self.settings.timeout_s:g} s")
        line = self.stdout.readline()
        if not line:
            raise WorkerError(self._died())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.side}: {answer['error']}")
        return answer["result"]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # an unsent request to a process that died
            self.stdin.close()

    def _died(self) -> str:
        self.process.wait()
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{self.side}: the worker ended with {self.process.returncode}; {lines[-1] if lines else 'no message'}"
