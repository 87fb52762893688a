"""The device chooses the form of a convolution; the result is the same."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

from port.fast import chosen, convolution, replaced, speed_up
from port.fast.modules import recast
from port.flow.layers import CausalConvPositionEmbedding
from port.vocoder.convolution import CausalConv1d

pytestmark = pytest.mark.part("fast.convolution")


@pytest.mark.parametrize(
    ("device", "metal", "bare", "grouped"),
    [
        (mx.cpu, True, ["ProductCausalConv1d"], ["ProductConv1d"]),
        (mx.cpu, False, ["ProductCausalConv1d"], ["ProductConv1d"]),
        (mx.gpu, True, ["PaddedCausalConv1d"], []),
        (mx.gpu, False, ["PaddedCausalConv1d"], ["ProductConv1d"]),
    ],
    ids=["cpu", "cpu without metal", "metal", "cuda"],
)
def test_the_device_chooses_the_form(monkeypatch, device, metal, bare, grouped):
    monkeypatch.setattr(convolution.mx, "default_device", lambda: mx.Device(device))
    monkeypatch.setattr(convolution.mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(convolution, "adds_whole_products", lambda _: True)  # whose answer depends on the device
    forms = set(chosen()) & {"products", "padded"}
    assert replaced(speed_up(CausalConv1d(18, 18, 3), forms, lazy=True)) == bare
    assert replaced(speed_up(CausalConvPositionEmbedding(32, 5, 4), forms, lazy=True)) == grouped


@pytest.mark.parametrize("kind", ["products", "native"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("stride", "dilation", "padding"), [(1, 1, 0), (3, 1, 0), (1, 5, 2), (2, 3, 0)])
def test_each_form_equals_torchs_convolution(kind, groups, stride, dilation, padding):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 41, 8)), rng.standard_normal((12, 5, 8 // groups))
    bias = rng.standard_normal(12)
    truth = torch.nn.functional.conv1d(
        torch.from_numpy(x).mT, torch.from_numpy(weight).mT, torch.from_numpy(bias), stride, padding, dilation, groups
    ).mT.numpy()
    conv = nn.Conv1d(8, 12, 5, stride, padding, dilation, groups)
    if kind == "products":
        conv = recast(conv, convolution.ProductConv1d)
        conv.whole = convolution.adds_whole_products(mx.default_device().type)
    frames, conv.weight, conv.bias = (mx.array(a.astype(np.float32)) for a in (x, weight, bias))
    assert np.abs(np.array(conv(frames)) - truth).max() < 4e-6 * np.abs(truth).max()


def test_too_few_frames_are_refused():
    conv = recast(nn.Conv1d(6, 4, 3, dilation=5), convolution.ProductConv1d)
    with pytest.raises(ValueError, match="fewer than the 11"):
        conv(mx.zeros((1, 9, 6)))
