"""One fault or more of each kind that came through a set of unseen faults, for the tests that were missing.

What a model is handed later than its first seconds, the third request on kept state, draws across pieces of a text,
dtypes along a half-precision model, locks, devices without float64, the number of terms in a sum, and conventions.
"""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, constant, edit

INFERENCE, GENERATOR = "flow.decoder.CausalMaskedDiffWithDiT.inference", "vocoder.generator.CausalHiFTGenerator"
STREAM = "stream.flow.StreamingFlow"
_PITCH, _MEMORY = "vocoder.f0:CausalConvRNNF0Predictor.__call__", "stream.memory:Memory"
_SPEAK = "cosyvoice3:CosyVoice3._speak"

FAULTS = (
    # What is given out and handed over past the first seconds.
    Fault(
        "rest_of_a_block_of_noise_is_lost",
        "late noise",
        "noise",
        edit(
            "noise:_FixedNoise.grow",
            "source.uniform(count * HARMONICS).reshape",
            "source.uniform(_BLOCK)[: count * HARMONICS].reshape",
        ),
    ),
    Fault(
        "sine_waves_repeat_after_ten_seconds",
        "late noise",
        "noise",
        edit(
            "noise:sine_waves",
            "_FIXED.sines[offset : offset + samples]",
            "_FIXED.sines[np.arange(offset, offset + samples) % 240_000]",
        ),
    ),
    Fault(
        "flow_noise_repeats_after_ten_seconds",
        "late noise",
        INFERENCE,
        edit(
            "flow.decoder:CausalMaskedDiffWithDiT.inference",
            "mx.array(rand_noise(n))",
            "mx.array(rand_noise(n)[:, :, np.arange(n) % 500])",
        ),
    ),
    Fault(
        "streamed_flow_noise_repeats_after_ten_seconds",
        "late noise",
        STREAM,
        edit(
            f"stream.flow:{STREAM.split('.')[-1]}.noise_of",
            "[:, :, start:]",
            "[:, :, np.arange(start, end) % 500]",
        ),
    ),
    Fault(
        "source_noise_repeats_after_ten_seconds",
        "late noise",
        f"{GENERATOR}.inference",
        edit(
            "vocoder.generator:CausalHiFTGenerator.inference",
            "noise.sine_waves(f0.shape[1] * config.hop_samples)",
            "noise.sine_waves(f0.shape[1] * config.hop_samples)[[i % 240_000 for i in range(f0.shape[1] * 480)]]",
        ),
    ),
    Fault(
        "streamed_source_noise_repeats_after_ten_seconds",
        "late noise",
        "stream.vocoder.StreamingVocoder",
        edit(
            "stream.vocoder:StreamingVocoder._noise",
            "noise.sine_waves(last - first, first)",
            "noise.sine_waves(last - first, first % 240_000)",
        ),
    ),
    # The third and later request.
    Fault(
        "kept_prompt_is_not_copied",
        "third request",
        STREAM,
        edit("stream.flow:StreamingFlow._begin", "kept.copy(frames, self._state.capacity)", "kept"),
    ),
    Fault(
        "oldest_prompt_goes_though_it_was_just_used",
        "third request",
        "stream.memory",
        edit(f"{_MEMORY}.find", "self._prompts.pop(key, None)", "self._prompts.get(key)"),
    ),
    Fault(
        "voice_of_the_first_request_stays",
        "third request",
        "model.CosyVoice3Model",
        edit(
            "model:CosyVoice3Model.tts",
            "empty = Prompt(prompt.flow_embedding,",
            'prompt = replace(prompt, flow_embedding=self.__dict__.setdefault("first", prompt.flow_embedding))\n'
            "        empty = Prompt(prompt.flow_embedding,",
        ),
    ),
    # Draws across the pieces of a text.
    Fault(
        "each_piece_draws_from_the_start",
        "draws",
        "cosyvoice3",
        edit(
            _SPEAK,
            "chosen.of_model(draws)",
            "chosen.of_model(SeededDraws(secrets.randbits(32) if chosen.seed is None else chosen.seed))",
        ),
    ),
    Fault(
        "seed_zero_is_none",
        "draws",
        "cosyvoice3",
        edit(_SPEAK, "if chosen.seed is None else chosen.seed", "if not chosen.seed else chosen.seed"),
    ),
    # Dtypes of a half-precision model.
    Fault(
        "language_model_sums_in_the_dtype_of_its_tables",
        "dtype",
        "llm.qwen2.Qwen2Model",
        edit("llm.qwen2:Qwen2Model.__call__", "inputs_embeds.astype(mx.float32)", "inputs_embeds"),
    ),
    Fault(
        "weights_promoted_in_every_call",
        "dtype",
        "fast.precision",
        edit("fast.precision:OwnLinear.__call__", "x.astype(layer_dtype(self))", "x"),
    ),
    Fault(
        "modulations_in_half_precision",
        "dtype",
        "flow.layers.AdaLayerNormZero",
        edit("flow.layers:AdaLayerNormZero.modulation", ".astype(mx.float32), 6", ", 6"),
    ),
    Fault(
        "guidance_mixed_in_half_precision",
        "dtype",
        "flow.matching.CausalConditionalCFM.velocity",
        edit(
            "flow.matching:CausalConditionalCFM.velocity",
            "mx.split(v.astype(mx.float32), 2)",
            "mx.split(v, 2)",
        ),
    ),
    Fault(
        "keys_of_a_stream_kept_in_float32",
        "dtype",
        STREAM,
        edit(
            "stream.state:Kept._extend",
            "mx.contiguous(new[..., : self.span.whole, :])",
            "mx.contiguous(new[..., : self.span.whole, :]).astype(mx.float32)",
        ),
    ),
    # Locks.
    Fault("sine_waves_without_the_lock", "lock", "noise", edit("noise:sine_waves", "with _FIXED.lock:", "if True:")),
    Fault("flow_noise_without_the_lock", "lock", "noise", edit("noise:rand_noise", "with _FIXED.lock:", "if True:")),
    Fault(
        "memory_reserved_without_the_lock",
        "lock",
        "stream.memory",
        edit(f"{_MEMORY}.reserve", "with self._lock:", "if True:"),
    ),
    Fault(
        "prompt_found_without_the_lock",
        "lock",
        "stream.memory",
        edit(f"{_MEMORY}.find", "with self._lock:", "if True:"),
    ),
    Fault(
        "prompt_kept_without_the_lock",
        "lock",
        "stream.memory",
        edit(f"{_MEMORY}.keeper", "with self._lock:", "if True:"),
    ),
    Fault(
        "normalizer_without_its_lock",
        "lock",
        "frontend.text",
        edit("frontend.normalizer:WeTextNormalizer._attempt", "with self._lock:", "if True:"),
    ),
    # Devices without float64.
    Fault(
        "pitch_on_the_default_device",
        "device",
        "vocoder.f0.CausalConvRNNF0Predictor",
        edit(_PITCH, "with mx.stream(mx.cpu):", "if True:"),
    ),
    Fault(
        "pitch_rounded_on_the_default_device",
        "device",
        "vocoder.f0.CausalConvRNNF0Predictor",
        edit(_PITCH, "            return mx.abs(", "        return mx.abs("),
    ),
    # Terms in a sum.
    Fault("products_of_any_length", "terms", "fast.convolution", constant("fast.convolution:LONGEST_SUM", 1 << 20)),
    Fault(
        "upsampling_with_a_tap_of_zeros",
        "terms",
        "vocoder.convolution.CausalConv1dUpsample",
        edit(
            "fast.convolution:polyphase",
            "np.arange(frame.min(), 1)",
            "np.arange(frame.min() - 1, 1)",
        ),
    ),
    # Positions: where they start is a convention, how far apart they are is not.
    Fault(
        "keys_one_position_ahead",
        "rotary",
        "flow.layers.Attention",
        edit(
            "flow.layers:Attention.project",
            "apply_rotary_pos_emb(k, rope)",
            "apply_rotary_pos_emb(k, [mx.roll(table, -1, axis=1) for table in rope])",
        ),
    ),
    Fault(
        "a_position_left_out_after_the_first_second",
        "rotary",
        "flow.layers.RotaryEmbedding",
        edit(
            "flow.layers:RotaryEmbedding.__call__",
            "positions = np.arange(offset, offset + seq_len, dtype=np.float32)",
            "positions = np.arange(offset, offset + seq_len, dtype=np.float32)\n        positions += positions >= 50",
        ),
    ),
    # Names that misled.
    Fault(
        "prompt_mel_of_half_the_volume",
        "hand-over",
        "frontend.frontend",
        edit(
            "frontend.frontend:CosyVoiceFrontEnd.extract_speech_feat",
            "mel_spectrogram(speech,",
            "mel_spectrogram(0.5 * speech,",
        ),
    ),
    Fault(
        "speaker_heard_without_its_mean_taken_off",
        "hand-over",
        "frontend.frontend",
        edit("frontend.frontend:CosyVoiceFrontEnd.extract_spk_embedding", "subtract_mean=True", "subtract_mean=False"),
    ),
    Fault(
        "silu_with_a_short_logarithm",
        "activation",
        "fast.arithmetic.silu",
        edit("fast.arithmetic:silu", "exp2(-LOG2_E * x)", "exp2(-1.444 * x)"),
    ),
)
