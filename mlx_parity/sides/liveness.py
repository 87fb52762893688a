"""Is a case alive: would it detect that one of its weights or inputs is wrong?

Every float tensor is multiplied by 1 + 0.1 n (n standard normal), one tensor at a time; the first of several tokens or
lengths is mirrored within their range, masks lose a fifth of their valid entries. The float64 reference's output must
move by at least MOVED_BUDGETS budgets, where a budget is what compare.py allows the port, 4 max(e_ref, floor), and the
larger of the rms and the max-abs reading counts, as there. An integer output counts as moved when any entry changes. A
tensor that moves no output of its case is VACUOUS, or DEAD if a glob of the case's `dead` names it and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch

from mlx_parity.case import Case
from mlx_parity.compare import BUDGET, FLOOR
from mlx_parity.report.sections import LivenessRow
from mlx_parity.sides.truth import Arrays, Reference, Truth, to_numpy, to_torch, truth_of

MOVED_BUDGETS = 5.0
DOUBT = 100.0  # below so many budgets, further float32 runs are measured too
RELATIVE = 0.1
MASKED = 0.2  # share of a mask's valid entries
MAX_ROWS = 2000  # rows of the report; above it the passing tensors of a case share one


def liveness(case: Case) -> list[LivenessRow]:
    """One row for each weight tensor and each input of a case."""
    given = truth_of(case)
    built = Reference(torch.float64).build(case.part, case.config, given.state)
    weights = built.state_dict(keep_vars=False) if isinstance(built, torch.nn.Module) else {}
    tensors = {k: to_torch(v, torch.float64) for k, v in given.inputs.items()}

    def run() -> Arrays:
        arguments = {k: v.clone() for k, v in tensors.items()}  # the original edits some in place
        with torch.inference_mode():
            found = case.part.call("reference", built, {**arguments, **case.call})
        return {k: np.array(to_numpy(v)) for k, v in found.items()}

    def change(name: str, tensor: torch.Tensor) -> AbstractContextManager[None]:
        return changed(tensor, case.rng(f"change/{name}"))

    rows = [
        _row(case, name, partial(change, name, tensor), run, given)
        for name, tensor in {**weights, **tensors}.items()
        if tensor.numel()
    ]
    return list(dict.fromkeys(rows))  # tensors that one glob declares dead share a row


def moved(truth: Arrays, singles: Sequence[Arrays], found: Arrays) -> float:
    """Largest change of any output in budgets; inf where an integer, a shape or an infinity changed.

    Args:
        truth: of the reference in float64.
        singles: its runs in float32, of which the least exact counts.
        found: of the reference in float64, after the change.
    """
    return max(_moved(truth[name], [single[name] for single in singles], found[name]) for name in truth)


@contextmanager
def changed(tensor: torch.Tensor, rng: np.random.Generator) -> Iterator[None]:
    """Change a tensor in place temporarily; it keeps its kind and range."""
    kept = tensor.clone()
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(_other(kept.numpy(), rng)))
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(kept)


def summarised(rows: Iterable[LivenessRow], most: int = MAX_ROWS) -> list[LivenessRow]:
    """Rows for the report; of more than `most`, the least moved tensor of a case stands for those that pass."""
    rows = list(rows)
    if len(rows) <= most:
        return rows
    kept = [row for row in rows if row.status != "PASS"]
    passed: dict[str, list[LivenessRow]] = {}
    for row in rows:
        if row.status == "PASS":
            passed.setdefault(row.case, []).append(row)
    for case, group in passed.items():
        least = min((row.moved_budgets for row in group if row.moved_budgets is not None), default=None)
        kept.append(LivenessRow(case, f"each of {len(group)} tensors", least, "PASS"))
    return kept


def _row(
    case: Case,
    name: str,
    change: Callable[[], Any],
    run: Callable[[], Arrays],
    given: Truth,
) -> LivenessRow:
    with change():
        found = run()
    distance = moved(given.double, [given.single], found)
    if distance < DOUBT:
        distance = moved(given.double, [given.single, *given.further], found)
    budgets = None if np.isinf(distance) else distance
    if distance >= MOVED_BUDGETS:
        return LivenessRow(case.name, name, budgets, "PASS")
    for glob, reason in case.dead.items():
        if fnmatchcase(name, glob):
            return LivenessRow(case.name, glob, None, "DEAD", reason)
    return LivenessRow(case.name, name, budgets, "VACUOUS")


def _other(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    is_mask = array.dtype == bool or (array.size > 0 and bool(np.isin(array, (0, 1)).all()))
    if is_mask and array.ndim:
        other = array.copy()
        valid = np.argwhere(array)
        for index in rng.permutation(valid)[: max(1, int(MASKED * len(valid)))]:
            other[tuple(index)] = 0
        return other
    if array.dtype.kind in "iu":
        other = array.copy()
        if array.size:
            first, ends = other.flat[0], int(array.min()) + int(array.max())
            other.flat[0] = ends - first if ends != 2 * first else first - 1
        return other
    return np.asarray(array * (1 + RELATIVE * rng.standard_normal(array.shape)))


def _moved(truth: np.ndarray, singles: Sequence[np.ndarray], found: np.ndarray) -> float:
    if truth.shape != found.shape:
        return float("inf")
    if truth.dtype.kind != "f":
        return float("inf") if (truth != found).any() else 0.0
    finite = np.isfinite(truth)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    if not finite.any():
        return 0.0
    t, f, *runs = (x[finite].astype(np.float64) for x in (truth, found, *singles))
    scale = float(np.sqrt(np.mean(t * t)))
    if scale == 0.0:
        return 0.0
    readings = []
    for size in (lambda e: float(np.sqrt(np.mean(e * e))), lambda e: float(np.abs(e).max())):
        readings.append(size(f - t) / scale / (BUDGET * max(FLOOR, *(size(s - t) / scale for s in runs))))
    return max(readings)
