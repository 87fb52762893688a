"""The transforms from source tensors to parameters of the port, for shapes and for values.

O output channels, I input channels, g groups, K taps (or H, W)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from port.config import CosyVoice3Config

Shape = tuple[int, ...]
ROTARY_THETA = 10000.0


@dataclass(frozen=True)
class Transform:
    """How arrays become one array: `apply(arrays, config)`, and the same for shapes alone, which finds a wrong shape
    before any data is read. Both return None for a tensor that is checked and dropped."""

    name: str
    shape: Callable[..., Shape | None]
    apply: Callable[[list[np.ndarray], CosyVoice3Config], np.ndarray | None]


def _channels_last(shape: Shape) -> Shape:
    out_channels, in_channels, *taps = shape
    if len(taps) not in (1, 2):
        raise ValueError
    return (out_channels, *taps, in_channels)


def _folded(gain: Shape, direction: Shape) -> Shape:
    if len(direction) != 3 or gain != (direction[0], 1, 1):
        raise ValueError
    return _channels_last(direction)


def fold_weight_norm(gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Weight of a weight-normed convolution, in the precision of its parts (float32, as the original folds most).

    Args:
        gain: (O, 1, 1), `original0` or `weight_g`.
        direction: (O, I/g, K), `original1` or `weight_v`.

    Returns:
        (O, I/g, K): gain * direction / norm of each output channel, without epsilon (torch.nn.utils.parametrizations).

    Raises:
        ValueError: an output channel of norm zero, which has no direction.
    """
    flat = direction.reshape(len(direction), -1)
    norm = np.sqrt((flat * flat).sum(axis=1))[:, None, None]
    if not norm.all():
        raise ValueError("weight norm of a channel that is all zeros")
    return gain * (direction / norm)


def fold_exactly(gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The same in float64, (2, O, I/g, K) float32: the weight rounded to float32, and the rounding error.

    For the pitch predictor, which the original folds and runs in float64: one rounded weight would change the phase
    of every later sample.

    Raises:
        ValueError: an output channel of norm zero.
    """
    weight = fold_weight_norm(gain.astype(np.float64), direction.astype(np.float64))
    rounded = weight.astype(np.float32)
    return np.stack([rounded, (weight - rounded).astype(np.float32)])


def _equal_to_witness(arrays: list[np.ndarray], _: CosyVoice3Config) -> None:
    copy, original = arrays
    if copy.ctypes.data != original.ctypes.data and not np.array_equal(copy, original):
        raise ValueError("differs from the tensor it is tied to")


def _dropped_pair(copy: Shape, original: Shape) -> None:
    if copy != original:
        raise ValueError


def _dropped_vector(shape: Shape) -> None:
    (_,) = shape


def _rotary_constant(arrays: list[np.ndarray], config: CosyVoice3Config) -> None:
    (inv_freq,) = arrays
    dim = config.flow.dit.dim_head
    expected = ROTARY_THETA ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    # Machines differ in the last bits of float32 pow; 4 ulp allow just that. A file saved in half precision holds
    # rounded numbers (11 bits, bfloat16 8), which are dropped all the same.
    eps = float(np.finfo(np.float32).eps)
    tolerances = [4 * eps, *(2.0**-bits for bits in (11, 8) if _has_bits(inv_freq, bits))]
    if inv_freq.shape != expected.shape or np.abs(inv_freq / expected - 1).max() > max(tolerances):
        raise ValueError(f"is not {ROTARY_THETA:g}^(-2j/{dim}), the rotary frequencies that the port computes")


def _has_bits(values: np.ndarray, bits: int) -> bool:
    """Whether all values fit exactly into so many bits of precision."""
    fraction = np.frexp(values)[0] * 2.0**bits
    return bool(np.array_equal(fraction, np.round(fraction)))


IDENTITY = Transform("identity", lambda shape: shape, lambda arrays, _: arrays[0])
CONV = Transform("convolution, input channels last", _channels_last, lambda arrays, _: np.moveaxis(arrays[0], 1, -1))
FOLD = Transform(
    "weight norm folded, input channels last",
    _folded,
    lambda arrays, _: np.moveaxis(fold_weight_norm(*arrays), 1, -1),
)
FOLD_EXACTLY = Transform(
    "weight norm folded in float64 to two summands, input channels last",
    lambda *shapes: (2, *_folded(*shapes)),
    lambda arrays, _: np.moveaxis(fold_exactly(*arrays), 2, -1),
)
CONV_AND_NOTHING = Transform(
    "convolution and a second summand of zeros, input channels last",
    lambda shape: (2, *_channels_last(shape)),
    lambda arrays, _: np.moveaxis(np.stack([arrays[0], np.zeros_like(arrays[0])]), 2, -1),
)
TIED = Transform("tied duplicate, compared and dropped", _dropped_pair, _equal_to_witness)
CONSTANT = Transform("constant, compared with its formula and dropped", _dropped_vector, _rotary_constant)
UNUSED = Transform("not of this model, dropped", lambda _: None, lambda *_: None)
