"""Transforms of weights, tested alone, so that a wrong fold is not blamed on the layer that it fills."""

import numpy as np
import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from convert.transforms import fold_exactly, fold_weight_norm
from mlx_parity.compare import compare
from mlx_parity.judge import Row

pytestmark = pytest.mark.part("convert.transforms")

SHAPES = {"wide": (24, 16, 7), "one tap": (8, 5, 1), "one channel": (1, 30, 3)}


def torchs(gain, direction, dtype):
    """The weight that torch computes for a weight-normed convolution."""
    rows, channels, taps = direction.shape
    conv = weight_norm(torch.nn.Conv1d(channels, rows, taps, dtype=dtype))
    conv.parametrizations.weight.original0.data = torch.from_numpy(gain).to(dtype)
    conv.parametrizations.weight.original1.data = torch.from_numpy(direction).to(dtype)
    return conv.weight.detach().numpy()


@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["usual", "small"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_norm_is_torchs(parity, shape, size):
    """Gains of either sign, directions of any length."""
    rng = np.random.default_rng(len(shape))
    gain = rng.standard_normal((SHAPES[shape][0], 1, 1)).astype(np.float32)
    direction = (size * rng.standard_normal(SHAPES[shape])).astype(np.float32)
    single, double = (torchs(gain, direction, dtype) for dtype in (torch.float32, torch.float64))
    name = f"conversion.weight_norm.{shape.replace(' ', '_')}.{size:g}"
    reading = compare(fold_weight_norm(gain, direction), single, double)
    rows = [Row(name, "conversion", "exact", "convert.transforms", name, reading)]
    summands = fold_exactly(gain, direction).astype(np.float64)
    assert np.abs(summands.sum(axis=0) / double - 1).max() < 1e-13, "two float32 summands hold 48 bits"
    parity.add(rows)
