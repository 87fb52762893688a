"""How many generic faults does a comparison of two models see? Its sensitivity, without a catalogue."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from mlx_parity.comparison import WHOLE, Comparison
from mlx_parity.models import Comparer, Names
from mlx_parity.sides.mlx import MlxSide
from mlx_parity.sides.mutations import Mutation, mutations

if TYPE_CHECKING:
    import mlx.nn
    import torch


@dataclass(frozen=True)
class Verdict:
    """The verdict on one generic fault.

    Args:
        kind, module: of the fault; the module by its MLX name.
        status: caught; SURVIVED if the comparison passed; `no effect` if the model returned the same bits.
        first: the module that the comparison named first.
        right: it is the fault's own, or the innermost one around it that both sides have.
    """

    kind: str
    module: str
    status: Literal["caught", "SURVIVED", "no effect"]
    first: str | None = None
    right: bool = False


@dataclass(frozen=True)
class Score:
    """The result of `fault_score`.

    Args:
        verdicts: one for each fault.
        modules: MLX names of the modules that were called.
    """

    verdicts: Sequence[Verdict]
    modules: Sequence[str]

    @property
    def total(self) -> int:
        """Number of faults that have an effect."""
        return sum(v.status != "no effect" for v in self.verdicts)

    @property
    def caught(self) -> int:
        return sum(v.status == "caught" for v in self.verdicts)

    @property
    def right(self) -> int:
        """Caught faults whose own module was named first."""
        return sum(v.right for v in self.verdicts)

    @property
    def unreached(self) -> list[str]:
        """Modules without any fault that has an effect."""
        reached = {v.module for v in self.verdicts if v.status != "no effect"}
        return [name or WHOLE for name in self.modules if name not in reached]

    def __str__(self) -> str:
        total, caught, right = (Counter[str]() for _ in range(3))
        for v in self.verdicts:
            total[v.kind] += v.status != "no effect"
            caught[v.kind] += v.status == "caught"
            right[v.kind] += v.right
        lines = [f"{caught[kind]:4} of {n:3} caught, {right[kind]:3} by name  {kind}" for kind, n in total.items() if n]
        lines += [f"SURVIVED  {v.kind}: {v.module or WHOLE}" for v in self.verdicts if v.status == "SURVIVED"]
        lines += [f"reached by no fault: {', '.join(self.unreached)}"] * bool(self.unreached)
        said = f"{self.caught} of {self.total} generic faults caught, the right module named first in {self.right}"
        return "\n".join([*lines, said])


def fault_score(
    torch_model: torch.nn.Module,
    mlx_model: mlx.nn.Module,
    inputs: Any,
    *,
    mlx_inputs: Any = None,
    names: Names | None = None,
    channels_last: Collection[str] = (),
    only: str = "*",
) -> Score:
    """Plant each generic fault that fits the MLX model, one at a time, and see whether `compare_models` fails.

    Args:
        torch_model, mlx_model, inputs, mlx_inputs, names, channels_last: as for `compare_models`.
        only: glob of MLX names of modules in which faults are planted.

    Raises:
        ValueError: the comparison fails without any fault, so that a failure would prove nothing.
    """
    comparer = Comparer(torch_model, inputs, names=names, channels_last=channels_last)
    return score_of(comparer, mlx_model, mlx_inputs, only)


def score_of(comparer: Comparer, mlx_model: mlx.nn.Module, mlx_inputs: Any = None, only: str = "*") -> Score:
    """`fault_score` with an existing comparer."""
    sound = comparer.compare(mlx_model, mlx_inputs)
    if not sound.passed:
        raise ValueError(f"the models differ without any fault: {sound.verdict()}")
    port = MlxSide(mlx_model)
    given = comparer.given(mlx_inputs)
    usual = port.record(given, lambda array: array.tobytes())
    planted = [m for m in mutations(mlx_model, lambda: port.again("", given)) if fnmatchcase(m.module, only)]
    verdicts = []
    for mutation in tqdm(planted, desc="faults", unit="fault", file=sys.stderr, disable=None, leave=False):
        with mutation.apply():
            found = comparer.compare(mlx_model, mlx_inputs, until_wrong=True)
            same = found.passed and port.record(given, lambda array: array.tobytes()) == usual
        verdicts.append(_verdict(mutation, found, same, comparer.expected(mutation.module, port)))
    return Score(verdicts, list(dict.fromkeys(call.name for call in usual)))


def _verdict(mutation: Mutation, found: Comparison, same: bool, expected: str) -> Verdict:
    if found.passed:
        return Verdict(mutation.kind, mutation.module, "no effect" if same else "SURVIVED")
    return Verdict(mutation.kind, mutation.module, "caught", found.first, found.first == expected)
