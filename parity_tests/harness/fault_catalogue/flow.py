"""Faults of the flow decoder above its layers: look-ahead, transformer, matching, the whole."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

INPUT, DIT, LOOK = "flow.dit.InputEmbedding", "flow.dit.DiT", "flow.lookahead.PreLookaheadLayer"
CFM, DECODER = "flow.matching.CausalConditionalCFM", "flow.decoder.CausalMaskedDiffWithDiT.inference"
VELOCITY = f"{CFM}.velocity"
_INPUT, _DIT, _LOOK = "flow.dit:InputEmbedding", "flow.dit:DiT", "flow.lookahead:PreLookaheadLayer.__call__"
_SCHEDULE, _CFM = "flow.matching:cosine_schedule", "flow.matching:CausalConditionalCFM"
_DECODER = "flow.decoder:CausalMaskedDiffWithDiT"

FAULTS = (
    Fault(
        "condition_before_state",
        "order",
        INPUT,
        edit(f"{_INPUT}.__call__", "(x, cond, text_embed, spks)", "(cond, x, text_embed, spks)"),
    ),
    Fault(
        "position_convolution_without_residual",
        "missing step",
        INPUT,
        edit(f"{_INPUT}.__call__", "self.conv_pos_embed(y, tail=tail) + y", "self.conv_pos_embed(y, tail=tail)"),
    ),
    Fault(
        "chunk_mask_never_used",
        "mask",
        DIT,
        edit(f"{_DIT}.attention_mask", "self.config.static_chunk_size if streaming else 0", "0"),
    ),
    Fault(
        "chunk_mask_always_used",
        "mask",
        DIT,
        edit(
            f"{_DIT}.attention_mask",
            "self.config.static_chunk_size if streaming else 0",
            "self.config.static_chunk_size",
        ),
    ),
    Fault(
        "chunk_one_frame_shorter",
        "off by one",
        DIT,
        edit(f"{_DIT}.attention_mask", "self.config.static_chunk_size if", "self.config.static_chunk_size - 1 if"),
    ),
    Fault(
        "last_norm_left_out",
        "missing step",
        DIT,
        edit(f"{_DIT}.__call__", "self.norm_out(x, t)", "x"),
    ),
    Fault(
        "transformer_in_half_precision",
        "precision",
        DIT,
        edit(f"{_DIT}.__call__", "state.tails).astype(mx.float32)", "state.tails).astype(mx.float16)"),
        "mobius 42",
    ),
    Fault(
        "second_block_without_mask",
        "mask",
        DIT,
        edit(
            f"{_DIT}.__call__",
            "x = block(x, t, mask=mask, rope=rope, kept=state and state.kept[i])",
            "x, mask = block(x, t, mask=mask, rope=rope, kept=state and state.kept[i]), None",
        ),
    ),
    # look-ahead
    Fault("lookahead_relu", "slope", LOOK, edit(_LOOK, "nn.leaky_relu(", "nn.relu("), "speech-swift 378"),
    Fault(
        "lookahead_slope_0.1",
        "slope",
        LOOK,
        edit(_LOOK, "self.conv1(y))", "self.conv1(y), 0.1)"),
    ),
    Fault(
        "lookahead_without_residual",
        "missing step",
        LOOK,
        edit(
            _LOOK,
            "self.conv2(y) + inputs",
            "self.conv2(y)",
        ),
        "speech-swift 378",
    ),
    Fault(
        "lookahead_padded_on_the_right",
        "padding",
        LOOK,
        edit(_LOOK, "(CONV2_KERNEL_SIZE - 1, 0)", "(0, CONV2_KERNEL_SIZE - 1)"),
    ),
    Fault(
        "lookahead_context_ignored",
        "missing step",
        LOOK,
        edit(
            _LOOK, "y = mx.concatenate((inputs, context), axis=1)", "y = mx.concatenate((inputs, 0 * context), axis=1)"
        ),
    ),
    # matching
    Fault(
        "linear_schedule",
        "schedule",
        "flow.matching.cosine_schedule",
        edit(_SCHEDULE, "return dtype(1) - np.cos(angles.astype(np.float64)).astype(dtype)", "return points"),
    ),
    Fault(
        "schedule_by_sine",
        "schedule",
        "flow.matching.cosine_schedule",
        edit(_SCHEDULE, "dtype(1) - np.cos(", "np.sin("),
    ),
    Fault(
        "guidance_sign",
        "guidance",
        VELOCITY,
        edit(f"{_CFM}.velocity", "(1.0 + rate) * v_cond - rate * v_uncond", "(1.0 - rate) * v_cond + rate * v_uncond"),
    ),
    Fault(
        "guidance_rate_off_by_a_thousandth",
        "constant",
        VELOCITY,
        edit(
            f"{_CFM}.velocity", "rate = self.config.inference_cfg_rate", "rate = 1.001 * self.config.inference_cfg_rate"
        ),
    ),
    Fault(
        "guidance_without_one_plus",
        "guidance",
        VELOCITY,
        edit(f"{_CFM}.velocity", "(1.0 + rate) * v_cond - rate * v_uncond", "v_uncond + rate * (v_cond - v_uncond)"),
    ),
    Fault(
        "unconditional_half_keeps_mu",
        "guidance",
        VELOCITY,
        edit(f"{_CFM}.velocity", "mx.concatenate((mu, mx.zeros_like(mu)))", "mx.concatenate((mu, mu))"),
        "speech-core 101",
    ),
    Fault(
        "unconditional_half_keeps_the_speaker",
        "guidance",
        VELOCITY,
        edit(f"{_CFM}.velocity", "mx.concatenate((spks, mx.zeros_like(spks)))", "mx.concatenate((spks, spks))"),
        "speech-core 101",
    ),
    Fault(
        "separate_guidance_keeps_the_prompt",
        "guidance",
        VELOCITY,
        edit(
            f"{_CFM}.velocity",
            "mx.zeros_like(spks), mx.zeros_like(cond), streaming",
            "mx.zeros_like(spks), cond, streaming",
        ),
    ),
    Fault(
        "separate_guidance_drops_the_chunk_mask",
        "guidance",
        VELOCITY,
        edit(
            f"{_CFM}.velocity",
            "mx.zeros_like(cond), streaming\n",
            "mx.zeros_like(cond), False\n",
        ),
    ),
    Fault("temperature_ignored", "missing step", CFM, edit(f"{_CFM}.__call__", "mu.shape) * temperature", "mu.shape)")),
    Fault(
        "noise_from_the_end_of_the_buffer",
        "noise use",
        CFM,
        edit(f"{_CFM}.__call__", "noise[:, :n].astype", "noise[:, -n:].astype"),
        "CosyVoice 406",
    ),
    Fault(
        "first_step_size_for_every_step",
        "schedule",
        CFM,
        edit(
            f"{_CFM}.solve_euler", "dt = following - t if following is not None else dt", "dt = t_span[1] - t_span[0]"
        ),
    ),
    Fault(
        "time_runs_ahead",
        "order",
        CFM,
        edit(f"{_CFM}.solve_euler", "self.velocity(x, t, mu", "self.velocity(x, t + dt, mu"),
    ),
    Fault(
        "state_in_half_precision",
        "precision",
        CFM,
        edit(f"{_CFM}.solve_euler", "mx.eval(x, step", "mx.eval(x := x.astype(mx.float16).astype(mx.float32), step"),
        "sglang-omni 1713",
    ),
    Fault(
        "steps_measured_from_the_schedule",
        "schedule",
        CFM,
        edit(
            f"{_CFM}.solve_euler",
            "            t = t + dt\n",
            "            t = following if following is not None else t_span[-1]\n",
        ),
    ),
    # the whole
    Fault(
        "speaker_not_normalised",
        "normalisation",
        DECODER,
        edit(f"{_DECODER}.speaker", "embedding = embedding / mx.maximum(norm, NORMALIZE_EPS)", "pass"),
        "speech-swift 378",
    ),
    Fault(
        "negative_token_wraps",
        "token ids",
        DECODER,
        edit(f"{_DECODER}.encode", "ids.clip(min=0)", "ids"),
        "vllm-omni 2486",
    ),
    Fault(
        "frames_tiled_instead_of_repeated",
        "order",
        DECODER,
        edit(
            f"{_DECODER}.encode",
            "mx.repeat(mu, self.config.token_mel_ratio, axis=1)",
            "mx.tile(mu, (1, self.config.token_mel_ratio, 1))",
        ),
    ),
    Fault(
        "chunk_without_lookahead",
        "missing step",
        DECODER,
        edit(f"{_DECODER}.encode", "context=embedded[:, -ahead:]", "context=None"),
    ),
    Fault(
        "prompt_mel_at_the_end",
        "padding",
        DECODER,
        edit(f"{_DECODER}.inference", "(0, n - prompt_feat.shape[1])", "(n - prompt_feat.shape[1], 0)"),
    ),
    Fault(
        "prompt_mel_one_frame_late",
        "off by one",
        DECODER,
        edit(
            f"{_DECODER}.inference",
            "cond = mx.pad(prompt_feat,",
            "cond = mx.pad(mx.concatenate((prompt_feat[:, :1], prompt_feat[:, :-1]), axis=1),",
        ),
    ),
    Fault(
        "first_frame_after_the_prompt_lost",
        "off by one",
        DECODER,
        edit(
            f"{_DECODER}.inference",
            "return feat[:, prompt_feat.shape[1] :]",
            "return mx.concatenate((feat[:, prompt_feat.shape[1] + 1 :], feat[:, -1:]), axis=1)",
        ),
    ),
    Fault(
        "fresh_noise_each_time",
        "noise law",
        DECODER,
        edit(f"{_DECODER}.inference", "mx.array(rand_noise(n))", "mx.random.normal((1, self.config.output_size, n))"),
        "speech-swift 378",
    ),
    Fault(
        "flow_streams_as_if_whole",
        "mask",
        DECODER,
        edit(f"{_DECODER}.inference", "streaming=streaming", "streaming=False"),
    ),
)
