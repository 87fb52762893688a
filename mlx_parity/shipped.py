"""Judge a subject again as users run it: in a process without MLX_ENABLE_TF32=0.

On devices with TF32, MLX then rounds the factors of float32 products to ten bits. There, outputs over budget are
REDUCED, which does not fail. If MLX computes in float32 all the same, they are judged as usual.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_parity.report.data import Status
from mlx_parity.run import judged
from mlx_parity.sides import regime
from mlx_parity.subject import Load, SubjectError, load_subject, mended

VARIABLE = "MLX_ENABLE_TF32"


@dataclass(frozen=True)
class Shipped:
    """The outcome for all parts together, with all findings mended.

    Args:
        regime: of MLX's products and convolutions: `float32`, `ten bits` or `less than ten bits`.
        error, product: relative rms error of the worst of them, and its name.
        outputs, good, incomparable: numbers of outputs: all, within the budget, not comparable.
        worst: the largest ratio.
        device: that MLX used.
        variable: value of MLX_ENABLE_TF32 in that process; None where it was not set.
    """

    regime: str
    error: float | None
    product: str
    outputs: int
    good: int
    incomparable: int
    worst: float
    device: str
    variable: str | None

    @property
    def status(self) -> Status:
        """REDUCED where outputs are over budget because MLX computes less than float32."""
        if self.incomparable:
            return "ERROR"
        return "PASS" if self.good == self.outputs else "FAIL" if self.regime == "float32" else "REDUCED"


def as_shipped(program: Path, seed: int, only: str) -> Shipped:
    """Judge a program in a process without the variable.

    Raises:
        SubjectError: it cannot be judged there.
    """
    usual = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-m", "mlx_parity.shipped", str(program), str(seed), only]
    done = subprocess.run(command, env=usual, capture_output=True, text=True, check=False)
    if done.returncode:
        problem = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise SubjectError(f"{program.name}: without {VARIABLE}: {problem}")
    return Shipped(**json.loads(done.stdout.splitlines()[-1]))


def measured(load: Load, seed: int, only: str) -> Shipped:
    """Judge in this process; only PyTorch must compute in float32.

    Raises:
        SubjectError, ValueError: as `run.judge`.
    """
    only_torch: tuple[regime.Side, ...] = ("reference",)
    with mended(load(seed).findings):
        parts = judged(load(seed), only, "as shipped", only_torch)
    rows = [row.reading for part in parts.values() for row in part.comparison.rows]
    found = regime.precision(regime.arithmetic()).port
    return Shipped(
        regime=found.regime,
        error=found.error,
        product=found.worst,
        outputs=len(rows),
        good=sum(row.status == "PASS" for row in rows),
        incomparable=sum(row.status in ("ERROR", "VACUOUS") for row in rows),
        worst=max(part.comparison.worst for part in parts.values()),
        device=regime.machine()["device"],
        variable=os.environ.get(VARIABLE),
    )


if __name__ == "__main__":
    place, drawn, glob = sys.argv[1:]
    print(json.dumps(asdict(measured(load_subject(Path(place)), int(drawn), glob))))
