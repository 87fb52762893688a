"""The number of multiply-adds: no form does more than the reference, and no sum is too long for float32.

A useless tap of zeros, or one long sum over channels, changes results no more than another BLAS does, so no comparison
sees it. Here the products are counted; torch counts its own.
"""

from math import prod

import mlx.core as mx
import mlx.nn as nn
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlx_parity.sides.truth import Reference, reference_state
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases, marked
from port.fast import speed_up
from port.fast.convolution import LONGEST_SUM, ProductConv1d, adds_whole_products
from port.fast.modules import recast
from port.vocoder.convolution import CausalConv1dUpsample

PARTS = ("vocoder.conv", "vocoder.resblock", "vocoder.f0", "flow.conv_pos_embed", "flow.lookahead", "flow.feed_forward",
         "flow.attention", "flow.block", "flow.input_embed", "flow.dit", "llm.mlp", "llm.attention", "llm.layer",
         "llm.qwen2", "llm.scores")  # fmt: skip
COUNTED = [case for case in all_cases() if case.name.startswith(PARTS)]


class Products:
    """Multiply-adds of every matrix product and convolution, and the longest sum in one of them."""

    def __init__(self, monkeypatch):
        adds_whole_products(mx.default_device().type)  # it measures once, by a product that must not be counted
        self.count, self.longest = 0, 0

        def watch(place, name, size):
            original = getattr(place, name)

            def call(*args, **kwargs):
                result = original(*args, **kwargs)
                terms, times = size(result, *args)
                self.count += times * terms * result.size
                self.longest = max(self.longest, terms)
                return result

            monkeypatch.setattr(place, name, call)

        watch(mx.array, "__matmul__", lambda y, a, b, *_: (a.shape[-1], 1))
        watch(mx, "matmul", lambda y, a, b, *_: (a.shape[-1], 1))
        watch(mx, "addmm", lambda y, c, a, b, *_: (a.shape[-1], 1))
        watch(mx, "conv1d", lambda y, x, w, *_: (prod(w.shape[1:]), 1))
        watch(mx.fast, "scaled_dot_product_attention", lambda y, q, k, *_: (k.shape[-2], 2))


def of_torch(case):
    """Multiply-adds of the reference."""
    side = Reference(torch.float64 if case.name.startswith("vocoder.f0") else torch.float32)
    built = side.build(case.part, case.config, reference_state(case))
    inputs = {k: side.tensor(v) for k, v in case.draw().items()}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        case.part.call("reference", built, {**inputs, **case.call})
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("case", marked(COUNTED))
def test_a_plain_part_multiplies_as_often_as_the_reference_and_a_fast_one_no_more(case, monkeypatch):
    found = {}
    for name, forms in (("plain", ()), ("fast", None)):
        adapter = OwnPort(forms=forms)
        built = adapter.build(case.part, case.config, reference_state(case))
        with monkeypatch.context() as patch:
            products = Products(patch)
            adapter.call(case.part, built, case.draw(), case.call)
        found[name] = products.count
    expected = of_torch(case)
    assert expected > 0
    assert found["plain"] == expected
    assert found["fast"] <= expected


@pytest.mark.part("vocoder.convolution.CausalConv1dUpsample")
@pytest.mark.parametrize(("taps", "stride"), [(16, 8), (11, 5), (7, 3), (4, 4), (5, 4)])
def test_upsampling_needs_the_fewest_taps(taps, stride, monkeypatch):
    """Polyphase: each input frame serves `stride` phases, each of which reads as many frames as its taps can reach."""
    conv = speed_up(CausalConv1dUpsample(6, 10, taps, stride), ["polyphase", "products"])
    products = Products(monkeypatch)
    mx.eval(conv(mx.zeros((1, 9, 6))))
    reach = -(-(taps - 1) // stride) + 1  # frames back that the earliest phase sees, and the current one
    assert products.count == 9 * stride * 10 * reach * 6


@pytest.mark.part("fast.convolution")
@pytest.mark.parametrize("channels", [80, 256, 257, 1024])
@pytest.mark.parametrize("groups", [1, 2])
def test_products_are_short_enough_for_any_blas(channels, groups, monkeypatch):
    """A plain running sum of 1024 terms has six times the error of torch's blocked sum."""
    width, taps, frames = channels // groups, 3, 8
    conv = recast(nn.Conv1d(width * groups, 4, taps, groups=groups), ProductConv1d)
    conv.whole = True
    products = Products(monkeypatch)
    mx.eval(conv(mx.zeros((1, frames + taps - 1, width * groups))))
    assert products.longest <= 256
    assert products.count == frames * 4 * taps * width
    assert LONGEST_SUM == 256
