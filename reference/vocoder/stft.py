"""The short-time Fourier transform at both ends of the vocoder (`_stft`, `_istft` in cosyvoice/hifigan/generator.py).

b batch, L samples, F frames = L // hop_len + 1, B bins = n_fft // 2 + 1
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_MAGNITUDE = 1e2


def hann_window(n_fft: int) -> np.ndarray:
    """Periodic Hann window (n_fft,), float64 rounded to float32 like scipy's; torch.hann_window differs by 1e-7."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


def stft(x: Tensor, n_fft: int, hop_len: int) -> tuple[Tensor, Tensor]:
    """Transform (b, L) samples to the real and imaginary parts, each (b, B, F); centred frames, reflected edges."""
    spec = torch.stft(x, n_fft, hop_len, n_fft, window=_window(x, n_fft), return_complex=True)
    return spec.real, spec.imag


def istft(magnitude: Tensor, phase: Tensor, n_fft: int, hop_len: int) -> Tensor:
    """Transform magnitude and phase (radians), each (b, B, F), to (b, (F - 1) * hop_len) samples.

    Magnitudes above 100 are clipped. The imaginary parts of the first and the last bin are ignored.
    """
    magnitude = torch.clip(magnitude, max=MAX_MAGNITUDE)
    spec = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
    return torch.istft(spec, n_fft, hop_len, n_fft, window=_window(magnitude, n_fft))


def _window(like: Tensor, n_fft: int) -> Tensor:
    return torch.from_numpy(hann_window(n_fft)).to(like)
