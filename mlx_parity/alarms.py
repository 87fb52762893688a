"""How often would a correct port fail on another machine? A comparison's specificity; score.py: its sensitivity."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_parity.compare import BUDGET
from mlx_parity.models import Comparer, Names
from mlx_parity.sides.orders_mlx import Order
from mlx_parity.sides.orders_pytorch import FURTHER

if TYPE_CHECKING:
    import mlx.nn
    import torch

WORST = 10  # number of rows to print


@dataclass(frozen=True)
class Alarms:
    """The result of `false_alarms`.

    Args:
        ratios: by row, one per machine; inf if a row could not be compared.
    """

    ratios: Mapping[str, Sequence[float]]

    @property
    def alarms(self) -> int:
        """Rows over budget, on any machine."""
        return sum(ratio > BUDGET for ratio in self._every)

    @property
    def distribution(self) -> str:
        """Median, 99th percentile and maximum of all ratios, in one line."""
        found = np.array(self._every)
        middle, high = np.median(found), np.quantile(found, 0.99, method="higher")
        words = f"median {middle:.2f}x  99th percentile {high:.2f}x  worst {found.max():.2f}x"
        return f"{words}  over budget {self.alarms}"

    def __str__(self) -> str:
        nearest = sorted(self.ratios.items(), key=lambda row: -max(row[1]))[:WORST]
        lines = [f"  {statistics.median(r):5.2f}x  {max(r):5.2f}x  {chance(r):8.1e}  {name}" for name, r in nearest]
        said = f"{self.alarms} of {len(self._every)} comparisons gave a false alarm"
        return "\n".join(["rows nearest to one: median, worst, its chance on another machine", *lines, said])

    @property
    def _every(self) -> list[float]:
        return [ratio for found in self.ratios.values() for ratio in found]


def chance(ratios: Sequence[float]) -> float:
    """Probability of a false alarm on another machine, if the logarithms of a row's ratios are normally distributed."""
    logs = [math.log(max(ratio, 1e-9)) for ratio in ratios]
    if not all(map(math.isfinite, logs)):
        return sum(ratio > BUDGET for ratio in ratios) / len(logs)
    spread = statistics.pstdev(logs)
    return 1 - statistics.NormalDist(statistics.fmean(logs), spread).cdf(math.log(BUDGET)) if spread else 0.0


def false_alarms(
    torch_model: torch.nn.Module,
    mlx_model: mlx.nn.Module,
    inputs: Any,
    *,
    machines: int = 8,
    mlx_inputs: Any = None,
    names: Names | None = None,
    channels_last: Collection[str] = (),
) -> Alarms:
    """Compare two equal models on simulated machines, each of which adds the terms of sums in its own order.

    Args:
        torch_model, mlx_model, inputs, mlx_inputs, names, channels_last: as for `compare_models`.
        machines: how many.
    """
    comparer = Comparer(torch_model, inputs, names=names, channels_last=channels_last)
    ratios: dict[str, list[float]] = {}
    for seed in range(machines):
        there = comparer.on_machine(FURTHER + seed)  # smaller seeds are the comparison's own orders
        with Order(seed):
            found = there.compare(mlx_model, mlx_inputs)
        for row in found.rows:
            comparable = row.reading.ratio is not None or row.reading.status == "PASS"
            ratios.setdefault(row.name, []).append(row.reading.ratio or 0.0 if comparable else math.inf)
    return Alarms(ratios)
