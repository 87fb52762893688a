"""How often would a sound port fail on another machine? A comparison's specificity, as score.py is its sensitivity."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_parity.compare import BUDGET
from mlx_parity.models import Comparer, Names
from mlx_parity.sides.orders_mlx import Order
from mlx_parity.sides.orders_pytorch import FURTHER

if TYPE_CHECKING:
    import mlx.nn
    import torch

WORST = 10  # rows that are printed


@dataclass(frozen=True)
class Alarms:
    """The result of `false_alarms`.

    Args:
        ratios: by row, one a machine; inf where a row could not be compared.
    """

    ratios: Mapping[str, Sequence[float]]

    @property
    def alarms(self) -> int:
        """Rows over budget, on any machine."""
        return sum(ratio > BUDGET for found in self.ratios.values() for ratio in found)

    def __str__(self) -> str:
        every = [ratio for found in self.ratios.values() for ratio in found]
        nearest = sorted(self.ratios.items(), key=lambda row: -max(row[1]))[:WORST]
        lines = [f"{statistics.median(found):6.2f}x {max(found):6.2f}x  {name}" for name, found in nearest]
        said = f"{self.alarms} of {len(every)} comparisons gave a false alarm"
        return "\n".join(["median, worst of the rows nearest to one:", *lines, said])


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
    """Compare two models that are equal on virtual machines, where the sums of both go in orders of their own.

    Args:
        torch_model, mlx_model, inputs, mlx_inputs, names, channels_last: as for `compare_models`.
        machines: how many.
    """
    comparer = Comparer(torch_model, inputs, names=names, channels_last=channels_last)
    ratios: dict[str, list[float]] = {}
    for seed in range(machines):
        there = comparer.on_machine(FURTHER + seed)  # orders below are the comparison's own
        with Order(seed):
            found = there.compare(mlx_model, mlx_inputs)
        for row in found.rows:
            comparable = row.reading.ratio is not None or row.reading.status == "PASS"
            ratios.setdefault(row.name, []).append(row.reading.ratio or 0.0 if comparable else math.inf)
    return Alarms(ratios)
