"""Run a whole stage on both sides and compare every named part in order of execution.

A part is judged twice: chained, as it runs inside the whole, and isolated, fed the reference's own inputs. A fault
shows in both; drift that only grows shows in the first. Arguments and results of the parts are on disk meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mlx_parity.compare import Reading
from mlx_parity.judge import Row, compare_all
from mlx_parity.part import Change, Part
from mlx_parity.sides.capture import Call, Recorder
from mlx_parity.sides.mlx import to_mlx
from mlx_parity.sides.mlx import to_numpy as from_mlx
from mlx_parity.sides.orders_pytorch import Lazily, in_other_orders
from mlx_parity.sides.truth import to_numpy, to_torch
from mlx_parity.spool import Spool
from mlx_parity.tree import mapped, stateful

ABOVE = ("FAIL", "ERROR", "VACUOUS")


@dataclass(frozen=True)
class Ground:
    """Facts about a model that all walks through it need.

    Args:
        parts: what is compared on the way.
        spelled: prefixes of the reference's names -> what the port has instead.
        fused: prefixes of names of the reference's parts that the port computes inside their parent.
        inside: suffixes of names of the port's parts that the reference computes only inside a larger part.
        recording: makes a context in which the port calls parts whose results it otherwise looks up.
        lacking: from the port to the parts that it lacks or cannot run alone: path -> reason.
        again: from the name of a walk to the command that repeats it.
    """

    parts: Collection[Part]
    spelled: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    recording: Callable[[Any], AbstractContextManager[None]] = nullcontext
    lacking: Callable[[Any], Mapping[str, str]] = lambda port: {}
    again: Callable[[str], str] = str

    def key(self, call: Call) -> tuple[str, str] | None:
        """Twin and name of a call, as the port spells it; None where only one side makes it."""
        name = call.name
        for official, port in self.spelled.items():
            if name.startswith(official) and not name.startswith(port):
                name = port + name.removeprefix(official)
        both = call.part.chained and not name.startswith(self.fused) and not name.endswith(self.inside)
        return (call.part.path, name) if both else None


@dataclass(frozen=True)
class Walk:
    """One run through a stage of the whole model.

    Args:
        name: `walk.stage.what`.
        stage: stage of the report.
        run: gets the model of a side and the arguments as its tensors, returns results by name.
        inputs: arrays in the reference's layout.
        ground: what is known of the model.
        to_port, from_port: changes of layout, as of a part.
    """

    name: str
    stage: str
    run: Callable[[Any, dict[str, Any]], dict[str, Any]]
    inputs: Mapping[str, np.ndarray]
    ground: Ground
    to_port: Mapping[str, Change] = field(default_factory=dict)
    from_port: Mapping[str, Change] = field(default_factory=dict)


Key = tuple[str, str, int]


@dataclass(frozen=True)
class Taken:
    """What one side of a walk returned, and every call in it, whose arrays lie in the walk's spool."""

    results: dict[str, np.ndarray]
    calls: list[Call]

    def by_key(self, ground: Ground) -> dict[Key, Call]:
        """The calls of parts that both sides have, by twin, name and how often that one was called before."""
        counts: Counter[tuple[str, str]] = Counter()
        keyed = {}
        for call in self.calls:
            if part := ground.key(call):
                keyed[*part, counts[part]] = call
                counts[part] += 1
        return keyed


@dataclass(frozen=True)
class Runs:
    """All runs of a walk: the reference in float32, in float64 and in other orders, and the port."""

    single: Taken
    double: Taken
    port: Taken
    further: Sequence[Taken]


def walk(models: Any, plan: Walk, isolated: bool = True, several: bool = True) -> list[Row]:
    """Rows for every named part in order of execution (of the first call over budget, where there is one), then for
    the results of the whole.

    Args:
        models: has the reference in float32 and float64 and the port: `single`, `double`, `port`.
        plan: what to run.
        isolated: judge each part on the reference's inputs too.
        several: measure the reference's own error in several orders of its sums, not in one.
    """
    with Spool() as spool:
        single = run_reference(models.single, plan, torch.float32, spool)
        double = run_reference(models.double, plan, torch.float64, spool)
        try:
            port = run_port(models.port, plan, spool)
        except Exception as error:
            reading = Reading("ERROR", f"the port raised {type(error).__name__}: {error}")
            return [_row(plan, plan.name, plan.name, "chained", reading)]
        again = partial(run_reference, models.single, plan, torch.float32, spool)
        further = in_other_orders(again) if several else []
        return compare(plan, spool, Runs(single, double, port, further), isolated, plan.ground.lacking(models.port))


def first_divergence(rows: list[Row]) -> Row | None:
    """The first row over budget in order of execution; where its isolated twin fails too, that twin."""
    broken = [row for row in rows if row.reading.status in ABOVE]
    isolated = [row for row in broken if row.kind == "isolated"]
    return next(iter(isolated or broken), None)


def run_reference(model: torch.nn.Module, plan: Walk, dtype: torch.dtype, spool: Spool) -> Taken:
    arguments = {k: to_torch(v, dtype) for k, v in plan.inputs.items()}
    with torch.inference_mode(), Recorder(plan.ground.parts, "reference", model, spool.store) as recorder:
        results = {k: to_numpy(v) for k, v in plan.run(model, arguments).items()}
    return Taken(results, recorder.calls)


