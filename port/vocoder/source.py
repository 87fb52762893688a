"""The neural source-filter excitation (`SineGen2`, `SourceModuleHnNSF` in cosyvoice/hifigan/generator.py).

b batch, n mel frames, L audio samples, H harmonics with the fundamental
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..stream.state import State, Tail, tail_of


class SineGen2(nn.Module):
    """Sines at the harmonics of f0, and noise.

    The sines are constant within a frame, as in the original: a phase for each frame is repeated over its samples.
    The original's random start phases are left out: they move sample 0 only, while its resampling reads the two middle
    samples of each frame.

    Raises:
        ValueError: `upsample_scale` below 3, where the original's random start phase would reach the output.
    """

    def __init__(
        self,
        samp_rate: int,
        upsample_scale: int,
        harmonic_num: int = 0,
        sine_amp: float = 0.1,
        noise_std: float = 0.003,
        voiced_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        if upsample_scale < 3:
            raise ValueError(f"upsample_scale {upsample_scale} must be at least 3")
        self.sampling_rate = samp_rate
        self.upsample_scale = upsample_scale
        self.harmonic_num = harmonic_num
        self.sine_amp = sine_amp
        self.noise_std = noise_std
        self.voiced_threshold = voiced_threshold

    def _f02sine(self, f0: np.ndarray, tail: Tail | None = None) -> np.ndarray:
        """Unit sines (b, n, H) of the harmonics (b, n, H) in Hz, all float32; `tail` keeps the phase of a stream.

        The phase grows to 1e6 rad, so which roundings are made decides the waveform; these are the original's on a
        CPU: the running sum in float64 with each prefix rounded to float32, then each product rounded.
        """
        f32 = np.float32
        rad_values = np.fmod(f0 / f32(self.sampling_rate), f32(1)).astype(np.float64)
        if tail is not None and tail.frames is not None:
            rad_values[:, :1] += tail.frames
        cycles = np.cumsum(rad_values, axis=1, dtype=np.float64)
        if tail is not None:
            tail.keep(cycles[:, -1:])
        phase = cycles.astype(f32) * f32(2) * f32(math.pi) * f32(self.upsample_scale)
        return np.sin(phase.astype(np.float64)).astype(f32)

    def _f02uv(self, f0: np.ndarray) -> np.ndarray:
        return (f0 > self.voiced_threshold).astype(np.float32)

    def __call__(self, f0: mx.array, sine_waves: mx.array, state: State | None = None) -> tuple[mx.array, mx.array]:
        """Make the excitation of each harmonic; the frames' part is computed on the host.

        Args:
            f0: (b, n) Hz, 0 where unvoiced.
            sine_waves: (1 or b, at least n * upsample_scale, H) the original's noise buffer of that name, uniform in
                [0, 1).
            state: of a stream, whose chunk `f0` and `sine_waves` are.

        Returns:
            The excitation (b, L, H) and the voicing `uv` (b, L, 1), 0 or 1, both float32, L = n * upsample_scale.
        """
        frames = np.array(f0, dtype=np.float32)[:, :, None]
        harmonics = np.arange(1, self.harmonic_num + 2, dtype=np.float32)
        uv = self._f02uv(frames)
        waves = self._f02sine(frames * harmonics, tail_of(state, self)) * np.float32(self.sine_amp) * uv
        noise_amp = uv * np.float32(self.noise_std) + (1 - uv) * np.float32(self.sine_amp) / np.float32(3)
        # Uniform, not Gaussian: the causal branch of the original draws its fixed buffer with torch.rand.
        noise = self._to_samples(noise_amp) * sine_waves[:, : frames.shape[1] * self.upsample_scale]
        return self._to_samples(waves) + noise, self._to_samples(uv)

    def _to_samples(self, frames: np.ndarray) -> mx.array:
        return mx.repeat(mx.array(frames), self.upsample_scale, axis=1)


class SourceModuleHnNSF(nn.Module):
    """The harmonics merged into one excitation: `tanh(linear(SineGen2(f0)))`."""

    def __init__(
        self,
        sampling_rate: int,
        upsample_scale: int,
        harmonic_num: int = 0,
        sine_amp: float = 0.1,
        add_noise_std: float = 0.003,
        voiced_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.l_sin_gen = SineGen2(
            sampling_rate, upsample_scale, harmonic_num, sine_amp, add_noise_std, voiced_threshold
        )
        self.l_linear = nn.Linear(harmonic_num + 1, 1)

    def __call__(self, f0: mx.array, sine_waves: mx.array, state: State | None = None) -> tuple[mx.array, mx.array]:
        """Make the excitation; arguments as for `SineGen2`.

        The original also returns a noise tensor, which nothing reads.

        Returns:
            The excitation (b, L, 1) in -1..1 and the voicing `uv` (b, L, 1).
        """
        waves, uv = self.l_sin_gen(f0, sine_waves, state)
        return mx.tanh(self.l_linear(waves)), uv
