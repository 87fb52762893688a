"""A speaker encoder as an ONNX file with what the original's onnxruntime made of it, on one side of this project.

NAME.onnx is read by the converter; NAME.safetensors holds for each length T `in.T` (1, T, f), `out.T` (1, E), the
embedding by onnxruntime 1.18 that the original pins, and perhaps `out132.T`, that of 1.32, which divides the last
segment by another number. The float64 reference is the truth once 1.18 agrees with it as well as a port would have to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.onnx_weights import read_speaker
from mlx_parity.adapter import Side
from mlx_parity.compare import BUDGET, Reading, compare
from mlx_parity.record import read_tensors
from mlx_parity.report.data import Status
from mlx_parity.sides.orders_pytorch import in_other_orders
from mlx_parity.sides.truth import Reference
from parity_tests.adapters.own import OwnPort
from parity_tests.golden.replay import GoldenRow
from parity_tests.parts import PARTS

PART = PARTS["frontend.speaker.CAMPPlus"]
Run = Callable[[np.ndarray], np.ndarray]
GROUPS = ("in", "out", "out132")


def judge_onnx(path: Path, side: str) -> list[GoldenRow]:
    """Every length of one pair, NAME.safetensors and NAME.onnx, on one side."""

    def error(tensor: str, note: object) -> GoldenRow:
        return GoldenRow(path.stem, tensor, side, "", None, None, "ERROR", " ".join(str(note).split()))

    try:
        groups = _read(path.with_suffix(".safetensors"))
        weights = read_speaker(path.with_suffix(".onnx"))
        sides = [Reference(), Reference(torch.float64), *[OwnPort()] * (side == "port")]
        single, double, *port = (partial(_embedding, s, s.build(PART, asdict(weights.config), weights)) for s in sides)
    except Exception as problem:
        return [error("", problem)]
    rows: list[GoldenRow] = []
    for length in sorted(groups["in"], key=lambda text: (len(text), text)):
        x, name = groups["in"][length], f"out.{length}"
        if length not in groups["out"]:
            rows.append(error(name, f"in.{length} has no out.{length}"))
            continue
        try:
            judge = _judge(single, double, x)
            original = judge(groups["out"][length])
            if side == "reference":
                rows.append(_row(path, name, side, original))
                rows += _not_the_other(path, length, groups, judge)
            elif original.status != "PASS":
                rows.append(error(name, f"no truth: onnxruntime 1.18 against the reference: {original.message}"))
            else:
                rows.append(_row(path, name, side, judge(port[0](x))))
        except Exception as problem:
            rows.append(error(name, problem))
    return rows or [error("", f"{path.with_suffix('.safetensors')} holds no in.T")]


def _embedding(side: Side, built: Any, x: np.ndarray) -> np.ndarray:
    return side.call(PART, built, {"x": x}, {})["embedding"]


def _judge(single: Run, double: Run, x: np.ndarray) -> Callable[[np.ndarray], Reading]:
    """What judges an embedding of `x`."""
    further = in_other_orders(lambda: single(x))
    r32, r64 = single(x), double(x)
    return lambda found: compare(found, r32, r64, further=further)


def _row(path: Path, name: str, side: str, reading: Reading) -> GoldenRow:
    return GoldenRow(path.stem, name, side, "ratio", reading.ratio, BUDGET, reading.status, reading.message, reading)


def _not_the_other(
    path: Path, length: str, groups: dict[str, dict[str, np.ndarray]], judge: Callable[[np.ndarray], Reading]
) -> list[GoldenRow]:
    """Where 1.32 gave another embedding than 1.18, the reference must not be near it."""
    other, about = groups["out132"].get(length), (path.stem, f"out132.{length}", "reference", "differs")
    if other is None or judge(other).status == "PASS" == judge(groups["out"][length]).status:
        return []
    reading = judge(other)
    status: Status = "PASS" if reading.status == "FAIL" else "FAIL" if reading.status == "PASS" else "ERROR"
    return [
        GoldenRow(*about, reading.ratio, BUDGET, status, "onnxruntime 1.32 divides the last segment by what it holds")
    ]


def _read(path: Path) -> dict[str, dict[str, np.ndarray]]:
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in GROUPS}
    for key, array in read_tensors(path).items():
        group, _, length = key.partition(".")
        if group not in groups or not length:
            raise ValueError(f"{path}: unknown tensor {key!r:.80}, expected {', '.join(f'{g}.T' for g in GROUPS)}")
        groups[group][length] = array
    for group in ("out", "out132"):
        if alone := sorted(groups[group].keys() - groups["in"].keys()):
            raise ValueError(f"{path}: {group}.{alone[0]} has no in.{alone[0]}")
    return groups
