"""A speaker encoder as an ONNX file with what the original's onnxruntime made of it, on one side of this project.

NAME.onnx is read by the converter; NAME.safetensors holds for each length T `in.T` (1, T, f), `out.T` (1, E), the
embedding by onnxruntime 1.18 that the original pins, and perhaps `out132.T`, that of 1.32, which divides the last
segment by another number. The float64 reference is the truth once 1.18 agrees with it as well as a port would have to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from convert.mapping import convert
from convert.onnx_graph import OnnxWeights
from convert.onnx_weights import read_speaker
from mlx_parity.compare import BUDGET, Reading, compare
from mlx_parity.sides.orders_pytorch import in_other_orders
from parity_tests.harness.golden_file import GoldenRow, Side
from port.config import CosyVoice3Config
from port.frontend import speaker as port_speaker
from reference.frontend.speaker import CAMPPlus

GROUPS = ("in", "out", "out132")


def judge_onnx(path: Path, side: Side) -> list[GoldenRow]:
    """Every length of one pair, NAME.safetensors and NAME.onnx, on one side."""

    def error(tensor: str, note: object) -> GoldenRow:
        return GoldenRow(path.stem, tensor, side, "", None, None, "ERROR", " ".join(str(note).split()))

    try:
        groups = _read(path.with_suffix(".safetensors"))
        weights = read_speaker(path.with_suffix(".onnx"))
        single = _reference(weights)
        double = copy.deepcopy(single).double()
        port = _port(weights) if side == "port" else None
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
            if port is None:
                rows.append(_row(path, name, side, original))
                rows += _not_the_other(path, length, groups, judge)
            elif original.status != "PASS":
                rows.append(error(name, f"no truth: onnxruntime 1.18 against the reference: {original.message}"))
            else:
                rows.append(_row(path, name, side, judge(np.array(port(mx.array(x))))))
        except Exception as problem:
            rows.append(error(name, problem))
    return rows or [error("", f"{path.with_suffix('.safetensors')} holds no in.T")]


def _judge(single: CAMPPlus, double: CAMPPlus, x: np.ndarray) -> Callable[[np.ndarray], Reading]:
    """What judges an embedding of `x`."""

    def run(model: CAMPPlus, dtype: torch.dtype) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(x).to(dtype)).numpy()

    further = in_other_orders(lambda: run(single, torch.float32))
    r32, r64 = run(single, torch.float32), run(double, torch.float64)
    return lambda found: compare(found, r32, r64, further=further)


def _row(path: Path, name: str, side: Side, reading: Reading) -> GoldenRow:
    return GoldenRow(path.stem, name, side, "ratio", reading.ratio, BUDGET, reading.status, reading.message, reading)


def _not_the_other(
    path: Path, length: str, groups: dict[str, dict[str, np.ndarray]], judge: Callable[[np.ndarray], Reading]
) -> list[GoldenRow]:
    """Where 1.32 gave another embedding than 1.18, the reference must not be near it."""
    other, about = groups["out132"].get(length), (path.stem, f"out132.{length}", "reference", "differs")
    if other is None or judge(other).status == "PASS" == judge(groups["out"][length]).status:
        return []
    reading = judge(other)
    status = "PASS" if reading.status == "FAIL" else "FAIL" if reading.status == "PASS" else "ERROR"
    return [
        GoldenRow(*about, reading.ratio, BUDGET, status, "onnxruntime 1.32 divides the last segment by what it holds")
    ]


def _read(path: Path) -> dict[str, dict[str, np.ndarray]]:
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in GROUPS}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not readable ({error})") from None
    for key, array in tensors.items():
        group, _, length = key.partition(".")
        if group not in groups or not length:
            raise ValueError(f"{path}: unknown tensor {key!r:.80}, expected {', '.join(f'{g}.T' for g in GROUPS)}")
        groups[group][length] = array
    for group in ("out", "out132"):
        if alone := sorted(groups[group].keys() - groups["in"].keys()):
            raise ValueError(f"{path}: {group}.{alone[0]} has no in.{alone[0]}")
    return groups


def _reference(weights: OnnxWeights) -> CAMPPlus:
    model = CAMPPlus(weights.config).eval()
    model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.items()}, strict=True)
    return model


def _port(weights: OnnxWeights) -> port_speaker.CAMPPlus:
    carried = convert("speaker", weights, CosyVoice3Config(speaker=weights.config)).tensors
    model = port_speaker.CAMPPlus(weights.config)
    named = [(key.removeprefix("speaker."), mx.array(value)) for key, value in carried.items()]
    model.load_weights(named, strict=True)
    return model
