"""Values that are a convention between two parts, as what the next part makes of them.

Attention sees how far apart two positions are; from which one they are counted is free. Here all are turned back by the
first, so that positions counted from 1 are equal to those counted from 0, and nothing else is.

n positions, d width of a head, c channels
"""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def turns(results: Arrays) -> Arrays:
    """Angles (1, n, d) -> where they point."""
    angles = results["freqs"].astype(np.float64)
    angles = angles - angles[:, :1]
    return {"freqs": np.stack((np.cos(angles), np.sin(angles)))}


def table_turns(results: Arrays) -> Arrays:
    """Cosines and sines (n, d) -> the same of the angles between."""
    z = results["cos"].astype(np.float64) + 1j * results["sin"]
    z = z * z[:1].conj()
    return {"tables": np.stack((z.real, z.imag))}


def turned(results: Arrays) -> Arrays:
    """Rotated channels (..., n, c), of which adjacent ones are a pair -> what the pairs turn by, and their lengths."""
    y = results["y"].astype(np.float64)
    z = y[..., ::2] + 1j * y[..., 1::2]
    z = z * z[..., :1, :].conj()
    return {"y": np.stack((z.real, z.imag))}
