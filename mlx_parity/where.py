"""Location of one tensor's error: its worst elements, and a coarse map over its two largest axes."""

from __future__ import annotations

from typing import Any

import numpy as np

ROWS, COLUMNS, POSITIONS = 8, 32, 5


def largest(error: np.ndarray, count: int = POSITIONS) -> np.ndarray:
    """Flat indices of the largest values, the largest first."""
    flat = error.ravel()
    count = min(count, flat.size)
    places = np.argpartition(flat, flat.size - count)[flat.size - count :]
    return places[np.argsort(-flat[places], kind="stable")]


def elements(places: np.ndarray, port: np.ndarray, oracle: np.ndarray, reference: np.ndarray) -> list[dict[str, Any]]:
    """Index and value on each side of the elements at some flat places."""
    found = [tuple(int(i) for i in np.unravel_index(place, port.shape)) for place in places]
    sides = {"port": port, "oracle": oracle, "reference": reference}
    return [{"index": list(at)} | {name: side[at].item() for name, side in sides.items()} for at in found]


def error_map(error: np.ndarray) -> dict[str, Any]:
    """At most ROWS x COLUMNS cells over the two largest axes; a cell is the largest error of all that falls into it."""
    grid = error.reshape((1,) * max(2 - error.ndim, 0) + error.shape)
    missing = grid.ndim - error.ndim
    axes = sorted(sorted(range(grid.ndim), key=lambda axis: (grid.shape[axis], axis))[-2:])
    grid = grid.max(axis=tuple(axis for axis in range(grid.ndim) if axis not in axes))
    names = [
        f"axis {axis - missing} ({n} long)" if axis >= missing else "all"
        for axis, n in zip(axes, grid.shape, strict=True)
    ]
    for axis, most in enumerate((ROWS, COLUMNS)):
        n = grid.shape[axis]
        edges = np.arange(min(n, most)) * n // min(n, most)
        grid = np.maximum.reduceat(grid, edges, axis=axis)
    rows = [[float(f"{value:.3g}") for value in row] for row in grid.tolist()]
    return {"row_axis": names[0], "column_axis": names[1], "rows": rows}