def run_port(model: Any, plan: Walk, spool: Spool) -> Taken:
    arguments = {k: to_mlx(plan.to_port.get(k, np.asarray)(v)) for k, v in plan.inputs.items()}
    with plan.ground.recording(model), Recorder(plan.ground.parts, "port", model, spool.store) as recorder:
        plan.run(model, arguments)
    # The results are those of the model as it is: what it looks up in tables calls no twin of the reference.
    results = {k: from_mlx(v) for k, v in plan.run(model, arguments).items()}
    return Taken({k: plan.from_port.get(k, np.asarray)(v) for k, v in results.items()}, recorder.calls)


def compare(
    plan: Walk, spool: Spool, sides: Runs, isolated: bool = True, lacking: Mapping[str, str] | None = None
) -> list[Row]:
    """One chained and one isolated row for each part and output, then the results of the whole.

    The worst of a part's calls stands for all.

    Args:
        lacking: as of `Ground`, of this port.
    """
    calls, double_calls, port_calls = (side.by_key(plan.ground) for side in (sides.single, sides.double, sides.port))
    further = Lazily(lambda: [side.by_key(plan.ground) for side in sides.further])
    without = {path: Reading("SKIP", reason) for path, reason in (lacking or {}).items()}
    rows: dict[tuple[str, str], Row] = {}
    for key in dict.fromkeys([*calls, *port_calls]):
        path, name, index = key
        if key not in calls or key not in port_calls:
            alone = "port" if key in port_calls else "reference"
            reading = Reading("ERROR", f"call {index} was made by the {alone} only")
            if alone == "reference":
                reading = without.get(path, reading)
            name = f"{plan.name}/{name}"
            rows.setdefault((name, "chained"), _row(plan, name, path, "chained", reading))
            continue
        call, truth, mine = (
            replace(side[key], results=spool.load(side[key].results)) for side in (calls, double_calls, port_calls)
        )
        results = {k: call.part.from_port.get(k, np.asarray)(v) for k, v in mine.results.items()}
        others = Lazily(partial(_of_each, spool, further, key))
        readings = compare_all(results, call.results, truth.results, others, follow=call.part.follows)
        _keep_worst(rows, plan, key, "chained", readings)
        if isolated and path in without:
            name = f"{plan.name}/{name}"
            rows.setdefault((name, "isolated"), _row(plan, name, path, "isolated", without[path]))
        elif isolated:
            call = replace(call, arguments=spool.load(call.arguments))
            _keep_worst(rows, plan, key, "isolated", _isolated(call, truth, mine))
    runs = Lazily(lambda: [side.results for side in sides.further])
    whole = compare_all(sides.port.results, sides.single.results, sides.double.results, runs)
    return [
        *rows.values(),
        *(_row(plan, f"{plan.name}.{name}", plan.name, "chained", reading) for name, reading in whole.items()),
    ]


def _of_each(spool: Spool, runs: Sequence[Mapping[Key, Any]], key: Key) -> list[dict[str, np.ndarray]]:
    """Results of one call in each further run of the reference."""
    return [spool.load(run[key].results) for run in runs]


def _keep_worst(
    rows: dict[tuple[str, str], Row], plan: Walk, key: Key, kind: str, readings: Mapping[str, Reading]
) -> None:
    path, part, index = key
    for output, reading in readings.items():
        name = f"{plan.name}/{part}" + (f".{output}" if len(readings) > 1 else "")
        old = rows.get((name, kind))
        if old is None or _severity(reading) > _severity(old.reading):
            if old is not None and old.reading.status not in ABOVE and reading.status in ABOVE:
                del rows[name, kind]  # its place in the order is where it first failed
            message = f"{reading.message} (call {index})" if reading.message and index else reading.message
            rows[name, kind] = _row(plan, name, path, kind, replace(reading, message=message))


def _severity(reading: Reading) -> tuple[bool, bool, float]:
    return reading.status == "ERROR", reading.status != "PASS", reading.ratio or 0.0


def _isolated(call: Call, double: Call, port: Call) -> dict[str, Reading]:
    """The port's part and the oracle's, fed what the float32 reference fed its own; nothing where a call has state."""
    part = call.part
    if not part.replay or stateful(call.arguments, (np.ndarray, np.generic)):
        return {}
    with torch.inference_mode():
        truth = _again("reference", double, _thaw(call.arguments, lambda a: to_torch(a, torch.float64)))
    changed = {k: _changed(part.to_port.get(k, np.asarray), v) for k, v in call.arguments.items()}
    mine = _again("port", port, _thaw(changed, to_mlx))
    mine = {k: part.from_port.get(k, np.asarray)(v) for k, v in mine.items()}

    def again() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return _again("reference", call, _thaw(call.arguments, lambda a: to_torch(a, torch.float32)))

    return compare_all(mine, call.results, truth, in_other_orders(again), follow=part.follows)


def _again(package: str, call: Call, arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    found, method = call.part.resolve(package)
    function = found if call.owner is None else getattr(call.owner, method) if method else call.owner
    result = function(**arguments)
    outputs = result if isinstance(result, tuple) else (result,)
    numpy = to_numpy if package == "reference" else from_mlx
    return {k: numpy(v) for k, v in zip(call.part.outputs, outputs, strict=True)}


def _changed(change: Change, value: Any) -> Any:
    return change(value) if isinstance(value, np.ndarray) else value


def _thaw(value: Any, tensor: Callable[[np.ndarray], Any]) -> Any:
    return mapped(value, lambda item: tensor(item) if isinstance(item, np.ndarray) else item)


def _row(plan: Walk, name: str, module: str, kind: Any, reading: Reading) -> Row:
    return Row(name, plan.stage, kind, module, plan.name, reading, plan.ground.again(plan.name))
