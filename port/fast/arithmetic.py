"""Activations without the CPU's scalar exp, tanh and sine; the result is the same up to rounding.

MLX's CPU back end computes those one number at a time. Polynomials need only operations that every device vectorises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..vocoder.generator import Snake
from .modules import recast, replace

Function = Callable[[mx.array], mx.array]

EXP_DEGREE = 6  # the polynomial's error is 2e-9, a thirtieth of a float32 rounding error
LOG2_E = math.log2(math.e)
ROUNDER = 1.5 * 2.0**23  # adding it leaves the nearest integer in a float32's last bits
MANTISSA_BITS, ONE_BITS = 23, 127 << 23
EXP_RANGE = 126.0  # beyond, 2^x or its inverse is no normal float32
MISH_RANGE = 60.0  # log2(e) x from which tanh(softplus(x)) is 1; the square of 2^60 is still a float32
MAX_KERNELS = 512  # compiled functions to keep, one per shape
TANH_SCALE, TANH_CUBE = math.sqrt(2 / math.pi), 0.044715  # torch.nn.functional.gelu, approximate="tanh"
# sin(r)^2 / r^2 as a polynomial in r^2, for |r| <= pi / 2: a least-squares fit of sin(r)^2 at Chebyshev nodes, off by
# 7e-9, a ninth of a float32 rounding (test_vocoder_fast.py makes it again). Highest power first.
SINE_SQUARED = (-3.53943322e-06, 0.000138705891, -0.00317073402, 0.0444412512, -0.333332115, 0.999999844)
# pi = PI_HIGH + PI_LOW; multiples of PI_HIGH up to 2^15 are exact in float32.
PI_HIGH, PI_LOW = 3.140625, 9.67653589793e-4
# Eight digits: what a compiled graph makes of it tells whether it holds its function's constants.
EIGHT_DIGITS = 12582913.0


def on_cpu() -> bool:
    """Whether the default device, at the time of the call, is a CPU."""
    return mx.default_device().type == mx.DeviceType.cpu


def compiles_exactly() -> bool:
    """Whether `mx.compile` keeps the constants of a function, on the default device.

    Before 0.32.3 MLX wrote them with seven digits, which turns the bits that `exp2` makes a power of two of.
    """
    return _keeps_constants(mx.default_device().type)


@lru_cache(maxsize=2)
def _keeps_constants(device: mx.DeviceType) -> bool:
    # Two elements: a single one is added without a kernel of its own.
    return mx.compile(lambda x: x + EIGHT_DIGITS)(mx.zeros(2)).tolist() == [EIGHT_DIGITS] * 2


def polynomial(coefficients: Sequence[float], x: mx.array) -> mx.array:
    """Of any shape, from the coefficient of x^0 up.

    Estrin's scheme has a short chain. MLX fuses about eleven operations in a row; longer chains are split, and a split
    kernel may read a scalar constant like an array, which is 2-3x slower.
    """
    terms: list[Any] = list(coefficients)  # numbers at first, then arrays
    while len(terms) > 1:
        odd = terms[-1:] if len(terms) % 2 else []
        terms = [low + high * x for low, high in zip(terms[::2], terms[1::2], strict=False)] + odd
        x = x * x
    return terms[0]


@lru_cache(maxsize=MAX_KERNELS)
def _compiled(function: Function, shape: tuple[int, ...]) -> Function:
    # A separate function for each shape: MLX keeps a compiled graph as long as its function lives.
    return mx.compile(lambda x: function(x))


def fused(function: Function) -> Function:
    """The elementwise `function`, compiled to few kernels if the default device compiles exactly.

    Compiled per shape: without shapes MLX fuses less, and views not at all.
    """
    return (lambda x: _compiled(function, x.shape)(x)) if compiles_exactly() else function


@lru_cache(maxsize=1)
def _exp2_coefficients() -> tuple[float, ...]:
    """Of 2^r for |r| <= 1 / 2, lowest power first: interpolation at Chebyshev's points."""
    fit = np.polynomial.Chebyshev.interpolate(np.exp2, EXP_DEGREE, domain=[-0.5, 0.5])
    return tuple(map(float, fit.convert(kind=np.polynomial.Polynomial).coef))


def exp2(x: mx.array) -> mx.array:
    """2^x to 2e-7, float32, at +-EXP_RANGE where `x` is beyond: 2^k 2^r with k the nearest integer, 2^k of its bits."""
    x = mx.where(x < -EXP_RANGE, -EXP_RANGE, mx.where(x > EXP_RANGE, EXP_RANGE, x))
    shifted = x + ROUNDER
    power = mx.view((mx.view(shifted, mx.int32) << MANTISSA_BITS) + ONE_BITS, mx.float32)
    return polynomial(_exp2_coefficients(), x - (shifted - ROUNDER)) * power


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU by its tanh, x (1 + tanh u) / 2, as x / (1 + e^-2u); float32."""
    return x / (1 + exp2((-2 * LOG2_E * TANH_SCALE) * (x + TANH_CUBE * (x * x * x))))


def mish(x: mx.array) -> mx.array:
    """Mish, x tanh(log(1 + e^x)), as x t / (t + 2) with t = e^x (e^x + 2); float32."""
    y = exp2(mx.minimum(LOG2_E * x, MISH_RANGE))
    t = y * (y + 2)
    return x * (t / (t + 2))


def silu(x: mx.array) -> mx.array:
    """SiLU, x / (1 + e^-x); float32."""
    return x / (1 + exp2(-LOG2_E * x))


def reduce_angle(y: mx.array) -> mx.array:
    """Distance of float32 y from the nearest multiple of pi, in two steps (Cody and Waite): as exact as y is."""
    turns = (y * (1 / math.pi) + ROUNDER) - ROUNDER
    return (y - turns * PI_HIGH) - turns * PI_LOW


def sine_squared(r: mx.array) -> mx.array:
    """sin(r)^2 for |r| <= pi / 2."""
    square = r * r
    return polynomial(SINE_SQUARED[::-1], square) * square


class Activation(nn.Module):
    """Replaces an activation of MLX; inputs that are not float32 still use the original.

    Args:
        function: float32 of any shape -> the same.
        plain: the replaced activation.
    """

    def __init__(self, function: Function, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain
        self._function = fused(function)

    def __call__(self, x: mx.array) -> mx.array:
        return self._function(x) if x.dtype == mx.float32 else self.plain(x)


class PolynomialSnake(Snake):
    """`Snake` with a polynomial for the sine."""

    def __call__(self, x: mx.array) -> mx.array:
        """Apply to (b, n, C)."""
        y = x * self.alpha
        if y.dtype != mx.float32:
            return super().__call__(x)
        # Two functions, each fused completely by MLX.
        return x + (1.0 / (self.alpha + 1e-9)) * self._squared(self._reduced(y))


def activations(model: nn.Module) -> nn.Module:
    """Replace GELU (tanh), Mish, SiLU and Snake."""

    def gelu(plain: nn.GELU) -> nn.Module:
        return Activation(gelu_tanh, plain) if plain._approx == "tanh" else plain

    def snake(plain: Snake) -> Snake:
        made = recast(plain, PolynomialSnake)
        made._reduced, made._squared = fused(reduce_angle), fused(sine_squared)
        return made

    forms: dict[type[nn.Module], Callable[[Any], nn.Module]] = {nn.GELU: gelu, Snake: snake}
    forms |= {nn.Mish: lambda plain: Activation(mish, plain), nn.SiLU: lambda plain: Activation(silu, plain)}
    return replace(model, forms)
