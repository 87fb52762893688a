"""Run one module alone on the inputs that PyTorch gave it: is it wrong itself, or were its inputs?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mlx_parity.recorded import Arguments, Call, Key
from mlx_parity.sides.orders_pytorch import FURTHER, Lazily
from mlx_parity.sides.pytorch import TorchSide
from mlx_parity.sides.truth import Runs
from mlx_parity.spool import Spool
from mlx_parity.tree import leaves, mapped


class Alone:
    """PyTorch's side: each call is repeated once, however many ports are compared with it."""

    def __init__(self, side: TorchSide, spool: Spool) -> None:
        self._side, self._spool = side, spool
        self._made: dict[Key, tuple[list[Any], list[Any], Lazily[list[Any]]]] = {}

    def runs(self, key: Key, call: Call) -> Iterator[Runs]:
        """Each output of a call in float32, in float64 and with sums in other orders."""
        if key not in self._made:
            given = self._spool.load(call.arguments)
            self._made[key] = (
                self._kept(self._side.again(call.name, given)),
                self._kept(self._side.again_double(call.name, given)),
                Lazily(lambda: [self._in_order(call, seed) for seed in range(FURTHER)]),
            )
        single, double, further = self._made[key]
        for i, (r32, r64) in enumerate(zip(single, double, strict=True)):
            yield *self._spool.load((r32, r64)), Lazily(partial(self._loaded, further, i))

    def _loaded(self, runs: Sequence[Any], i: int) -> list[Any]:
        return [self._spool.load(run[i]) for run in runs]

    def _in_order(self, call: Call, seed: int) -> list[Any]:
        return self._kept(self._side.again_in_order(call.name, self._spool.load(call.arguments), seed))

    def _kept(self, results: dict[str, np.ndarray]) -> list[Any]:
        return [self._spool.store(array) for array in results.values()]


def fed(mine: Arguments, given: Arguments, moved: Callable[[np.ndarray], np.ndarray]) -> Arguments:
    """The MLX call with its arrays replaced by the reference's: each by the first unused array of the same shape."""
    held = [moved(array) for _, array in leaves(given, np.ndarray)]

    def exchanged(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        fits = (a.shape == value.shape and (a.dtype.kind == "f") == (value.dtype.kind == "f") for a in held)
        at = next((i for i, found in enumerate(fits) if found), None)
        return value if at is None else held.pop(at)

    return mapped(mine, exchanged)
