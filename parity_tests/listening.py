"""Waveforms and spectrograms of both sides for one request, for the report's section `audio`.

s samples, n frames, C mel bins
"""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import numpy as np
import soundfile
from matplotlib.figure import Figure

from port.frontend.audio import mel_spectrogram

DECIBEL = 20 / np.log(10)  # of a natural logarithm


def listening(name: str, reference: np.ndarray, port: np.ndarray, sample_rate: int) -> dict[str, Any]:
    """Entry of the section: distances, both waves, and their spectrograms with the difference.

    Args:
        reference, port: (s,) in [-1, 1].
        sample_rate: Hz.
    """
    mels = [np.array(mel_spectrogram(wave[None], sampling_rate=sample_rate))[0].T for wave in (reference, port)]
    difference = mels[1] - mels[0]
    error = np.square(port.astype(np.float64) - reference).sum()
    power = np.square(reference, dtype=np.float64).sum()
    return {
        "name": name,
        "sample_rate": sample_rate,
        "snr_db": float(10 * np.log10(power / error)) if error else None,
        "log_mel_distance": float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))),
        "reference_wav": _wav(reference, sample_rate),
        "port_wav": _wav(port, sample_rate),
        "spectrogram_png": _png(mels[0], mels[1], difference),
    }


def _wav(wave: np.ndarray, sample_rate: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, wave, sample_rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _png(reference: np.ndarray, port: np.ndarray, difference: np.ndarray) -> str:
    """Three panels of (C, n): both log-mels on one scale, and their difference on its own."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    low, high = reference.min() * DECIBEL, reference.max() * DECIBEL
    largest = max(float(np.abs(difference).max()) * DECIBEL, 1e-12)
    panels = (
        ("reference", reference, low, high, "magma"),
        ("port", port, low, high, "magma"),
        ("port - reference", difference, -largest, largest, "RdBu_r"),
    )
    for axis, (title, mel, bottom, top, colours) in zip(axes, panels, strict=True):
        image = axis.imshow(
            mel * DECIBEL, origin="lower", aspect="auto", vmin=bottom, vmax=top, cmap=matplotlib.colormaps[colours]
        )
        axis.set(title=title, ylabel="mel bin")
        figure.colorbar(image, ax=axis, label="dB")
    axes[-1].set_xlabel("frame (20 ms)")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return base64.b64encode(file.getvalue()).decode()
