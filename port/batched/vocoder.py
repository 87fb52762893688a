"""The vocoder over several mels at once.

Two layers look ahead, and both read mel: the first of the pitch predictor and `conv_pre`. Alone a row ends in zeros
there, so a shorter row is filled up with zeros. All other layers look into the past, so that no sample of a row depends
on what follows it. Source and both transforms, whose edges are reflected or cut, are made for each row alone.

b rows, n frames, C mel bins, L samples, F STFT frames
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..stream.vocoder import noise_of
from ..vocoder.generator import CausalHiFTGenerator
from ..vocoder.stft import istft, stft
from .rows import Limits, limits_by_device, padded

FRAME_BYTES = 460_000  # at the official size in float32, measured on a CPU
# Its 120 spectra a frame fill a CPU by themselves: rows side by side took as long as one by one. Of a GPU: a second,
# not measured.
CPU_LIMITS, GPU_PADDING = Limits(0, 0), 50


def waves(
    vocoder: CausalHiFTGenerator, mels: Sequence[mx.array], sine_waves: Sequence[mx.array | None] | None = None
) -> list[mx.array]:
    """Samples of each mel: (1, n_i * hop_samples) float32 within +-audio_limit, in the order of `mels`.

    Each is what `CausalHiFTGenerator.inference` gives for the mel alone, up to rounding.

    Args:
        mels: (1, n_i, C) each, at least one.
        sine_waves: noise of each row, (1, at least L_i, nb_harmonics + 1); None takes the original's fixed buffer.

    Raises:
        ValueError: a row's noise is too short.
    """
    config = vocoder.config
    x = padded(mels)
    f0 = vocoder.f0_predictor(x)
    spectra = []
    for i, mel in enumerate(mels):
        frames = mel.shape[1]
        given = noise_of(sine_waves[i] if sine_waves else None, 0, frames * config.hop_samples)
        s, _ = vocoder.m_source(f0[i : i + 1, :frames], given)
        spectra.append(mx.concatenate([*stft(s.squeeze(2), config.istft_n_fft, config.istft_hop_len)], axis=2))
    magnitude, phase = vocoder.spectrum(vocoder.conv_pre(x), padded(spectra).astype(x.dtype))
    found = []
    for i, spectrum in enumerate(spectra):
        own = [part[i : i + 1, : spectrum.shape[1]] for part in (magnitude, phase)]
        wav = istft(own[0], own[1], config.istft_n_fft, config.istft_hop_len)
        found.append(mx.clip(wav, -config.audio_limit, config.audio_limit))
    return found


def limits() -> Limits:
    """Which mels gain by going together on the default device, for `groups` of their frames."""
    return limits_by_device(FRAME_BYTES, CPU_LIMITS, GPU_PADDING)
