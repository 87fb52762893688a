"""Fast forms of the vocoder are within the budget: each alone, none, and all but one."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_parity.compare import FLOOR
from mlx_parity.judge import judge
from parity_tests.adapters.own import OwnPort
from parity_tests.cases.vocoder import CASES, GENERATOR, HIFT
from parity_tests.parts import PARTS
from port.fast import arithmetic as fast
from port.fast import convolution, replaced, speed_up
from port.fast.convolution import tap_order
from port.vocoder.convolution import CausalConv1d, CausalConv1dUpsample

pytestmark = pytest.mark.part("fast.arithmetic")

# What each form puts into the vocoder.
CLASSES = {
    "activations": {"PolynomialSnake"},
    "polyphase": {"PolyphaseUpsample"},
    "products": {"ProductCausalConv1d", "ProductDownSample", "ProductUpsample"},
    "padded": {"PaddedCausalConv1d", "PaddedDownSample", "PaddedUpsample"},
    "double": {"HeldDoubleConv1d"},
}
SETTINGS = {
    "none": (),
    **{name: (name,) for name in CLASSES},
    **{f"all_but_{name}": tuple(set(CLASSES) - {name, "padded"}) for name in CLASSES if name != "padded"},
    "as_on_metal": ("polyphase", "padded", "double"),
}
SOME = ("vocoder.snake", "vocoder.decode.end", "vocoder.decode.more", "vocoder.inference.end")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("part", SOME)
def test_parity_of_each_form(parity, part, setting):
    (row,) = (case for case in CASES if case.name == part)
    parity.add(judge(replace(row, name=f"{part}.{setting}"), OwnPort(parity.adapter.precision, SETTINGS[setting])))


@pytest.mark.parametrize("form", CLASSES)
def test_a_requested_form_is_put_in_place(form):
    built = PARTS[f"{GENERATOR}.inference"].build("port", {**HIFT, "base_channels": 48})
    assert set(replaced(speed_up(built, [form]))) == CLASSES[form]


def test_the_polynomial_is_the_stated_fit():
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
    found = np.array(fast.sine_squared(fast.reduce_angle(mx.array(y))))
    sine = np.array(mx.sin(mx.array(y)))
    assert np.abs(found - truth).max() <= max(4 * FLOOR, 2 * np.abs(sine * sine - truth).max())


def test_a_compiled_function_gives_the_same_bits():
    y = mx.array(np.random.default_rng(0).standard_normal((2, 50, 64)).astype(np.float32) * 9)
    for function in (fast.reduce_angle, fast.sine_squared):
        np.testing.assert_array_equal(np.array(fast.fused(function)(y)), np.array(function(y)))


@pytest.mark.parametrize(("channels", "out"), [(18, 18), (3, 18), (18, 7), (16, 32)])
def test_padded_channels_change_only_sizes(channels, out):
    plain, x = CausalConv1d(channels, out, 3), mx.array(np.random.default_rng(0).random((2, 20, channels), np.float32))
    expected = np.array(plain(x))
    padded = speed_up(plain, ["padded"])
    np.testing.assert_allclose(np.array(padded(x)), expected, rtol=0, atol=1e-5)
    wide_out, _, wide_in = padded.weight.shape
    assert wide_in <= 4 or wide_in % 16 == 0
    assert wide_out <= 16 or wide_out % 16 == 0
    assert (padded is plain) is ((channels, out) == (16, 32))


def test_tap_order_changes_the_layout_only():
    weight = mx.array(np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32))
    np.testing.assert_array_equal(np.array(tap_order(weight)), np.array(weight))


def test_a_cache_without_repeated_frames_is_read_unchanged():
    plain, rng = CausalConv1dUpsample(6, 4, 7, 3), np.random.default_rng(0)
    x, cache = (mx.array(rng.random((1, n, 6), np.float32)) for n in (5, 6))
    expected = np.array(plain(x, cache))
    fast_form = speed_up(plain, ["polyphase"])
    assert isinstance(fast_form, convolution.PolyphaseUpsample)
    np.testing.assert_array_equal(np.array(fast_form(x, cache)), expected)
