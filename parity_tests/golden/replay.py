"""Run a golden file on the reference in both precisions, and on the port."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from types import FunctionType
from typing import Any

import numpy as np
import torch

from convert.official import dit_config, flow_config, vocoder_config
from mlx_parity.adapter import Side
from mlx_parity.case import Case
from mlx_parity.compare import Reading
from mlx_parity.part import Part
from mlx_parity.record import Arrays, Recorded, RecordError
from mlx_parity.report.data import Status
from mlx_parity.sides.capture import Recorder
from mlx_parity.sides.orders_pytorch import in_other_orders
from mlx_parity.sides.truth import Reference, one_rounding
from parity_tests.adapters.own import OwnPort
from parity_tests.golden.functions import FUNCTIONS
from parity_tests.golden.table import NAMES, Run, Tap, part_of, runs
from parity_tests.parts import PARTS, frames_of_samples, recorded
from port.config import DiTConfig, FlowConfig, VocoderConfig

CONFIGS: dict[Any, Callable[..., Any]] = {DiTConfig: dit_config, FlowConfig: flow_config, VocoderConfig: vocoder_config}
NOT_ARGUMENTS = ("rope", "context", "eval")  # of `call`: descriptions, not arguments
UNREAD = (
    "token_len",
    "prompt_token_len",
    "prompt_feat_len",
    "rand_ini",
    "uv_noise",
)  # inputs that the original ignores
# Arguments of the original that have one value in CosyVoice 3 and on both sides; and one that follows from others.
FIXED = {"causal": True, "alpha_logscale": False, "sinegen_type": "2", "center": False, "dither": 0}
DERIVED = ("causal_padding",)
RENAMED = {"voiced_threshod": "voiced_threshold"}
CONTEXT_FRAMES = VocoderConfig.f0_look_right  # without finalize only the pitch predictor sees them


@dataclass(frozen=True)
class GoldenRow:
    """One line of the table: a tensor of a file on one side, `reference` or `port`."""

    file: str
    tensor: str
    side: str
    measure: str
    value: float | None
    limit: float | None
    status: Status
    note: str = ""
    reading: Reading | None = None


class Replays:
    """Results of one file by golden name; each run is made on first use.

    Attributes:
        part: the part of the original that the file names, see table.py.
        single, double: the reference's, in float32 and float64.
        port: the port's.
        further: the float32 reference's, with sums in other orders.
        rounded, moved: the float64 reference's, with every weight and input off by one rounding of float32, and of
            float64.

    Raises:
        RecordError: the file names no known part.
    """

    def __init__(self, file: Recorded) -> None:
        part = part_of(file.upstream, FUNCTIONS.keys() | NAMES)
        if part is None:
            raise RecordError(f"upstream {file.upstream!r} names no part that both sides have")
        self.file, self.part = file, part

    def run(self, side: Side, file: Recorded | None = None) -> Arrays:
        return replay(file or self.file, self.part, side)

    @cached_property
    def single(self) -> Arrays:
        return self.run(Reference())

    @cached_property
    def double(self) -> Arrays:
        return self.run(Reference(torch.float64))

    @cached_property
    def port(self) -> Arrays:
        return self.run(OwnPort())

    @cached_property
    def further(self) -> Sequence[Arrays]:
        return in_other_orders(lambda: self.run(Reference()))

    @cached_property
    def rounded(self) -> Arrays:
        return self._double_from(one_rounding)

    @cached_property
    def moved(self) -> Arrays:
        return self._double_from(_one_rounding_of_float64)

    def _double_from(self, move: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Arrays:
        """The float64 reference with every number of weights and inputs moved."""
        rng, file = np.random.default_rng(0), self.file
        groups = ({k: move(v, rng) for k, v in group.items()} for group in (file.weights, file.inputs, file.out))
        weights, inputs, out = groups
        return self.run(Reference(torch.float64), replace(file, weights=weights, inputs=inputs, out=out))


def _one_rounding_of_float64(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return array * (1 + 2.0**-52 * rng.integers(-1, 2, array.shape)) if array.dtype.kind == "f" else array


def replay(file: Recorded, part: str, side: Side) -> Arrays:
    """The file's tensors as one side computes them, in the reference's layout."""
    if part in FUNCTIONS:
        with torch.inference_mode():
            return FUNCTIONS[part](file, side)
    found: Arrays = {}
    for case, wanted in cases(file, part):
        built = side.build(case.part, case.config, file.weights)
        with recorded(side.package, built) as recorder:
            if isinstance(built, FunctionType):  # take the recorded function
                built = side.build(case.part, case.config, file.weights)
            results = side.call(case.part, built, case.draw(), case.call)
        found |= {  # copies: a cached table is the same array in every run
            name: _tap(place, recorder, results, side, case.config) if isinstance(place, Tap) else results[place].copy()
            for name, place in wanted.items()
        }
    return found


def cases(file: Recorded, part: str) -> Iterator[tuple[Case, dict[str, str | Tap]]]:
    """The calls that reproduce a file, as cases; each with the outputs that it gives and where to find them.

    A file that has a function in `FUNCTIONS` gives no case.
    """
    for run in () if part in FUNCTIONS else runs(part):
        for given, wanted in run.calls(file):
            target, config = PARTS[run.path], _config(file)
            if hop := config.get("upsample_scale"):
                target = replace(target, to_port={**target.to_port, "f0": partial(frames_of_samples, hop=hop)})
            if translate := CONFIGS.get(target.config):
                config = asdict(translate(config))
            call = {k: v for k, v in file.call.items() if k not in NOT_ARGUMENTS}
            if not isinstance(target.resolve("reference")[0], type):
                call |= config
            call = call if given is None else dict(given)
            inputs = _inputs(file, run, call)
            yield Case(f"golden.{file.name}", target, config, inputs, call, run.dead, file.weights), wanted


def _config(file: Recorded) -> dict[str, Any]:
    for key, value in FIXED.items():
        if file.config.get(key, value) != value:
            raise RecordError(f"config.{key} is {file.config[key]!r}; CosyVoice 3 and both sides have {value!r} only")
    return {RENAMED.get(k, k): v for k, v in file.config.items() if k not in (*FIXED, *DERIVED)}


def _inputs(file: Recorded, run: Run, call: Mapping[str, Any]) -> Arrays:
    """All inputs of the file but those that the original ignores; the part raises TypeError for an unknown one."""
    given = {k: v for k, v in file.inputs.items() if k not in UNREAD}
    named = ((run.argument(k), v) for k, v in (given | {f"out.{k}": v for k, v in file.out.items()}).items())
    inputs = {k: v.astype(bool) if v.dtype == np.uint8 else v for k, v in named if k is not None}
    if run.path.endswith("CausalMaskedDiffWithDiT.inference") and "prompt_token" not in inputs:
        inputs["prompt_token"] = np.zeros((1, 0), np.int32)
        inputs["prompt_feat"] = np.zeros((1, 0, file.config["output_size"]), np.float32)
    if "out.s" in run.inputs and not call["finalize"]:
        inputs["x"] = inputs["x"][:, :, :-CONTEXT_FRAMES]
    return inputs


def _tap(
    tap: Tap, recorder: Recorder, results: Mapping[str, np.ndarray], side: Side, config: Mapping[str, Any]
) -> np.ndarray:
    calls = recorder.of(tap.path, tap.name)
    target: Part = PARTS[tap.path]
    values = [{**c.arguments, **c.results}[tap.tensor] for c in calls]
    if tap.step:  # the port has one value per frame, the reference one per sample
        value = np.asarray(values[tap.index])
        return value if side.package == "port" else value[:, :: config[tap.step]]
    if side.package == "port":
        change = {**target.to_port, **target.from_port}.get(tap.tensor, np.asarray)
        values = [change(v) for v in values]
    if not tap.every:
        return np.asarray(values[tap.index])
    if tap.then:
        values.append(results[tap.then])
    return np.stack([np.squeeze(v, 0) if np.ndim(v) == 3 else v for v in values])
