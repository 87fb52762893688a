"""Faults of the vocoder's convolutions, pitch and generator."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

CONV, DOWN, UP = (f"vocoder.convolution.CausalConv1d{kind}" for kind in ("", "DownSample", "Upsample"))
SNAKE, RESBLOCK, F0 = "vocoder.generator.Snake", "vocoder.generator.ResBlock", "vocoder.f0.CausalConvRNNF0Predictor"
DECODE, INFERENCE = (f"vocoder.generator.CausalHiFTGenerator.{name}" for name in ("decode", "inference"))
_CONV, _DOWN, _UP = (
    "vocoder.convolution:causal_conv",
    "vocoder.convolution:CausalConv1dDownSample",
    ("vocoder.convolution:CausalConv1dUpsample"),
)
_SNAKE, _RESBLOCK = "vocoder.generator:Snake.__call__", "vocoder.generator:ResBlock"
_F0 = "vocoder.f0:CausalConvRNNF0Predictor"
_DECODE, _SPECTRUM, _INFERENCE = (
    f"vocoder.generator:CausalHiFTGenerator.{name}" for name in ("decode", "spectrum", "inference")
)

FAULTS = (
    # convolutions
    Fault(
        "convolution_one_frame_early",
        "padding",
        CONV,
        edit(_CONV, "[context, x] if", "[context[:, 1:], x, x[:, :1] * 0] if"),
        "mlx-audio 858",
    ),
    Fault(
        "convolution_sides_exchanged", "padding", CONV, edit(_CONV, 'causal_type == "left"', 'causal_type == "right"')
    ),
    Fault("convolution_forgets_its_cache", "cache", CONV, edit(_CONV, "_context(x, cache,", "_context(x, None,")),
    Fault(
        "convolution_without_bias",
        "missing step",
        CONV,
        edit(_CONV, "conv1d(x, weight, bias,", "conv1d(x, weight, None,"),
    ),
    Fault(
        "convolution_padded_with_the_first_frame",
        "padding",
        CONV,
        edit(
            "vocoder.convolution:_context",
            "mx.zeros((x.shape[0], frames, x.shape[2]), x.dtype)",
            "mx.repeat(x[:, :1], frames, axis=1)",
        ),
    ),
    Fault(
        "downsampling_padded_on_the_right",
        "padding",
        DOWN,
        edit(
            f"{_DOWN}.__call__",
            "[_context(x, cache, self.causal_padding), x]",
            "[x, _context(x, cache, self.causal_padding)]",
        ),
    ),
    Fault(
        "downsampling_one_frame_early",
        "off by one",
        DOWN,
        edit(
            f"{_DOWN}.__call__",
            "self.causal_padding), x], axis=1)",
            "self.causal_padding), x, x[:, :1] * 0], axis=1)[:, 1:]",
        ),
        "mlx-audio 858",
    ),
    Fault(
        "upsampling_tiles",
        "order",
        UP,
        edit(
            f"{_UP}.__call__",
            "cache=cache).reshape(b, n * stride, -1)",
            "cache=cache).reshape(b, n, stride, -1).swapaxes(1, 2).reshape(b, n * stride, -1)",
        ),
    ),
    Fault(
        "upsampling_by_zeros",
        "interpolation",
        UP,
        edit(
            f"{_UP}._phase_weight",
            "meets = frame[:, None, :] ==",
            "frame = np.where(np.add.outer(np.arange(stride), np.arange(taps) - taps + 1) % stride, 1, frame)\n"
            "            meets = frame[:, None, :] ==",
        ),
    ),
    Fault(
        "upsampling_one_frame_late",
        "off by one",
        UP,
        edit(
            f"{_UP}.__call__",
            "return causal_conv(x, self._phase_weight(), bias, cache=cache).reshape(b, n * stride, -1)",
            "y = causal_conv(x, self._phase_weight(), bias, cache=cache)\n"
            "            return mx.roll(y.reshape(b, n * stride, -1), 1, axis=1)",
        ),
        "mlx-audio 858",
    ),
    Fault(
        "polyphase_taps_late",
        "off by one",
        UP,
        edit(
            f"{_UP}._phase_weight", "+ np.arange(taps) - (taps - 1)) // stride", "+ np.arange(taps) - taps) // stride"
        ),
    ),
    Fault(
        "upsampling_keeps_old_weights",
        "state leak",
        "vocoder.fast",
        edit(
            f"{_UP}._phase_weight",
            "self._phases is None or self._phases[0] is not self.weight",
            "self._phases is None",
        ),
    ),
    # snake, residual blocks
    Fault(
        "snake_without_square",
        "activation",
        SNAKE,
        edit(_SNAKE, "sine_squared(", "mx.sin("),
    ),
    Fault(
        "snake_alpha_as_logarithm",
        "constant",
        SNAKE,
        edit(_SNAKE, "(x * self.alpha)", "(x * mx.exp(self.alpha))"),
    ),
    Fault("snake_guard_of_a_thousandth", "epsilon", SNAKE, edit(_SNAKE, "self.alpha + 1e-9", "self.alpha + 1e-3")),
    Fault(
        "snake_reduced_by_a_rounded_pi",
        "precision",
        "vocoder.fast",
        edit("vocoder.fast:polynomial", "(y - turns * PI_HIGH) - turns * PI_LOW", "y - turns * math.pi"),
    ),
    Fault("snake_of_the_magnitude", "activation", SNAKE, edit(_SNAKE, "return x +", "return abs(x) +")),
    Fault(
        "resblock_without_residual",
        "missing step",
        RESBLOCK,
        edit(f"{_RESBLOCK}.__call__", "x = x + conv2", "x = conv2"),
    ),
    Fault(
        "resblock_activations_exchanged",
        "swapped",
        RESBLOCK,
        edit(f"{_RESBLOCK}.__call__", "conv2(act2(conv1(act1(x)", "conv2(act1(conv1(act2(x)"),
    ),
    Fault(
        "resblock_dilations_reversed",
        "order",
        RESBLOCK,
        edit(
            f"{_RESBLOCK}.__init__",
            "kernel_size, dilation) for dilation in dilations",
            "kernel_size, dilation) for dilation in dilations[::-1]",
        ),
    ),
    Fault(
        "resblock_second_convolution_dilated",
        "constant",
        RESBLOCK,
        edit(f"{_RESBLOCK}.__init__", "kernel_size) for _ in dilations", "kernel_size, d) for d in dilations"),
    ),
    # pitch
    Fault(
        "pitch_relu_for_elu",
        "activation",
        F0,
        edit(f"{_F0}.__call__", "mx.where(x > 0, x, mx.expm1(x))", "mx.maximum(x, 0)"),
    ),
    Fault(
        "pitch_without_magnitude",
        "missing step",
        F0,
        edit(f"{_F0}.__call__", "mx.abs((x @ weight.T + bias).squeeze(-1))", "(x @ weight.T + bias).squeeze(-1)"),
    ),
    Fault("pitch_looks_back", "padding", F0, edit(f"{_F0}.__init__", 'causal_type="right"', 'causal_type="left"')),
    Fault(
        "pitch_without_context",
        "missing step",
        F0,
        edit(f"{_F0}.__call__", "x[:, : -self.look_right], x[:, -self.look_right :]", "x[:, : -self.look_right], None"),
    ),
    Fault(
        "pitch_context_for_every_layer",
        "cache",
        F0,
        edit(
            f"{_F0}.__call__",
            "cache = tail_of(state, conv) if i else cache",
            "cache = None if cache is None else cache if not i else x[:, -2:]",
        ),
    ),
    Fault(
        "pitch_weights_rounded_to_float32",
        "precision",
        F0,
        edit("vocoder.f0:_in_float64", "summands[0] + summands[1]", "summands[0]"),
    ),
    Fault(
        "pitch_in_float32",
        "precision",
        F0,
        edit(
            f"{_F0}.__call__",
            "x = causal_conv(x, weight, bias,",
            "x, weight, bias = (v.astype(mx.float32) for v in (x, weight, bias))\n"
            "                x = causal_conv(x, weight, bias,",
        ),
        "mobius 33",
    ),
    # generator
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
