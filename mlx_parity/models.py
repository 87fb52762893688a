"""Compare a PyTorch model with its MLX port, module by module, without describing either.

    result = compare_models(torch_model, mlx_model, inputs)
    print(result)

Both models get the same weights and inputs from the caller. PyTorch runs in float32, in float64 and, where one float32
run leaves doubt, with its sums in other orders; MLX runs once. What each named module returned is judged by the rule
(compare.py). A module that fails runs again alone, on the reference's inputs: this tells whether it is wrong itself
or its inputs were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_parity.alone import Alone, fed
from mlx_parity.compare import Reading, compare
from mlx_parity.comparison import WHOLE, Comparison, ModuleRow, Where
from mlx_parity.recorded import Arguments, Call, Key, by_key
from mlx_parity.sides.mlx import MlxSide
from mlx_parity.sides.orders_pytorch import FURTHER, Lazily
from mlx_parity.sides.pytorch import TorchSide
from mlx_parity.sides.regime import SIDES, Side, require_float32
from mlx_parity.spool import Spool
from mlx_parity.tree import mapped, stateful

if TYPE_CHECKING:
    import mlx.nn
    import torch

Names = Mapping[str, str] | Callable[[str], str]


def compare_models(
    torch_model: torch.nn.Module,
    mlx_model: mlx.nn.Module,
    inputs: Any,
    *,
    mlx_inputs: Any = None,
    names: Names | None = None,
    channels_last: Collection[str] = (),
) -> Comparison:
    """Run both models on the same inputs and judge the output of every module that both have.

    Args:
        torch_model: in float32, with any weights that are alive (random ones do, zeros prove nothing).
        mlx_model: with the same weights, in float32.
        inputs: what the PyTorch model is called with: one array, a tuple of positional arguments, or a dictionary of
            keyword arguments; numpy arrays become tensors, anything else (flags, None) is passed on as it is.
        mlx_inputs: what the MLX model is called with, if different.
        names: MLX names by PyTorch names, as prefixes: `{"encoder.layer": "encoder.layers"}`; or a function from a
            PyTorch name to an MLX name. Equal names need no entry.
        channels_last: globs of PyTorch names of modules whose tensors have channels second in PyTorch, last in MLX.

    Returns:
        one row for each output of each module, in the order in which the modules ended in PyTorch.

    Raises:
        ValueError: weights are not float32, or this machine computes in less than float32.
    """
    return Comparer(torch_model, inputs, names=names, channels_last=channels_last).compare(mlx_model, mlx_inputs)


class Comparer:
    """The PyTorch side of `compare_models`, run once for any number of MLX models; arguments as there.

    Args:
        sides: which must compute in float32.
    """

    def __init__(
        self,
        torch_model: torch.nn.Module,
        inputs: Any,
        *,
        names: Names | None = None,
        channels_last: Collection[str] = (),
        sides: Collection[Side] = tuple(SIDES),
    ) -> None:
        require_float32(sides)
        self.side = TorchSide(torch_model)
        self.inputs = _arguments(inputs)
        self.spelled = names if callable(names) else partial(_spelled, names or {})
        self.channels_last = channels_last
        self.spool = Spool()
        self.single = self.side.record(self.inputs, self.spool.store)
        self.double = by_key(self.side.record_double(self.inputs, self.spool.store))
        self.further = Lazily(
            lambda: [by_key(self.side.record_in_order(self.inputs, self.spool.store, seed)) for seed in range(FURTHER)]
        )
        self._forget()

    def _forget(self) -> None:
        """Drop results derived from the PyTorch runs: runs of single modules, and rows that passed."""
        self.alone = Alone(self.side, self.spool)
        self.passed: dict[tuple[Key, tuple[Any, ...]], list[ModuleRow]] = {}

    def is_of(self, torch_model: torch.nn.Module, inputs: Any) -> bool:
        """Whether it was made with the same modules, weights and inputs."""
        other = TorchSide(torch_model)
        mine, theirs = (
            (side.weights(""), given) for side, given in ((self.side, self.inputs), (other, _arguments(inputs)))
        )
        return [*self.side.names] == [*other.names] and _equal(mine, theirs)

    def compare(self, mlx_model: mlx.nn.Module, mlx_inputs: Any = None, until_wrong: bool = False) -> Comparison:
        """Run and judge one MLX model.

        Args:
            mlx_inputs: what it is called with, where that differs from PyTorch's.
            until_wrong: stop at the first module that is itself wrong.
        """
        port, given = MlxSide(mlx_model), self.given(mlx_inputs)
        matched = self.matched(port)
        rows: dict[tuple[str, str], ModuleRow] = {}
        with Spool() as spool:
            try:
                mine = by_key(port.record(given, spool.store, set(matched.values())))
            except Exception as error:
                reading = Reading("ERROR", f"the MLX model raised {type(error).__name__}: {error}")
                return Comparison([ModuleRow(WHOLE, type(mlx_model).__name__, "", reading)])
            for key, call in by_key(self.single).items():
                if call.name not in matched:
                    continue
                other = mine.get((matched[call.name], key[1]))
                for row in self._rows(key, call, other, port, spool):
                    _keep_worst(rows, row)
                    if until_wrong and row.where == "here":
                        return Comparison(list(rows.values()))
        known = {other: name for name, other in matched.items()}
        made = {(matched.get(name), index) for name, index in by_key(self.single)}
        for module, index in mine:
            if module in known and (module, index) not in made:
                reading = Reading("ERROR", f"call {index} was made by the MLX model only")
                name = known[module] or WHOLE
                _keep_worst(rows, ModuleRow(name, type(port.names[module]).__name__, "", reading, index))
        unmatched = {
            "torch": [name for name in dict.fromkeys(call.name for call in self.single) if name not in matched],
            "mlx": [name for name in dict.fromkeys(name for name, _ in mine) if name not in known],
            "results": [*dict.fromkeys(_further_results(self.single, mine, matched))],
        }
        return Comparison(list(rows.values()), unmatched)

    def on_machine(self, seed: int) -> Comparer:
        """The same comparison with PyTorch run as on another machine, with sums in another order."""
        there = copy.copy(self)
        there.single = self.side.record_in_order(self.inputs, self.spool.store, seed)
        there._forget()
        return there

    def given(self, mlx_inputs: Any) -> Arguments:
        """What the MLX model is called with."""
        return self.inputs if mlx_inputs is None else _arguments(mlx_inputs)

    def matched(self, port: MlxSide) -> dict[str, str]:
        """MLX names by PyTorch names, of the modules that both sides have."""
        return {"": ""} | {name: other for name in self.side.names if (other := self.spelled(name)) in port.names}

    def expected(self, module: str, port: MlxSide) -> str:
        """The row that should name a fault in an MLX module: its own, or that of the surrounding module."""
        called = {call.name for call in self.single}
        rows = {other: name for name, other in self.matched(port).items() if name in called}
        while module not in rows:
            module = module.rpartition(".")[0]
        return rows[module] or WHOLE

    def _rows(self, key: Key, call: Call, other: Call | None, port: MlxSide, spool: Spool) -> Iterable[ModuleRow]:
        """The rows of one call; reused if an earlier call with the same results passed."""
        if other is None:
            reading = Reading("ERROR", f"call {key[1]} was made by the PyTorch model only")
            return [ModuleRow(call.name or WHOLE, call.kind, "", reading, key[1])]
        content = key, tuple((array.digest, array.dtype, array.shape) for array in other.results.values())
        if content in self.passed:
            return self.passed[content]
        rows = [*self._judged(key, call, loaded(other, spool), port)]
        if all(row.reading.status == "PASS" for row in rows):
            self.passed[content] = rows
        return rows

    def _judged(self, key: Key, stored: Call, other: Call, port: MlxSide) -> Iterator[ModuleRow]:
        call, double = loaded(stored, self.spool), loaded(self.double[key], self.spool)
        row = partial(ModuleRow, call.name or WHOLE, call.kind, call=key[1])
        single, truth, mine = (list(c.results.values()) for c in (call, double, other))
        if self._moves(call.name):
            mine = [_channels_second(array) for array in mine]
        places = list(call.results)
        if bool(single) != bool(mine):
            side = "MLX" if single else "PyTorch"
            yield row("", Reading("ERROR", f"{side} returned no array that could be compared"))
        alone: list[Reading] | None = None
        for i, (r32, r64, p) in enumerate(zip(single, truth, mine, strict=False)):
            if not r32.size and r32.shape == p.shape:  # such as an empty cache
                continue
            further = Lazily(partial(self._further, key, i))
            reading = compare(p, r32, r64, further=further)
            where: Where = ""
            if reading.status == "FAIL":
                alone = self._alone(key, stored, other, port) if alone is None else alone
                if i < len(alone):
                    where = "inputs" if alone[i].status == "PASS" else "here"
            name = places[i] if len(single) > 1 else ""
            by_itself = alone[i] if alone and i < len(alone) and where else None
            yield row(name, _hinted(reading, p, r32), where=where, alone=by_itself)

    def _further(self, key: Key, i: int) -> list[np.ndarray]:
        """Result `i` of a call in each further run of the reference."""
        return [self.spool.load(list(run[key].results.values())[i]) for run in self.further]

    def _moves(self, name: str) -> bool:
        return bool(name) and any(fnmatchcase(name, glob) for glob in self.channels_last)

    def _alone(self, key: Key, stored: Call, other: Call, port: MlxSide) -> list[Reading]:
        """Readings of one module on the reference's inputs; none if a call depends on more than arrays."""
        given, moves = self.spool.load(stored.arguments), self._moves(stored.name)
        if stateful(given, np.ndarray) or stateful(other.arguments, np.ndarray):
            return []
        try:
            runs = [*self.alone.runs(key, stored)]
            mine = fed(other.arguments, given, _channels_last if moves else np.asarray)
            found = list(port.again(other.name, mine).values())
        except Exception:  # it needs something that the surrounding model prepares
            return []
        if moves:
            found = [_channels_second(array) for array in found]
        return [compare(p, *run, further=further) for p, (*run, further) in zip(found, runs, strict=False)]


