"""Fast forms of what the vocoder's plain layers compute; `port/fast/paths.py` chooses, and the result is the same.

b batch, n frames, C channels in, O channels out, K taps
"""

from __future__ import annotations

import math

import mlx.core as mx

from .convolution import compiles_exactly, polynomial
from .paths import active

# sin(r)^2 / r^2 as a polynomial in r^2, for |r| <= pi / 2: a least-squares fit of sin(r)^2 at Chebyshev nodes, off by
# 7e-9, a ninth of a float32 rounding (test_vocoder_fast.py makes it again). Highest power first.
SINE_SQUARED = (-3.53943322e-06, 0.000138705891, -0.00317073402, 0.0444412512, -0.333332115, 0.999999844)
# pi = PI_HIGH + PI_LOW; multiples of PI_HIGH up to 2^15 are exact in float32.
PI_HIGH, PI_LOW = 3.140625, 9.67653589793e-4
ROUNDER = 1.5 * 2.0**23  # adding and subtracting it rounds a float32 to a whole number, in two vector instructions


def sine_squared(y: mx.array) -> mx.array:
    """sin(y)^2, of any shape; by a polynomial where the path `fast_snake` is on and a CPU computes in float32."""
    paths, on_cpu = active(), mx.default_device().type == mx.DeviceType.cpu
    if paths.fast_snake and on_cpu and y.dtype == mx.float32:
        reduced, squared = (
            _FUSED if paths.compiled and compiles_exactly() else (reduce_angle, sine_squared_by_polynomial)
        )
        return squared(reduced(y))
    sine = mx.sin(y)
    return sine * sine  # a product, since MLX's power is slow


def reduce_angle(y: mx.array) -> mx.array:
    """Distance of float32 y from the nearest multiple of pi, in two steps (Cody and Waite): as exact as y is."""
    turns = (y * (1 / math.pi) + ROUNDER) - ROUNDER
    return (y - turns * PI_HIGH) - turns * PI_LOW


def sine_squared_by_polynomial(r: mx.array) -> mx.array:
    """sin(r)^2 for |r| <= pi / 2, without MLX's sine, which a CPU computes one number at a time."""
    square = r * r
    return polynomial(SINE_SQUARED[::-1], square) * square


_FUSED = mx.compile(reduce_angle), mx.compile(sine_squared_by_polynomial)  # apart, each is fused whole
