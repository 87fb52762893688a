"""Weights of real size for every worker, without a file: a separate process makes them and writes them to a pipe.

`python -m benchmarks.weights PART --size full --seed 0` writes the configuration and the tensors of one official file;
`receive` reads them. MLX workers thus never import torch, and all workers hold the same numbers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from port.config import CosyVoice3Config

ROOT = Path(__file__).parents[1]
State = dict[str, np.ndarray]


def receive(command: Sequence[str], environment: dict[str, str]) -> tuple[CosyVoice3Config, State]:
    """Run a sender and read its output: the configuration, and tensors under their official names.

    Raises:
        RuntimeError: the sender failed; its last line says why.
    """
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        state: State = {}
        out, problems = (cast(BufferedReader, stream) for stream in (process.stdout, process.stderr))
        first = out.readline()
        while line := out.readline():
            key, shape = json.loads(line)
            state[key] = np.empty(shape, "<f4")
            out.readinto(state[key].data.cast("B"))
        problem = problems.read().decode(errors="replace").strip()
    if process.returncode or not first:
        raise RuntimeError(f"weights: {problem.splitlines()[-1] if problem else 'no weights came'}")
    return CosyVoice3Config.from_dict(json.loads(first)), state


def send(part: str, options: argparse.Namespace, out: IO[bytes]) -> None:
    """Write the configuration as a line of JSON; then for each tensor a line with name and shape, and its values."""
    config, state = _official(part, options)
    out.write(json.dumps(config.to_dict()).encode() + b"\n")
    for key, value in state.items():
        if key.endswith("lm_head.weight"):
            continue  # tied to the embedding
        array = np.ascontiguousarray(value, "<f4")
        out.write(json.dumps([key, value.shape]).encode() + b"\n")
        out.write(array.data.cast("B"))
    out.flush()


def _official(part: str, options: argparse.Namespace) -> tuple[CosyVoice3Config, Any]:
    if options.checkpoint:
        from convert.official import load_config
        from convert.parts import PARTS

        (file,) = (row for row in PARTS if row.name == part)
        held = file.read(options.checkpoint / file.file)
        return load_config(options.checkpoint), {key: np.asarray(held[key]) for key in held}
    from reference.synthesize import state_dict, tiny_config

    config = tiny_config() if options.size == "tiny" else CosyVoice3Config()
    return config, {key: value.numpy() for key, value in state_dict(part, config, options.seed).items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description="Write one part's weights.")
    parser.add_argument("part", choices=("llm", "flow", "hift"))
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    send(options.part, options, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
