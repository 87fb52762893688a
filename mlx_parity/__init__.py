"""Does an MLX port compute what the PyTorch model computes? Compares any two models, module by module."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_parity.alarms import Alarms, false_alarms
    from mlx_parity.compare import BUDGET, FLOOR, Reading
    from mlx_parity.comparison import Comparison, ModuleRow
    from mlx_parity.models import Comparer, compare_models
    from mlx_parity.part import live_weights
    from mlx_parity.score import Score, fault_score
    from mlx_parity.sides.mlx import mlx_module
    from mlx_parity.sides.pytorch import torch_module
    from mlx_parity.subject import Finding, Pair, Subject

# Imported on first use: reading a report needs neither PyTorch nor MLX.
_PLACES = {
    **dict.fromkeys(("Alarms", "false_alarms"), "alarms"),
    **dict.fromkeys(("BUDGET", "FLOOR", "Reading"), "compare"),
    **dict.fromkeys(("Comparison", "ModuleRow"), "comparison"),
    **dict.fromkeys(("Comparer", "compare_models"), "models"),
    **dict.fromkeys(("Score", "fault_score"), "score"),
    **dict.fromkeys(("Finding", "Pair", "Subject"), "subject"),
    "live_weights": "part",
    "mlx_module": "sides.mlx",
    "torch_module": "sides.pytorch",
}
__all__ = [
    "BUDGET",
    "FLOOR",
    "Alarms",
    "Comparer",
    "Comparison",
    "Finding",
    "ModuleRow",
    "Pair",
    "Reading",
    "Score",
    "Subject",
    "compare_models",
    "false_alarms",
    "fault_score",
    "live_weights",
    "mlx_module",
    "torch_module",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