def _further_results(calls: Collection[Call], mine: Mapping[Key, Call], matched: Mapping[str, str]) -> Iterator[str]:
    """Names of modules of which one side returns more arrays than the other, and how many each does."""
    for (name, index), call in by_key(calls).items():
        other = mine.get((matched.get(name, ""), index)) if name in matched else None
        counts = len(call.results), len(other.results) if other else 0
        if all(counts) and counts[0] != counts[1]:
            yield f"{name or WHOLE} ({counts[0]} in PyTorch, {counts[1]} in MLX)"


def _arguments(inputs: Any) -> Arguments:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _equal(one: Any, other: Any) -> bool:
    held: list[list[Any]] = [[], []]
    for items, value in zip(held, (one, other), strict=True):
        mapped(value, items.append)
    return len(held[0]) == len(held[1]) and all(np.array_equal(a, b) for a, b in zip(*held, strict=True))


def _spelled(names: Mapping[str, str], name: str) -> str:
    """The MLX name of a PyTorch name: its longest prefix in `names` is replaced."""
    found = [old for old in names if name == old or name.startswith(f"{old}.")]
    old = max(found, key=len, default="")
    return names[old] + name.removeprefix(old) if old else name


def loaded(call: Call, spool: Spool) -> Call:
    """A call with its arrays."""
    return replace(call, arguments=spool.load(call.arguments), results=spool.load(call.results))


def _keep_worst(rows: dict[tuple[str, str], ModuleRow], row: ModuleRow) -> None:
    """Add a row, unless an earlier call's is worse; mark a module that contains one that is itself wrong."""
    if row.where == "here" and any(w.where == "here" and _holds(row.module, w.module) for w in rows.values()):
        row = replace(row, where="inside")
    worst = rows.get((row.module, row.output))
    if worst is None or _severity(row) > _severity(worst):
        rows[row.module, row.output] = row


def _holds(outer: str, inner: str) -> bool:
    return inner != outer and (outer == WHOLE or inner.startswith(f"{outer}."))


def _severity(row: ModuleRow) -> tuple[bool, bool, float]:
    return row.reading.status == "ERROR", row.reading.status != "PASS", row.reading.ratio or 0.0


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


def _channels_second(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def _hinted(reading: Reading, port: np.ndarray, single: np.ndarray) -> Reading:
    """The message for a wrong shape, with a remedy if only the channel axis differs."""
    if port.shape == single.shape or _channels_second(port).shape != single.shape:
        return reading
    return Reading(reading.status, f"{reading.message}; name it in channels_last", reading.shape, reading.dtype)
