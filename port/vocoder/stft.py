"""The short-time Fourier transform at both ends of the vocoder (`_stft`, `_istft` in cosyvoice/hifigan/generator.py).

With 16 points a frame the transform is a product with a fixed matrix.

b batch, L samples, F frames = L // hop_len + 1, B bins = n_fft // 2 + 1
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

MAX_MAGNITUDE = 1e2


def hann_window(n_fft: int) -> np.ndarray:
    """Periodic Hann window (n_fft,), float64 rounded to float32 like scipy's; torch.hann_window differs by 1e-7."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def stft(x: mx.array, n_fft: int, hop_len: int) -> tuple[mx.array, mx.array]:
    """Transform (b, L) samples to the real and imaginary parts, each (b, F, B); centred frames, reflected edges.

    Raises:
        ValueError: `hop_len` does not divide `n_fft`, or half a frame is not shorter than `x`.
    """
    pad = n_fft // 2
    if x.shape[1] <= pad:
        raise ValueError(f"stft: {x.shape[1]} samples cannot be reflected by {pad}")
    return analyse(mx.concatenate([x[:, pad:0:-1], x, x[:, -2 : -pad - 2 : -1]], axis=1), n_fft, hop_len)


def analyse(x: mx.array, n_fft: int, hop_len: int) -> tuple[mx.array, mx.array]:
    """The spectra of all whole frames in (b, L) samples, (L - n_fft) // hop_len + 1 of them; like `stft` without edges.

    Raises:
        ValueError: `hop_len` does not divide `n_fft`.
    """
    (b, samples), hops, bins = x.shape, _hops_per_frame(n_fft, hop_len), n_fft // 2 + 1
    frames = (samples - n_fft) // hop_len + 1
    x = x[:, : (frames + hops - 1) * hop_len].reshape(b, frames + hops - 1, hop_len)
    x = mx.concatenate([x[:, hop : hop + frames] for hop in range(hops)], axis=2)  # (b, F, n_fft)
    spec = x @ mx.array(_analysis(n_fft))
    return spec[..., :bins], spec[..., bins:]


def istft(magnitude: mx.array, phase: mx.array, n_fft: int, hop_len: int) -> mx.array:
    """Transform magnitude and phase (radians), each (b, F, B), to (b, (F - 1) * hop_len) samples.

    Magnitudes above 100 are clipped. The imaginary parts of the first and the last bin are ignored.

    Raises:
        ValueError: `hop_len` does not divide `n_fft`.
    """
    b, frames, _ = magnitude.shape
    x = overlap_add(magnitude, phase, n_fft, hop_len).reshape(b, -1)
    trim = slice(n_fft // 2, n_fft // 2 + (frames - 1) * hop_len)
    return x[:, trim] * mx.array((1 / envelope(frames, n_fft, hop_len).reshape(-1)[trim]).astype(np.float32))


def overlap_add(magnitude: mx.array, phase: mx.array, n_fft: int, hop_len: int) -> mx.array:
    """The windowed frames of (b, F, B) spectra added up where they overlap: (b, F + n_fft / hop_len - 1, hop_len).

    Raises:
        ValueError: `hop_len` does not divide `n_fft`.
    """
    (b, frames, _), hops = magnitude.shape, _hops_per_frame(n_fft, hop_len)
    magnitude = mx.minimum(magnitude, MAX_MAGNITUDE)
    spec = mx.concatenate([magnitude * mx.cos(phase), magnitude * mx.sin(phase)], axis=2)
    x = (spec @ mx.array(_synthesis(n_fft))).reshape(b, frames, hops, hop_len)
    # Each hop of the output is a sum over the frames that cover it.
    added: Any = sum(mx.pad(x[:, :, hop], [(0, 0), (hop, hops - 1 - hop), (0, 0)]) for hop in range(hops))
    return added


def envelope(frames: int, n_fft: int, hop_len: int) -> np.ndarray:
    """The squared windows of `frames` frames added up: (F + n_fft / hop_len - 1, hop_len) float64."""
    hops = _hops_per_frame(n_fft, hop_len)
    window = np.square(hann_window(n_fft).astype(np.float64)).reshape(hops, hop_len)
    sums = np.zeros((frames + hops - 1, hop_len))
    for hop in range(hops):
        sums[hop : hop + frames] += window[hop]
    return sums


def _hops_per_frame(n_fft: int, hop_len: int) -> int:
    if n_fft % hop_len:
        raise ValueError(f"hop_len {hop_len} must divide n_fft {n_fft}")
    return n_fft // hop_len


@lru_cache(maxsize=4)
def _analysis(n_fft: int) -> np.ndarray:
    """(n_fft, 2 B) float32: windowed cosines, then windowed negative sines."""
    angle = 2 * np.pi / n_fft * (np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) % n_fft)
    return (hann_window(n_fft)[:, None] * np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)).astype(np.float32)


@lru_cache(maxsize=4)
def _synthesis(n_fft: int) -> np.ndarray:
    """(2 B, n_fft) float32: from the real, then the imaginary parts to a windowed frame."""
    angle = 2 * np.pi / n_fft * (np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) % n_fft)
    sides = np.where(np.arange(n_fft // 2 + 1) % (n_fft // 2) == 0, 1.0, 2.0)[:, None] / n_fft
    sines = np.where(sides * n_fft == 1, 0.0, -np.sin(angle))
    return (hann_window(n_fft) * np.concatenate([sides * np.cos(angle), sides * sines])).astype(np.float32)
