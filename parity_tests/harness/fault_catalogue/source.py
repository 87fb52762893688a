"""Faults of the neural source and of the Fourier transforms around the vocoder."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, constant, edit

SINES, SOURCE = "vocoder.source.SineGen2", "vocoder.source.SourceModuleHnNSF"
STFT, ISTFT = "vocoder.stft.stft", "vocoder.stft.istft"
_SINES, _SOURCE = "vocoder.source:SineGen2", "vocoder.source:SourceModuleHnNSF.__call__"
_STFT, _ISTFT, _OVERLAP = "vocoder.stft:stft", "vocoder.stft:istft", "vocoder.stft:overlap_add"

FAULTS = (
    Fault(
        "noise_gaussian",
        "noise law",
        SINES,
        edit(
            f"{_SINES}.__call__",
            "* sine_waves[:, :",
            "* (lambda u: mx.sqrt(-2 * mx.log(1 - u)) * mx.cos(6.2832 * u[..., ::-1]))(sine_waves)[:, :",
        ),
        "speech-swift 378",
    ),
    Fault(
        "noise_without_mean",
        "noise law",
        SINES,
        edit(f"{_SINES}.__call__", "* sine_waves[:, :", "* (sine_waves - 0.5)[:, :"),
        "speech-swift 378",
    ),
    Fault(
        "noise_of_voiced_frames_a_tenth_louder",
        "constant",
        SINES,
        edit(f"{_SINES}.__call__", "np.float32(self.noise_std)", "np.float32(1.1 * self.noise_std)"),
    ),
    Fault(
        "noise_of_unvoiced_frames_not_divided",
        "constant",
        SINES,
        edit(f"{_SINES}.__call__", "/ np.float32(3)", "/ np.float32(1)"),
    ),
    Fault(
        "noise_levels_exchanged",
        "swapped",
        SINES,
        edit(
            f"{_SINES}.__call__",
            "uv * np.float32(self.noise_std) + (1 - uv) *",
            "(1 - uv) * np.float32(self.noise_std) + uv *",
        ),
    ),
    Fault(
        "phase_summed_in_float32",
        "precision",
        SINES,
        edit(f"{_SINES}._f02sine", "axis=1, dtype=np.float64)", "axis=1, dtype=f32)"),
        "mobius 33, speech-swift 378",
    ),
    Fault(
        "sine_runs_inside_the_frame",
        "interpolation",
        SINES,
        edit(
            f"{_SINES}._to_samples",
            "return mx.repeat(mx.array(frames), self.upsample_scale, axis=1)",
            "grow = mx.arange(self.upsample_scale)[:, None] / self.upsample_scale\n        frames = mx.array(frames)"
            "\n        steps = frames - mx.concatenate([frames[:, :1], frames[:, :-1]], axis=1)\n"
            "        return (frames[:, :, None] - steps[:, :, None] * (1 - grow)).flatten(1, 2)",
        ),
        "speech-swift 378",
    ),
    Fault(
        "phase_of_the_frame_before",
        "off by one",
        SINES,
        edit(
            f"{_SINES}._f02sine",
            "np.cumsum(rad_values, axis=1, dtype=np.float64)",
            "(np.cumsum(rad_values, axis=1, dtype=np.float64) - rad_values)",
        ),
    ),
    Fault(
        "phase_by_half_a_frame",
        "constant",
        SINES,
        edit(f"{_SINES}._f02sine", "f32(self.upsample_scale)", "f32(self.upsample_scale / 2)"),
    ),
    Fault(
        "sine_start_phase_random",
        "noise use",
        SINES,
        edit(
            f"{_SINES}._f02sine",
            "np.cumsum(rad_values, axis=1, dtype=np.float64)",
            "np.cumsum(rad_values + np.linspace(0, 0.5, f0.shape[2]) * (np.arange(f0.shape[1]) == 0)[:, None], axis=1)",
        ),
    ),
    Fault(
        "harmonics_from_zero",
        "off by one",
        SINES,
        edit(f"{_SINES}.__call__", "np.arange(1, self.harmonic_num + 2,", "np.arange(self.harmonic_num + 1,"),
    ),
    Fault("voiced_at_the_threshold", "off by one", SINES, edit(f"{_SINES}._f02uv", "f0 > self", "f0 >= self")),
    Fault("voiced_above_zero", "constant", SINES, edit(f"{_SINES}._f02uv", "f0 > self.voiced_threshold", "f0 > 0")),
    Fault(
        "sines_in_unvoiced_frames",
        "missing step",
        SINES,
        edit(f"{_SINES}.__call__", "np.float32(self.sine_amp) * uv", "np.float32(self.sine_amp)"),
    ),
    Fault(
        "sine_level_off_by_a_thousandth",
        "constant",
        SINES,
        edit(f"{_SINES}.__call__", "np.float32(self.sine_amp) * uv", "np.float32(1.001 * self.sine_amp) * uv"),
    ),
    Fault(
        "source_not_bounded",
        "missing step",
        SOURCE,
        edit(_SOURCE, "mx.tanh(self.l_linear(waves))", "self.l_linear(waves)"),
    ),
    Fault("source_bounded_by_sine", "activation", SOURCE, edit(_SOURCE, "mx.tanh(", "mx.sin(")),
    # transforms
    Fault(
        "analysis_window_symmetric",
        "window",
        STFT,
        edit("vocoder.stft:_analysis", "hann_window(n_fft)[:, None]", "np.hanning(n_fft)[:, None]"),
        "CosyVoice3-MNN",
    ),
    Fault(
        "synthesis_window_symmetric",
        "window",
        ISTFT,
        edit("vocoder.stft:_synthesis", "hann_window(n_fft) *", "np.hanning(n_fft) *"),
        "CosyVoice3-MNN",
    ),
    Fault(
        "analysis_without_window",
        "window",
        STFT,
        edit("vocoder.stft:_analysis", "hann_window(n_fft)[:, None] *", "np.ones(n_fft)[:, None] *"),
    ),
    Fault(
        "analysis_padded_with_zeros",
        "padding",
        STFT,
        edit(_STFT, "[x[:, pad:0:-1], x, x[:, -2 : -pad - 2 : -1]]", "[0 * x[:, :pad], x, 0 * x[:, :pad]]"),
    ),
    Fault(
        "analysis_reflects_the_edge_too",
        "padding",
        STFT,
        edit(_STFT, "x[:, pad:0:-1], x, x[:, -2 : -pad - 2 : -1]", "x[:, pad - 1 :: -1], x, x[:, -1 : -pad - 1 : -1]"),
    ),
    Fault(
        "analysis_padded_twice",
        "padding",
        STFT,
        edit(
            _STFT,
            "[x[:, pad:0:-1], x,",
            "[x[:, pad:0:-1], x[:, pad:0:-1], x[:, :-pad],",
        ),
        "mlx-audio-swift 216",
    ),
    Fault(
        "analysis_conjugate",
        "sign",
        STFT,
        edit("vocoder.stft:_analysis", "[np.cos(angle), -np.sin(angle)]", "[np.cos(angle), np.sin(angle)]"),
    ),
    Fault(
        "synthesis_normalised_by_the_window",
        "normalisation",
        ISTFT,
        edit(
            "vocoder.stft:envelope",
            "np.square(hann_window(n_fft).astype(np.float64))",
            "hann_window(n_fft).astype(np.float64)",
        ),
        "mlx-audio 858",
    ),
    Fault(
        "synthesis_not_normalised",
        "normalisation",
        ISTFT,
        edit(
            _ISTFT, "* mx.array((1 / envelope(frames, n_fft, hop_len).reshape(-1)[trim]).astype(np.float32))", "* 1.0"
        ),
        "FluidAudio 852",
    ),
    Fault(
        "synthesis_normalised_by_a_constant",
        "normalisation",
        ISTFT,
        edit(
            _ISTFT,
            "(1 / envelope(frames, n_fft, hop_len).reshape(-1)[trim])",
            "(1 / envelope(2 * n_fft, n_fft, hop_len).reshape(-1)[n_fft : n_fft + 1])",
        ),
    ),
    Fault(
        "magnitude_not_clipped",
        "missing step",
        ISTFT,
        edit(_OVERLAP, "mx.minimum(magnitude, MAX_MAGNITUDE)", "magnitude"),
        "speech-swift 378",
    ),
    Fault("magnitude_clip_off_by_a_thousandth", "constant", ISTFT, constant("vocoder.stft:MAX_MAGNITUDE", 100.1)),
    Fault(
        "synthesis_one_sample_late",
        "off by one",
        ISTFT,
        edit(_ISTFT, "x[:, trim]", "mx.roll(x, 1, axis=1)[:, trim]"),
        "mlx-audio 858",
    ),
    Fault("synthesis_one_sided", "normalisation", ISTFT, edit("vocoder.stft:_synthesis", "1.0, 2.0)", "1.0, 1.0)")),
    Fault(
        "synthesis_keeps_the_imaginary_edges",
        "missing step",
        ISTFT,
        edit("vocoder.stft:_synthesis", "np.where(sides * n_fft == 1, 0.0, -np.sin(angle))", "-np.sin(angle)"),
        equivalent="The first and the last bin turn by multiples of pi, whose sine is zero: in float64 at most 2e-15, "
        "which adds to samples of order one less than a tenth of a float32 rounding. The guard only documents that "
        "torch.istft ignores these imaginary parts.",
    ),
    Fault(
        "phase_quadrant_lost",
        "sign",
        ISTFT,
        edit(_OVERLAP, "magnitude * mx.cos(phase)", "magnitude * mx.abs(mx.cos(phase))"),
        "mobius 50",
    ),
)
