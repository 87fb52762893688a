"""The one judgement of the suite: port and float32 reference, each against the float64 reference.

For a tensor, with r32 the reference in float32, r64 the reference in float64 (the oracle) and p the port,

    e_ref = |r32 - r64| / rms(r64)     e_port = |p - r64| / rms(r64)     ratio = e_port / max(e_ref, FLOOR)

once with |.| the rms and once with |.| the largest absolute value. The tensor passes when both are at most BUDGET.
One float32 run may be lucky: where it leaves the ratio above LOOK_AGAIN, e_ref is the largest of runs whose sums
go in other orders (sides/orders_pytorch.py). And it is itself judged: a reference further than ROUNDINGS from the
oracle did not compute in float32.
Nothing here knows which module it looks at, so no module can have a tolerance of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_parity.report.data import BUDGET as NORMS
from mlx_parity.report.data import Status
from mlx_parity.where import POSITIONS, elements, error_map, largest

BUDGET, FLOOR = NORMS.ratio, NORMS.floor
LOOK_AGAIN = BUDGET / 2  # further runs can only lower a ratio: one far below the budget needs none
# Limit of the reference's error, in units of the change that rounding all inputs and weights once makes.
# The largest of any case is 16, of an integrated phase; where float32 gives 1, TF32 gives 4000 and bfloat16 65000.
ROUNDINGS = 128.0
HISTOGRAM_EDGES = tuple(float(e) for e in range(-12, 3))  # decades of |error| / rms(oracle)


@dataclass(frozen=True)
class Reading:
    """What the comparison of one tensor found; ratios are None for integers and when nothing could be compared."""

    status: Status
    message: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    e_ref_rms: float | None = None
    e_ref_max: float | None = None
    e_port_rms: float | None = None
    e_port_max: float | None = None
    ratio_rms: float | None = None
    ratio_max: float | None = None
    worst: dict[str, Any] | None = None
    histogram: dict[str, Any] | None = field(default=None, repr=False)
    worst_positions: list[dict[str, Any]] = field(default_factory=list, repr=False)
    error_map: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def ratio(self) -> float | None:
        return None if self.ratio_rms is None or self.ratio_max is None else max(self.ratio_rms, self.ratio_max)


def compare(
    port: np.ndarray,
    ref32: np.ndarray,
    ref64: np.ndarray,
    *,
    allow_inf: bool = False,
    further: Iterable[np.ndarray] = (),
    rounded: np.ndarray | None = None,
) -> Reading:
    """Judge one tensor of the port.

    Args:
        port: the port's result, any float, integer or bool dtype.
        ref32: the float32 reference's result.
        ref64: the float64 reference's result (the oracle).
        allow_inf: infinite entries are legitimate (masked scores); they must be at the same places with the same sign
            in all three, and do not count in the error.
        further: more float32 runs of the reference, in other orders, used if one leaves doubt.
        rounded: the oracle's result for inputs and weights moved by one float32 rounding, to detect a reference that
            computes in less than float32.

    Returns:
        PASS or FAIL; ERROR when the three cannot be compared (shape, kind of dtype, NaN, Inf, empty, one tensor twice)
        or the reference is not float32; VACUOUS when the oracle is all zero, so that agreement would prove nothing.
    """
    reading = _compare(port, ref32, ref64, allow_inf, (), rounded)
    if reading.ratio is not None and reading.ratio > LOOK_AGAIN and (runs := list(further)):
        return _compare(port, ref32, ref64, allow_inf, runs, rounded)
    return reading


def _compare(
    port: np.ndarray,
    ref32: np.ndarray,
    ref64: np.ndarray,
    allow_inf: bool,
    further: Iterable[np.ndarray],
    rounded: np.ndarray | None,
) -> Reading:
    arrays = {"port": np.asarray(port), "reference": np.asarray(ref32), "oracle": np.asarray(ref64)}
    port, ref32, ref64 = arrays.values()
    arrays |= {f"reference in order {i}": run for i, run in enumerate(further)}
    about: dict[str, Any] = {"shape": ref64.shape, "dtype": str(port.dtype)}
    if problem := _incomparable(arrays, allow_inf):
        return Reading("ERROR", problem, **about)
    if ref64.dtype.kind in "biu":
        return _compare_exact(port, ref32, ref64, about)

    finite = np.isfinite(ref64)
    p, r, o = (a.astype(np.float64)[finite] for a in (port, ref32, ref64))
    scale = math.sqrt(float(np.mean(o * o))) if o.size else 0.0
    if scale == 0.0:
        return Reading("VACUOUS", "the oracle is zero everywhere: nothing was compared", **about)
    error_ref, error_port = np.abs(r - o) / scale, np.abs(p - o) / scale
    if rounded is not None:
        one = max(_rms(rounded.astype(np.float64)[finite] - o) / scale, 2.0**-24)
        if (count := _rms(error_ref) / one) > ROUNDINGS:
            return Reading(
                "ERROR", f"the reference is {count:.0f} roundings off: it does not compute in float32", **about
            )
    runs = [error_ref, *(np.abs(run.astype(np.float64)[finite] - o) / scale for run in further)]
    e = {
        "e_ref_rms": max(_rms(error) for error in runs),
        "e_ref_max": max(float(error.max()) for error in runs),
        "e_port_rms": _rms(error_port),
        "e_port_max": float(error_port.max()),
    }
    ratio_rms = e["e_port_rms"] / max(e["e_ref_rms"], FLOOR)
    ratio_max = e["e_port_max"] / max(e["e_ref_max"], FLOOR)
    error = np.zeros(ref64.shape)
    error[finite] = error_port
    passed = max(ratio_rms, ratio_max) <= BUDGET
    message = (
        "" if passed else f"{max(ratio_rms, ratio_max):.3g}x the reference's own float32 error (budget {BUDGET:g}x)"
    )
    about |= {"ratio_rms": ratio_rms, "ratio_max": ratio_max, **e}
    positions = elements(largest(error, 1 if passed else POSITIONS), port, ref64, ref32)
    if passed:
        return Reading("PASS", message, worst=positions[0], **about)
    return Reading(
        "FAIL",
        message,
        worst=positions[0],
        worst_positions=positions,
        histogram=_histogram(error_ref, error_port),
        error_map=error_map(error),
        **about,
    )


def agreement(value: np.ndarray, truth: np.ndarray) -> float:
    """Relative rms distance of two float arrays of one shape, computed in float64; inf when they cannot be compared."""
    value, truth = np.asarray(value), np.asarray(truth)
    if value.shape != truth.shape or not truth.size:
        return math.inf
    finite = np.isfinite(truth)
    if not np.array_equal(value[~finite], truth[~finite]):
        return math.inf
    value, truth = value[finite].astype(np.float64), truth[finite].astype(np.float64)
    scale = _rms(truth)
    distance = _rms(value - truth)
    return distance / scale if scale else (0.0 if distance == 0.0 else math.inf)


def _rms(x: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(x, dtype=np.float64))))


def _incomparable(arrays: dict[str, np.ndarray], allow_inf: bool) -> str | None:
    port, reference, oracle = list(arrays.values())[:3]
    if any(np.shares_memory(port, other) for other in (reference, oracle)):
        return "the port's tensor is the reference's own: nothing was compared"
    for name, array in arrays.items():
        if array.shape != oracle.shape:
            return f"shape of {name} is {array.shape}, of the oracle {oracle.shape}"
        if array.dtype.kind not in "fbiu":
            return f"dtype of {name} is {array.dtype}: not a number"
        if (array.dtype.kind == "f") != (oracle.dtype.kind == "f"):
            return f"dtype of {name} is {array.dtype}, of the oracle {oracle.dtype}: float against integer"
    if oracle.size == 0:
        return "the tensor is empty: nothing was compared"
    if oracle.dtype.kind != "f":
        return None
    for name, array in arrays.items():
        if np.isnan(array).any():
            return f"{name} holds {int(np.isnan(array).sum())} NaN"
        if np.isinf(array).any():
            if not allow_inf:
                return f"{name} holds {int(np.isinf(array).sum())} Inf"
            if not np.array_equal(np.where(np.isinf(array), array, 0), np.where(np.isinf(oracle), oracle, 0)):
                return f"infinite entries of {name} and of the oracle are at different places"
    return None


def _compare_exact(port: np.ndarray, reference: np.ndarray, oracle: np.ndarray, about: dict[str, Any]) -> Reading:
    if not np.array_equal(reference, oracle):
        return Reading(
            "ERROR", "the reference's integers differ between float32 and float64, so the truth is unknown", **about
        )
    different = port.astype(np.int64) != oracle.astype(np.int64)
    if not different.any():
        return Reading("PASS", "", **about)
    places = np.flatnonzero(different)[:POSITIONS]
    positions = elements(places, *(x.astype(np.int64) for x in (port, oracle, reference)))
    return Reading(
        "FAIL",
        f"{int(different.sum())} of {different.size} integers differ, first at {positions[0]['index']}",
        worst=positions[0],
        worst_positions=positions,
        **about,
    )


def _histogram(error_ref: np.ndarray, error_port: np.ndarray) -> dict[str, Any]:
    def counts(error: np.ndarray) -> list[int]:
        decades = np.log10(np.maximum(error, 10.0 ** HISTOGRAM_EDGES[0]))
        return [int(n) for n in np.histogram(np.minimum(decades, HISTOGRAM_EDGES[-1]), HISTOGRAM_EDGES)[0]]

    return {"edges": list(HISTOGRAM_EDGES), "port": counts(error_port), "reference": counts(error_ref)}
