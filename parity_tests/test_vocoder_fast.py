"""Fast paths of the vocoder: each alone, none and all but one within the budget of the suite."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from parity_tests.cases.vocoder import CASES
from parity_tests.harness.compare import FLOOR
from port.fast import arithmetic as fast
from port.fast import convolution as ops
from port.fast.convolution import conv1d, conv_backend, tap_order
from port.fast.paths import ALL_FAST, PLAIN, fast_paths
from port.vocoder.convolution import CausalConv1d, CausalConv1dDownSample, CausalConv1dUpsample

ITS = ("fast_snake", "polyphase", "padded_channels", "compiled")
SETTINGS = {
    "none": PLAIN,
    **{name: replace(PLAIN, **{name: True}) for name in ITS},
    **{f"all_but_{name}": replace(ALL_FAST, **{name: False}) for name in ITS},
}
PARTS = ("vocoder.snake", "vocoder.decode.end", "vocoder.decode.more", "vocoder.inference.end")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("part", PARTS)
def test_parity_of_each_path(parity, part, setting):
    rows = [case for case in CASES if case.name == part]
    assert rows, f"no case {part}"
    with fast_paths(SETTINGS[setting]):
        parity.check(replace(rows[0], name=f"{part}.{setting}"))


def test_the_native_back_end_with_padded_channels(parity):
    (row,) = (case for case in CASES if case.name == "vocoder.decode.end")
    with conv_backend("native"):
        parity.check(replace(row, name="vocoder.decode.end.native"))


def test_the_polynomial_is_the_fit_it_says():
    """Least squares of sin(r)^2 / r^2 in r^2 at Chebyshev nodes of |r| <= pi / 2, weighted by r^2."""
    r = np.cos(np.pi * (np.arange(2000) + 0.5) / 2000) * np.pi / 2
    powers = np.stack([r ** (2 * k) for k in range(len(fast.SINE_SQUARED))], axis=1)
    fitted, *_ = np.linalg.lstsq(powers * (r * r)[:, None], np.sin(r) ** 2, rcond=None)
    np.testing.assert_allclose(fast.SINE_SQUARED, fitted[::-1], rtol=2e-3)
    found = (powers @ np.array(fast.SINE_SQUARED[::-1])) * r * r
    assert np.abs(found - np.sin(r) ** 2).max() < 2e-8


@pytest.mark.parametrize("largest", [1.0, 30.0, 1000.0, 30000.0])
def test_sine_squared_is_as_exact_as_mlx(largest):
    y = np.linspace(-largest, largest, 100_001).astype(np.float32)
    truth = np.sin(y.astype(np.float64)) ** 2
    found = np.array(fast.sine_squared_by_polynomial(fast.reduce_angle(mx.array(y))))
    sine = np.array(mx.sin(mx.array(y)))
    assert np.abs(found - truth).max() <= max(4 * FLOOR, 2 * np.abs(sine * sine - truth).max())


def test_compiled_is_bitwise_the_same(monkeypatch):
    y = mx.array(np.random.default_rng(0).standard_normal((2, 50, 64)).astype(np.float32) * 9)
    with fast_paths(compiled=True):
        one = np.array(fast.sine_squared(y))
    with fast_paths(compiled=False):
        other = np.array(fast.sine_squared(y))
    np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(fast, "compiles_exactly", lambda: False)
    monkeypatch.setattr(fast, "_FUSED", None)
    with fast_paths(compiled=True):
        np.testing.assert_array_equal(np.array(fast.sine_squared(y)), other)


@pytest.mark.parametrize(("channels", "out"), [(18, 18), (3, 18), (18, 7), (16, 32)])
def test_padded_channels_change_nothing_but_the_sizes(channels, out, monkeypatch):
    rng = np.random.default_rng(0)
    x, weight = (mx.array(rng.standard_normal(s).astype(np.float32)) for s in ((2, 20, channels), (out, 3, channels)))
    seen = []
    real = mx.conv1d
    monkeypatch.setattr(ops.mx, "conv1d", lambda x, w, **k: seen.append(w.shape) or real(x, w, **k))
    with conv_backend("native"):
        padded = conv1d(x, weight)
        with fast_paths(padded_channels=False):
            plain = conv1d(x, weight)
    np.testing.assert_allclose(np.array(padded), np.array(plain), rtol=0, atol=1e-5)
    (wide_out, _, wide_in), bare = seen
    assert bare == weight.shape
    assert wide_in <= 4 or wide_in % 16 == 0
    assert wide_out <= 16 or wide_out % 16 == 0


def test_tap_order_is_a_layout():
    weight = mx.array(np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32))
    np.testing.assert_array_equal(np.array(tap_order(weight)), np.array(weight))


@pytest.mark.parametrize("change", ["value", "load_weights", "dtype"])
def test_rearranged_weights_follow_a_change(change):
    """What a fast path made of old weights must not outlive them."""
    rng = np.random.default_rng(0)
    layers = [CausalConv1dUpsample(12, 8, 7, 3), CausalConv1d(12, 8, 5), CausalConv1dDownSample(12, 8, 6, 3)]
    x = mx.array(rng.standard_normal((1, 20, 12)).astype(np.float32))
    for layer in layers:
        before = np.array(layer(x))
        other = mx.array(rng.standard_normal(layer.weight.shape).astype(np.float32))
        if change == "value":
            layer.weight = other
        elif change == "load_weights":
            layer.load_weights([("weight", other), ("bias", layer.bias)])
        else:
            layer.set_dtype(mx.float16)
        found = np.array(layer(x).astype(mx.float32))
        with fast_paths(PLAIN):
            plain = np.array(layer(x).astype(mx.float32))
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5 if change != "dtype" else 2e-2)
        assert change == "dtype" or np.abs(found - before).max() > 0.1
        assert change != "dtype" or layer.weight.dtype == mx.float16
