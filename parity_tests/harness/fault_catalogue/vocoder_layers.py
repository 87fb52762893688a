"""Faults of the vocoder's convolutions, activations, residual blocks and pitch."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

CONV, DOWN, UP = (f"vocoder.convolution.CausalConv1d{kind}" for kind in ("", "DownSample", "Upsample"))
SNAKE, RESBLOCK, F0 = "vocoder.generator.Snake", "vocoder.generator.ResBlock", "vocoder.f0.CausalConvRNNF0Predictor"
_CONV, _DOWN, _UP = (
    "vocoder.convolution:CausalConv1d.__call__",
    "vocoder.convolution:CausalConv1dDownSample",
    ("vocoder.convolution:CausalConv1dUpsample"),
)
_SNAKE, _RESBLOCK = "vocoder.generator:Snake.__call__", "vocoder.generator:ResBlock"
_F0 = "vocoder.f0:CausalConvRNNF0Predictor"

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
        edit(_CONV, "return super().__call__(x)", "return super().__call__(x) - self.bias"),
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
            "x = mx.repeat(x, stride, axis=1)",
            "x = mx.tile(x, (1, stride, 1))",
        ),
    ),
    Fault(
        "upsampling_by_zeros",
        "interpolation",
        UP,
        edit(
            "fast.convolution:polyphase",
            "meets = frame[:, None, :] ==",
            "frame = np.where(np.add.outer(np.arange(stride), np.arange(taps) - taps + 1) % stride, 1, frame)\n"
            "        meets = frame[:, None, :] ==",
        ),
    ),
    Fault(
        "upsampling_one_frame_late",
        "off by one",
        UP,
        edit(
            f"{_UP}.__call__",
            "return super().__call__(mx.concatenate([_context(x, cache, self.causal_padding), x], axis=1))",
            "x = mx.concatenate([_context(x, cache, self.causal_padding), x], axis=1)\n"
            "        return mx.roll(super().__call__(x), 1, axis=1)",
        ),
        "mlx-audio 858",
    ),
    Fault(
        "polyphase_taps_late",
        "off by one",
        UP,
        edit(
            "fast.convolution:polyphase",
            "+ np.arange(taps) - (taps - 1)) // stride",
            "+ np.arange(taps) - taps) // stride",
        ),
    ),
    Fault(
        "polyphase_channels_before_phases",
        "order",
        UP,
        edit(
            "fast.convolution:PolyphaseUpsample.__call__",
            "self.phases(x, cache).reshape(b, n * self.upsample_stride, -1)",
            "self.phases(x, cache).reshape(b, n, -1, self.upsample_stride).swapaxes(2, 3).flatten(1, 2)",
        ),
    ),
    # snake, residual blocks
    Fault(
        "snake_without_square",
        "activation",
        SNAKE,
        edit(_SNAKE, "(sine * sine)", "sine"),
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
        "fast.arithmetic",
        edit("fast.arithmetic:reduce_angle", "(y - turns * PI_HIGH) - turns * PI_LOW", "y - turns * math.pi"),
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
            "tail_of(state, conv) if i else cache",
            "cache if not i else None if cache is None else x[:, -2:]",
        ),
    ),
    Fault(
        "pitch_weights_rounded_to_float32",
        "precision",
        F0,
        edit("vocoder.f0:DoubleConv1d.double", "high + low", "high"),
    ),
    Fault(
        "pitch_in_float32",
        "precision",
        F0,
        edit(
            "vocoder.f0:_Float64Conv1d.__call__",
            "return x @ weight.reshape(out_channels, -1).T + self.bias.astype(mx.float64)",
            "return x.astype(mx.float32) @ weight.reshape(out_channels, -1).T.astype(mx.float32) + self.bias",
        ),
        "mobius 33",
    ),
)
