"""Faults of the vocoder's generator."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

DECODE, INFERENCE = (f"vocoder.generator.CausalHiFTGenerator.{name}" for name in ("decode", "inference"))
_DECODE, _SPECTRUM, _INFERENCE = (
    f"vocoder.generator:CausalHiFTGenerator.{name}" for name in ("decode", "spectrum", "inference")
)

FAULTS = (
    Fault(
        "last_slope_0.1",
        "slope",
        DECODE,
        edit(_SPECTRUM, "nn.leaky_relu(x), tail", "nn.leaky_relu(x, config.lrelu_slope), tail"),
        "mlx-audio-swift 216",
    ),
    Fault(
        "stage_slope_0.01",
        "slope",
        DECODE,
        edit(_SPECTRUM, "nn.leaky_relu(x, config.lrelu_slope)", "nn.leaky_relu(x)"),
        "mlx-audio-swift 216",
    ),
    Fault("reflected_frame_is_the_edge", "padding", DECODE, edit(_SPECTRUM, "x[:, 1:2], x", "x[:, :1], x")),
    Fault("reflected_frame_is_zero", "padding", DECODE, edit(_SPECTRUM, "x[:, 1:2], x", "0 * x[:, 1:2], x")),
    Fault("reflected_frame_on_the_right", "padding", DECODE, edit(_SPECTRUM, "[x[:, 1:2], x]", "[x, x[:, -2:-1]]")),
    Fault(
        "resblocks_summed",
        "normalisation",
        DECODE,
        edit(_SPECTRUM, "blocks[0](x, state)) / kernels", "blocks[0](x, state))"),
    ),
    Fault(
        "one_resblock_left_out",
        "missing step",
        DECODE,
        edit(
            _SPECTRUM,
            "blocks = self.resblocks[i * kernels : (i + 1) * kernels]",
            "blocks = self.resblocks[i * kernels : (i + 1) * kernels - 1]",
        ),
    ),
    Fault(
        "source_not_filtered",
        "missing step",
        DECODE,
        edit(_SPECTRUM, "self.source_resblocks[i](down(s_stft, tail_of(state, down)), state)", "down(s_stft)"),
    ),
    Fault(
        "source_weak_by_a_thousandth",
        "constant",
        DECODE,
        edit(_SPECTRUM, "x = x + self.source_resblocks", "x = x + 0.999 * self.source_resblocks"),
        "cosyvoice.cpp 4",
    ),
    Fault(
        "source_spectrum_parts_exchanged",
        "order",
        DECODE,
        edit(
            _DECODE,
            "stft(s.squeeze(2), config.istft_n_fft, config.istft_hop_len), axis=2",
            "stft(s.squeeze(2), config.istft_n_fft, config.istft_hop_len)[::-1], axis=2",
        ),
    ),
    Fault("phase_not_bounded", "missing step", DECODE, edit(_SPECTRUM, "mx.sin(x[..., bins:])", "x[..., bins:]")),
    Fault(
        "phase_before_magnitude",
        "order",
        DECODE,
        edit(_SPECTRUM, "mx.exp(x[..., :bins]), mx.sin(x[..., bins:])", "mx.exp(x[..., bins:]), mx.sin(x[..., :bins])"),
    ),
    Fault(
        "audio_limit_1",
        "constant",
        DECODE,
        edit(_DECODE, "mx.clip(wav, -config.audio_limit, config.audio_limit)", "mx.clip(wav, -1, 1)"),
    ),
    Fault(
        "audio_limit_off_by_a_thousandth",
        "constant",
        DECODE,
        edit(_DECODE, "mx.clip(wav, -config.audio_limit, config.audio_limit)", "mx.clip(wav, -0.991, 0.991)"),
    ),
    Fault(
        "chunk_drops_its_first_frame",
        "off by one",
        DECODE,
        edit(_DECODE, "wav[:, : -config.hop_samples]", "wav[:, config.hop_samples :]"),
    ),
    Fault(
        "chunk_filter_without_context",
        "missing step",
        DECODE,
        edit(_DECODE, "self.conv_pre(x[:, :-look_right], x[:, -look_right:])", "self.conv_pre(x[:, :-look_right])"),
    ),
    Fault(
        "chunk_pitch_finalized",
        "missing step",
        INFERENCE,
        edit(
            _INFERENCE,
            "self.f0_predictor(speech_feat, finalize)",
            "self.f0_predictor(speech_feat)[:, : None if finalize else -config.f0_look_right]",
        ),
    ),
    Fault(
        "source_noise_one_sample_late",
        "noise use",
        INFERENCE,
        edit(_INFERENCE, "self.m_source(f0, sine_waves)", "self.m_source(f0, mx.roll(sine_waves, 1, axis=1))"),
    ),
    Fault(
        "source_noise_drawn_anew",
        "noise law",
        INFERENCE,
        edit(
            _INFERENCE,
            "mx.array(noise.sine_waves(f0.shape[1] * config.hop_samples))[None]",
            "mx.random.uniform(shape=(1, f0.shape[1] * config.hop_samples, 9))",
        ),
        "CosyVoice 406",
    ),
)
