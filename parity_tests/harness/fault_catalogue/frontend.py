"""Faults of the audio features, the speech tokenizer and the speaker encoder."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, constant, edit

RESAMPLE, BASIS, MEL, LOG_MEL, KALDI, FBANK = (
    f"frontend.audio.{name}"
    for name in (
        "resample",
        "mel_filterbank",
        "mel_spectrogram",
        "log_mel_spectrogram",
        "kaldi_mel_banks",
        "fbank",
    )
)
_KERNEL, _RESAMPLE, _BASIS, _MEL, _LOG_MEL, _KALDI, _FBANK = (
    f"frontend.audio:{name}"
    for name in (
        "resample_kernel",
        "resample",
        "mel_filterbank",
        "mel_spectrogram",
        "log_mel_spectrogram",
        "kaldi_mel_banks",
        "fbank",
    )
)
S3, CAM = "frontend.speech_tokenizer", "frontend.speaker"
_S3, _CAM = "frontend.speech_tokenizer", "frontend.speaker"

FAULTS = (
    Fault(
        "resampler_rolloff_0.95", "resampling", RESAMPLE, edit(_KERNEL, "= 6, 0.99", "= 6, 0.95"), "mlx-audio-swift 216"
    ),
    Fault(
        "resampler_rolloff_cosine",
        "resampling",
        RESAMPLE,
        edit(_KERNEL, "= 6, 0.99", "= 6, 0.64"),
        "mlx-audio-swift 216",
    ),
    Fault("resampler_width_of_five", "resampling", RESAMPLE, edit(_KERNEL, "= 6, 0.99", "= 5, 0.99")),
    Fault(
        "resampler_phases_in_float64",
        "precision",
        RESAMPLE,
        edit(_KERNEL, "/ new_freq).astype(np.float32)", "/ new_freq)"),
    ),
    Fault("resampler_window_not_squared", "window", RESAMPLE, edit(_KERNEL, "/ 2) ** 2", "/ 2)")),
    Fault(
        "resampler_one_sample_late",
        "off by one",
        RESAMPLE,
        edit(_RESAMPLE, "((0, 0), (width, width + orig_freq))", "((0, 0), (width + 1, width + orig_freq - 1))"),
    ),
    # mel
    Fault(
        "mel_up_to_8_khz", "constant", BASIS, edit(_BASIS, "hz_to_mel(fmax), num", "hz_to_mel(min(fmax, 8000.0)), num")
    ),
    Fault("mel_htk", "mel scale", BASIS, edit(_BASIS, "1000.0, math.log(6.4) / 27.0", "700.0, math.log(6.4) / 27.0")),
    Fault(
        "mel_triangles_not_normalised",
        "normalisation",
        BASIS,
        edit(_BASIS, "(2.0 / (edges[2:] - edges[:-2]))[:, None]", "1.0"),
    ),
    Fault(
        "mel_power",
        "missing step",
        MEL,
        edit(
            _MEL, "np.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)", "(spectrum.real**2 + spectrum.imag**2 + 1e-9)"
        ),
    ),
    Fault("mel_guard_left_out", "epsilon", MEL, edit(_MEL, "spectrum.imag**2 + 1e-9", "spectrum.imag**2")),
    Fault("mel_floor_1e-10", "constant", MEL, edit(_MEL, "1e-5))", "1e-10))")),
    Fault("mel_decimal_logarithm", "constant", MEL, edit(_MEL, "np.log(", "np.log10(")),
    Fault("mel_padded_with_zeros", "padding", MEL, edit(_MEL, 'mode="reflect"', 'mode="constant"')),
    Fault("mel_padded_symmetric", "padding", MEL, edit(_MEL, 'mode="reflect"', 'mode="symmetric"')),
    Fault(
        "mel_centred_frames",
        "padding",
        MEL,
        edit(_MEL, "((0, 0), (pad, pad))", "((0, 0), (pad + hop_size // 2, pad - hop_size // 2))"),
    ),
    Fault(
        "mel_window_symmetric",
        "window",
        MEL,
        edit("frontend.audio:_hann_window", "2 * math.pi / size", "2 * math.pi / (size - 1)"),
        "CosyVoice3-MNN",
    ),
    Fault("log_mel_drops_the_first_frame", "off by one", LOG_MEL, edit(_LOG_MEL, "[:, :-1] *", "[:, 1:] *")),
    Fault("log_mel_natural_logarithm", "constant", LOG_MEL, edit(_LOG_MEL, "np.log10(", "np.log(")),
    Fault("log_mel_floor_of_seven", "constant", LOG_MEL, edit(_LOG_MEL, "log_mel.max() - 8.0", "log_mel.max() - 7.0")),
    Fault(
        "log_mel_floor_of_each_row",
        "normalisation",
        LOG_MEL,
        edit(_LOG_MEL, "log_mel.max() - 8.0", "log_mel.max(axis=(1, 2), keepdims=True) - 8.0"),
    ),
    Fault("log_mel_not_shifted", "constant", LOG_MEL, edit(_LOG_MEL, "+ 4.0) / 4.0", "+ 0.0) / 4.0")),
    # fbank
    Fault("kaldi_from_zero_hz", "constant", KALDI, edit(_KALDI, "in (20.0,", "in (0.0,")),
    Fault(
        "kaldi_slaney_scale",
        "mel scale",
        KALDI,
        edit(
            _KALDI,
            "return np.pad(triangles, ((0, 0), (0, 1)))",
            "return mel_filterbank(sample_frequency, n_fft, num_bins, 20.0, sample_frequency / 2)",
        ),
    ),
    Fault("fbank_without_preemphasis", "constant", FBANK, edit(_FBANK, "frames - 0.97 * before", "frames")),
    Fault("fbank_preemphasis_0.971", "constant", FBANK, edit(_FBANK, "0.97 * before", "0.971 * before")),
    Fault(
        "fbank_first_sample_after_zero",
        "padding",
        FBANK,
        edit(_FBANK, "[frames[:, :1], frames[:, :-1]]", "[0 * frames[:, :1], frames[:, :-1]]"),
        equivalent="The povey window is exactly zero at its first sample (a symmetric Hann window to a power), so "
        "whatever stands there is multiplied by zero; no other sample changes.",
    ),
    Fault(
        "fbank_samples_of_16_bit",
        "constant",
        FBANK,
        edit(_FBANK, "_to_host(waveform)[0]", "32768 * _to_host(waveform)[0]"),
    ),
    Fault(
        "fbank_hann_window", "window", FBANK, edit(_FBANK, "np.hanning(window_size) ** 0.85", "np.hanning(window_size)")
    ),
    Fault(
        "fbank_with_offset",
        "missing step",
        FBANK,
        edit(_FBANK, "frames = frames - frames.mean(axis=1, keepdims=True)", "pass"),
    ),
    Fault(
        "fbank_mean_over_bins",
        "normalisation",
        FBANK,
        edit(_FBANK, "features.mean(axis=0, keepdims=True)", "features.mean(axis=1, keepdims=True)"),
    ),
    Fault("fbank_magnitude", "missing step", FBANK, edit(_FBANK, "window, n_fft)) ** 2", "window, n_fft))")),
    # speech tokenizer
    Fault(
        "tokenizer_memory_without_residual",
        "missing step",
        f"{S3}.FSMNMultiHeadAttention",
        edit(
            f"{_S3}:FSMNMultiHeadAttention.forward_fsmn", "self.fsmn_block(inputs) + inputs", "self.fsmn_block(inputs)"
        ),
    ),
    Fault(
        "tokenizer_memory_sees_padding",
        "mask",
        f"{S3}.FSMNMultiHeadAttention",
        edit(f"{_S3}:FSMNMultiHeadAttention.forward_fsmn", "inputs = inputs * keep", "pass"),
    ),
    Fault(
        "tokenizer_scaled_once",
        "normalisation",
        f"{S3}.FSMNMultiHeadAttention",
        edit(
            f"{_S3}:FSMNMultiHeadAttention.__call__",
            "apply_rotary_emb(k, rope) * self.scale",
            "apply_rotary_emb(k, rope)",
        ),
    ),
    Fault(
        "tokenizer_rope_interleaved",
        "rotary layout",
        f"{S3}.FSMNMultiHeadAttention",
        edit(
            f"{_S3}:apply_rotary_emb",
            "mx.concatenate([-second, first], axis=-1)",
            "mx.stack((-x[..., 1::2], x[..., ::2]), axis=-1).flatten(-2)",
        ),
        "transformers 47328",
    ),
    Fault(
        "tokenizer_attention_sees_padding",
        "mask",
        f"{S3}.FSMNMultiHeadAttention",
        edit(f"{_S3}:FSMNMultiHeadAttention.__call__", "scale=1.0, mask=bias", "scale=1.0"),
    ),
    Fault(
        "tokenizer_norm_eps_1e-6",
        "epsilon",
        f"{S3}.ResidualAttentionBlock",
        edit(
            f"{_S3}:ResidualAttentionBlock.__init__",
            "self.attn_ln = nn.LayerNorm(dim, eps=eps)",
            "self.attn_ln = nn.LayerNorm(dim, eps=1e-6)",
        ),
    ),
    Fault(
        "tokenizer_bound_of_one",
        "constant",
        f"{S3}.FSQVectorQuantization.activations",
        constant(f"{_S3}:FSQ_BOUND", 1.0),
    ),
    Fault(
        "tokenizer_digits_reversed",
        "order",
        f"{S3}.FSQVectorQuantization",
        edit(
            f"{_S3}:FSQVectorQuantization.__call__", "mx.arange(digits.shape[-1])", "mx.arange(digits.shape[-1])[::-1]"
        ),
    ),
    Fault(
        "tokenizer_lengths_rounded_down",
        "length",
        f"{S3}.S3TokenizerV3.activations",
        edit(f"{_S3}:S3TokenizerV3.hidden", "lengths = (lengths - 1) // 2 + 1", "lengths = lengths // 2"),
    ),
    Fault(
        "tokenizer_convolution_sees_padding",
        "mask",
        f"{S3}.S3TokenizerV3.activations",
        edit(f"{_S3}:S3TokenizerV3.hidden", "conv(x * mask.astype(x.dtype)[:, :, None])", "conv(x)"),
        "sglang-omni 1713",
    ),
    # speaker encoder
    Fault(
        "speaker_deviation_biased",
        "normalisation",
        f"{CAM}.StatsPool",
        edit(f"{_CAM}:StatsPool.__call__", "* (n / (n - 1))", "* 1"),
    ),
    Fault(
        "speaker_segment_of_99",
        "off by one",
        f"{CAM}.CAMLayer",
        edit(f"{_CAM}:CAMLayer.seg_pooling", "self.segment_frames, x.shape[1]", "self.segment_frames - 1, x.shape[1]"),
    ),
    Fault(
        "speaker_last_segment_by_what_it_holds",
        "normalisation",
        f"{CAM}.CAMLayer",
        edit(f"{_CAM}:CAMLayer.seg_pooling", "if self.divide_by_full_segment:", "if False:"),
        "onnxruntime 16752",
    ),
    Fault(
        "speaker_division_of_the_official_file_alone",
        "configuration",
        f"{CAM}.CAMPPlus",
        edit(f"{_CAM}:XVector.__init__", "(c.segment_frames, c.divide_by_full_segment)", "(c.segment_frames, True)"),
    ),
    Fault(
        "speaker_context_without_segments",
        "missing step",
        f"{CAM}.CAMLayer",
        edit(
            f"{_CAM}:CAMLayer.__call__",
            "_mean_over_time(x) + self.seg_pooling(x)",
            "_mean_over_time(x)",
        ),
    ),
    Fault(
        "speaker_shortcut_left_out",
        "missing step",
        f"{CAM}.BasicResBlock",
        edit(
            f"{_CAM}:BasicResBlock.__call__",
            "self.conv2(nn.relu(self.conv1(x))) + self.shortcut(x)",
            "self.conv2(nn.relu(self.conv1(x)))",
        ),
    ),
    Fault(
        "speaker_head_channels_last",
        "order",
        f"{CAM}.FCM",
        edit(f"{_CAM}:FCM.__call__", ".transpose(0, 2, 3, 1).flatten(2, 3)", ".transpose(0, 2, 1, 3).flatten(2, 3)"),
    ),
    Fault(
        "speaker_norm_by_the_batch",
        "train mode",
        f"{CAM}.CAMDenseTDNNLayer",
        edit(
            f"{_CAM}:BatchNorm.__call__",
            "(x - self.running_mean) * mx.rsqrt(self.running_var + self.eps)",
            "(x - x.mean(axis=tuple(range(x.ndim - 1)))) * mx.rsqrt(x.var(axis=tuple(range(x.ndim - 1))) + self.eps)",
        ),
        "mlx-audio-swift 108",
    ),
    Fault(
        "speaker_norm_eps_1e-3",
        "epsilon",
        f"{CAM}.CAMDenseTDNNLayer",
        edit(f"{_CAM}:BatchNorm.__init__", "self.eps = eps", "self.eps = 1e-3"),
    ),
)
