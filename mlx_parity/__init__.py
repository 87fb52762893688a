"""Does an MLX port compute what the PyTorch model computes? A judge that knows both frameworks and no model."""

from mlx_parity.compare import BUDGET, FLOOR, Reading, compare
from mlx_parity.comparison import Comparison, ModuleRow
from mlx_parity.models import Comparer, compare_models
from mlx_parity.score import Score, fault_score

__all__ = [
    "BUDGET",
    "FLOOR",
    "Comparer",
    "Comparison",
    "ModuleRow",
    "Reading",
    "Score",
    "compare",
    "compare_models",
    "fault_score",
]
