"""The neural source-filter excitation (`SineGen2`, `SourceModuleHnNSF` in cosyvoice/hifigan/generator.py).

b batch, n mel frames, L audio samples, H harmonics with the fundamental
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SineGen2(nn.Module):
    """Sines at the harmonics of f0, and noise.

    The sines are constant within a frame, as in the original: a phase for each frame is repeated over its samples.

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

    def _f02sine(self, f0: Tensor, rand_ini: Tensor | None = None) -> Tensor:
        """Unit sines (b, L, H) of the harmonics (b, L, H) in Hz; `rand_ini` (b, H), in cycles, has no effect."""
        rad_values = (f0 / self.sampling_rate) % 1
        if rand_ini is not None:
            # No effect: it moves sample 0 only, and the resampling below reads the two middle samples of each frame.
            rad_values = torch.cat([rad_values[:, :1] + rand_ini[:, None], rad_values[:, 1:]], dim=1)
        scale = float(self.upsample_scale)
        rad_values = F.interpolate(rad_values.transpose(1, 2), scale_factor=1 / scale, mode="linear").transpose(1, 2)
        # On a CPU torch adds in float64 and rounds each prefix to float32, then each product in this order.
        phase = torch.cumsum(rad_values, dim=1) * 2 * math.pi
        phase = F.interpolate(phase.transpose(1, 2) * self.upsample_scale, scale_factor=scale, mode="nearest")
        return torch.sin(phase.transpose(1, 2))

    def _f02uv(self, f0: Tensor) -> Tensor:
        # Float32 even for a float64 f0, as in the original, so the noise levels that follow are float32 numbers.
        return (f0 > self.voiced_threshold).to(torch.float32)

    def forward(self, f0: Tensor, sine_waves: Tensor, rand_ini: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make the excitation of each harmonic.

        Args:
            f0: (b, L, 1) Hz, constant within each frame of `upsample_scale` samples; 0 where unvoiced.
            sine_waves: (1 or b, at least L, H) the original's noise buffer of that name, uniform in [0, 1).
            rand_ini: (1 or b, H) the original's random start phases; they have no effect.

        Returns:
            The excitation (b, L, H) and the voicing `uv` (b, L, 1), 0 or 1 in float32.
        """
        harmonics = torch.arange(1, self.harmonic_num + 2, dtype=f0.dtype, device=f0.device)
        waves = self._f02sine(f0 * harmonics, rand_ini) * self.sine_amp
        uv = self._f02uv(f0)
        noise_amp = uv * self.noise_std + (1 - uv) * self.sine_amp / 3
        # Uniform, not Gaussian: the causal branch of the original draws its fixed buffer with torch.rand.
        noise = noise_amp * sine_waves[:, : f0.shape[1]]
        return waves * uv + noise, uv


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

    def forward(self, f0: Tensor, sine_waves: Tensor) -> tuple[Tensor, Tensor]:
        """Make the excitation; arguments as for `SineGen2`.

        The original also returns a noise tensor, which nothing reads.

        Returns:
            The excitation (b, L, 1) in -1..1 and the voicing `uv` (b, L, 1).
        """
        waves, uv = self.l_sin_gen(f0, sine_waves)
        return torch.tanh(self.l_linear(waves)), uv
