"""Which convolution back end runs where: chosen by device, overridable, the same result either way."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from port.fast import convolution as ops


@pytest.mark.parametrize(
    ("device", "metal", "groups", "matmul"),
    [
        (mx.cpu, True, 1, True),
        (mx.cpu, False, 16, True),
        (mx.gpu, True, 1, False),
        (mx.gpu, True, 16, False),
        (mx.gpu, False, 1, False),
        (mx.gpu, False, 16, True),
    ],
    ids=["cpu", "cpu groups", "metal", "metal groups", "cuda", "cuda groups"],
)
def test_the_device_decides(monkeypatch, device, metal, groups, matmul):
    monkeypatch.setattr(ops.mx, "default_device", lambda: mx.Device(device))
    monkeypatch.setattr(ops.mx.metal, "is_available", lambda: metal)
    assert ops.uses_matmul(groups) is matmul
    with ops.conv_backend("native"):
        assert ops.uses_matmul(groups) is False
    with ops.conv_backend("matmul"):
        assert ops.uses_matmul(groups) is True


@pytest.mark.parametrize("backend", ["matmul", "native"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (3, 1), (1, 5), (2, 3)])
def test_both_back_ends_are_torchs_convolution(backend, groups, stride, dilation):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 41, 8)), rng.standard_normal((12, 5, 8 // groups))
    bias = rng.standard_normal(12)
    truth = torch.nn.functional.conv1d(
        torch.from_numpy(x).mT, torch.from_numpy(weight).mT, torch.from_numpy(bias), stride, 0, dilation, groups
    ).mT.numpy()
    arrays = (mx.array(a.astype(np.float32)) for a in (x, weight, bias))
    with ops.conv_backend(backend):
        found = np.array(ops.conv1d(*arrays, stride=stride, dilation=dilation, groups=groups))
    assert np.abs(found - truth).max() < 4e-6 * np.abs(truth).max()


def test_an_unknown_back_end_is_refused():
    with pytest.raises(ValueError, match="auto, native or matmul"), ops.conv_backend("fast"):
        pass


def test_a_weight_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit 6 channels"):
        ops.conv1d(mx.zeros((1, 9, 6)), mx.zeros((4, 3, 5)))
    with pytest.raises(ValueError, match="fewer than the 11"):
        ops.conv1d(mx.zeros((1, 9, 6)), mx.zeros((4, 3, 6)), dilation=5)
