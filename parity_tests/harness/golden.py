"""Replay the golden files (numbers made by running the original) on the reference, on the port, or on both.

    python -m parity_tests.harness.golden DIR [--side reference|port|both] [--json FILE] [--only GLOB]

DIR may also hold NAME.onnx with NAME.safetensors: see golden_onnx.py.

The reference passes when its float64 run agrees with the original's float64 numbers to 1e-12 relative rms (that proves
the mathematics) and its float32 run is within twice the distance of the original's float32 numbers from the truth: two
runs that are equally exact, on machines that add in another order, are no further apart. The port passes by the ratio
of compare.py. A file that no line of golden_table.py knows is an ERROR.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.official import dit_config, flow_config, vocoder_config
from parity_tests.adapters.own import OwnPort
from parity_tests.harness import golden_special
from parity_tests.harness.capture import Recorder
from parity_tests.harness.compare import BUDGET, FLOOR, Reading, agreement, compare
from parity_tests.harness.golden_file import GoldenFile, Side
from parity_tests.harness.golden_onnx import judge_onnx
from parity_tests.harness.golden_table import SPECIAL, Golden, Run, Tap, find
from parity_tests.harness.oracle import to_numpy, to_torch
from parity_tests.harness.targets import TARGETS
from port.config import DiTConfig, FlowConfig, VocoderConfig

DOUBLE_LIMIT = 1e-12
CONFIGS = {DiTConfig: dit_config, FlowConfig: flow_config, VocoderConfig: vocoder_config}
NOT_ARGUMENTS = ("rope", "context", "eval")  # of `call`: descriptions, not arguments
CONTEXT_FRAMES = VocoderConfig.f0_look_right  # only the pitch sees them when the generator does not finalize


@dataclass(frozen=True)
class GoldenRow:
    """One line of the table: a tensor of a file on one side."""

    file: str
    tensor: str
    side: Side
    measure: str
    value: float | None
    limit: float | None
    status: str
    note: str = ""
    reading: Reading | None = None


def replay(file: GoldenFile, golden: Golden, side: Side, dtype: torch.dtype = torch.float32) -> dict[str, np.ndarray]:
    """The file's tensors as one side computes them, in the reference's layout."""
    found: dict[str, np.ndarray] = {}
    for run in golden.runs:
        wanted = {k: v for k, v in run.outputs.items() if k in file.out}
        if wanted:
            found |= _replay_run(file, golden, run, wanted, side, dtype)
    return found


def _replay_run(
    file: GoldenFile,
    golden: Golden,
    run: Run,
    wanted: Mapping[str, str | Tap],
    side: Side,
    dtype: torch.dtype,
) -> dict[str, np.ndarray]:
    target = TARGETS[run.target]
    translate = CONFIGS.get(target.config)
    config = {golden.rename_config.get(k, k): v for k, v in file.config.items() if k not in golden.drop_config}
    config = asdict(translate(config)) if translate else config
    call = {k: v for k, v in file.call.items() if k not in NOT_ARGUMENTS} | dict(run.call)
    if not isinstance(target.resolve(side)[0], type):
        call |= config
    inputs = _inputs(file, run, call)
    port = OwnPort()
    if side == "port":
        built = port.build(target, config, file.weights)
        with Recorder("port", built) as recorder:
            results = port.call(target, built, inputs, call)
    else:
        built = target.build("reference", config)
        if isinstance(built, torch.nn.Module):
            built.load_state_dict({k: torch.from_numpy(v) for k, v in file.weights.items()}, strict=True)
            built.to(dtype).eval()
        tensors = {k: to_torch(v, dtype) for k, v in inputs.items()}
        with torch.inference_mode(), Recorder("reference", built) as recorder:
            results = {k: to_numpy(v) for k, v in target.call("reference", built, {**tensors, **call}).items()}
    return {k: _tap(v, recorder, results, side) if isinstance(v, Tap) else results[v] for k, v in wanted.items()}


def _inputs(file: GoldenFile, run: Run, call: Mapping[str, Any]) -> dict[str, np.ndarray]:
    values = {**file.inputs, **{f"out.{k}": v for k, v in file.out.items()}}
    inputs = {argument: values[name] for name, argument in run.inputs.items() if name in values}
    if "mask" in inputs and inputs["mask"].dtype == np.uint8:
        inputs["mask"] = inputs["mask"].astype(bool)
    if run.target.endswith("CausalMaskedDiffWithDiT.inference") and "prompt_token" not in inputs:
        inputs["prompt_token"] = np.zeros((1, 0), np.int32)
        inputs["prompt_feat"] = np.zeros((1, 0, file.config["output_size"]), np.float32)
    if "out.s" in run.inputs and not call["finalize"]:
        inputs["x"] = inputs["x"][:, :, :-CONTEXT_FRAMES]
    return inputs


def _tap(tap: Tap, recorder: Recorder, results: Mapping[str, np.ndarray], side: Side) -> np.ndarray:
    calls = recorder.of(tap.path, tap.name)
    target = TARGETS[tap.path]
    values = [{**c.arguments, **c.results}[tap.tensor] for c in calls]
    if side == "port":
        change = {**target.to_port, **target.from_port}.get(tap.tensor, np.asarray)
        values = [change(v) for v in values]
    if not tap.every:
        return np.asarray(values[tap.index])[:, :: tap.step]
    if tap.then:
        values.append(results[tap.then])
    return np.stack([np.squeeze(v, 0) if np.ndim(v) == 3 else v for v in values])


def judge_file(file: GoldenFile, side: Side) -> list[GoldenRow]:
    """Every tensor of one file on one side."""
    golden = find(file.name)
    special = any(fnmatchcase(file.name, glob) for glob in SPECIAL)
    if golden is None and not special:
        return [GoldenRow(file.name, "", side, "", None, None, "ERROR", "no line of golden_table.py knows this file")]
    try:
        if golden is not None:
            found, omitted, double = [], golden.omitted, golden.double
            for dtype in (torch.float32, torch.float64):
                found.append(replay(file, golden, "reference", dtype))
            port = replay(file, golden, "port") if side == "port" else {}
        else:
            replayed = golden_special.replay(file, side)
            found, port = [replayed.single, replayed.double], replayed.port
            omitted, double = replayed.omitted, replayed.exceptions
    except Exception as error:
        return [GoldenRow(file.name, "", side, "", None, None, "ERROR", f"{type(error).__name__}: {error}")]
    rows = []
    for name in file.out:
        if name in omitted:
            rows.append(GoldenRow(file.name, name, side, "", None, None, "SKIP", omitted[name]))
        elif side == "reference":
            rows += _judge_reference(file, name, found[0].get(name), found[1].get(name), double.get(name))
        else:
            rows.append(_judge_port(file, name, port.get(name), found[0].get(name), found[1].get(name)))
    return rows


def _judge_reference(
    file: GoldenFile, name: str, single: np.ndarray | None, double: np.ndarray | None, exception: str | None
) -> list[GoldenRow]:
    out, out64 = file.out[name], file.out64.get(name)
    about = (file.name, name, "reference")
    if single is None or double is None:
        return [GoldenRow(*about, "", None, None, "ERROR", "the reference did not compute this tensor")]
    if out.dtype.kind in "biu":
        same = single.shape == out.shape and np.array_equal(single.astype(np.int64), out.astype(np.int64))
        return [GoldenRow(*about, "equal", None, None, "PASS" if same else "FAIL")]
    # Where the original's float64 number was not recorded, the reference's two precisions tell how exact float32 is.
    e_ref = max(agreement(single, double) if out64 is None else agreement(out, out64), FLOOR)
    distance = agreement(single, out)
    rows = [GoldenRow(*about, "float32", distance, 2 * e_ref, "PASS" if distance <= 2 * e_ref else "FAIL")]
    if out64 is not None:
        distance = agreement(double, out64)
        limit = DOUBLE_LIMIT if exception is None else e_ref
        status = "PASS" if distance <= limit else "FAIL"
        rows.append(GoldenRow(*about, "float64", distance, limit, status, exception or ""))
    return rows


def _judge_port(
    file: GoldenFile, name: str, port: np.ndarray | None, single: np.ndarray | None, double: np.ndarray | None
) -> GoldenRow:
    out = file.out[name]
    if port is None or single is None or double is None:
        return GoldenRow(file.name, name, "port", "", None, None, "ERROR", "a side did not compute this tensor")
    truth = out if out.dtype.kind in "biu" else file.out64.get(name)
    if truth is None:
        # The original's float64 number was not recorded: its float32 one is the truth, held to the float32 error that
        # the reference's two precisions show.
        truth, out = out.astype(np.float64), out + (single - double)
    if not truth.any() and port.shape == truth.shape:  # such as the time of the first step: exact or wrong
        return GoldenRow(file.name, name, "port", "equal", None, None, "FAIL" if port.any() else "PASS")
    reading = compare(port, out, truth, allow_inf=True)
    measure, limit = ("equal", None) if reading.ratio is None else ("ratio", BUDGET)
    return GoldenRow(file.name, name, "port", measure, reading.ratio, limit, reading.status, reading.message, reading)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parity_tests.harness.golden", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of golden .safetensors files")
    parser.add_argument("--side", choices=["reference", "port", "both"], default="both")
    parser.add_argument("--only", metavar="GLOB", default="*", help="file names to run, e.g. 'hift_*'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    options = parser.parse_args(argv)
    found = {
        p.with_suffix(".safetensors") for kind in ("safetensors", "onnx") for p in options.folder.glob(f"*.{kind}")
    }
    paths = sorted(p for p in found if fnmatchcase(p.stem, options.only))
    if not paths:
        print(f"error: {options.folder} holds no golden file that matches {options.only}", file=sys.stderr)
        return 2
    sides: tuple[Side, ...] = ("reference", "port") if options.side == "both" else (options.side,)
    rows: list[GoldenRow] = []
    for path in paths:
        if path.with_suffix(".onnx").is_file():
            rows += [row for side in sides for row in judge_onnx(path, side, GoldenRow)]
            continue
        try:
            file = GoldenFile.read(path)
        except ValueError as error:
            rows.append(GoldenRow(path.stem, "", sides[0], "", None, None, "ERROR", str(error)))
            continue
        for side in sides:
            rows += judge_file(file, side)
    _print(rows)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    return 0 if all(row.status in ("PASS", "SKIP") for row in rows) else 1


def _print(rows: list[GoldenRow]) -> None:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2e}"

    for row in rows:
        line = f"{row.status:8} {row.side:9} {row.file:32} {row.tensor:26} {row.measure:8}"
        print(f"{line} {number(row.value):>9} {number(row.limit):>9} {row.note}".rstrip())
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(r.status for r in rows)}
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f" of {len(rows)} tensors")


if __name__ == "__main__":
    sys.exit(main())
