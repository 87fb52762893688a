"""Faults written from the facts about the original alone, run before the suite was improved on their account.

Two rounds of ten; of the second, four stood in the catalogue already.
"""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

_DECODER = "flow.decoder:CausalMaskedDiffWithDiT.inference"

FAULTS = (
    Fault(
        "padded_rows_keep_the_bias",
        "mask",
        "flow.layers.Attention",
        edit(
            "flow.layers:Attention.__call__",
            "mx.where(frames[:, -x.shape[1] :, None], y, 0.0)",
            "mx.where(frames[:, -x.shape[1] :, None], y, self.to_out.bias)",
        ),
    ),
    Fault(
        "chunk_grid_from_the_end",
        "off by one",
        "flow.masks.subsequent_chunk_mask",
        edit(
            "flow.masks:subsequent_chunk_mask",
            "(frames[:, None] // chunk_size + 1) * chunk_size",
            "((frames[:, None] + -size % chunk_size) // chunk_size + 1) * chunk_size - -size % chunk_size",
        ),
    ),
    Fault(
        "speaker_normalised_after_its_layer",
        "order",
        "flow.decoder.CausalMaskedDiffWithDiT.inference",
        edit(
            "flow.decoder:CausalMaskedDiffWithDiT.speaker",
            "        embedding = embedding / mx.maximum(norm, NORMALIZE_EPS)\n"
            "        return self.spk_embed_affine_layer(embedding)\n",
            "        spks = self.spk_embed_affine_layer(embedding)\n"
            "        return spks / mx.sqrt(mx.sum(spks * spks, axis=1, keepdims=True))\n",
        ),
    ),
    Fault(
        "prompt_cut_by_its_tokens",
        "length",
        "flow.decoder.CausalMaskedDiffWithDiT.inference",
        edit(
            _DECODER,
            "feat[:, prompt_feat.shape[1] :]",
            "feat[:, self.config.token_mel_ratio * prompt_token.shape[1] :]",
        ),
    ),
    Fault(
        "exponentials_of_the_high_bits",
        "noise law",
        "noise",
        edit(
            "noise:TorchGenerator._uniform53",
            "(pairs[:, 0] << np.uint64(32) | pairs[:, 1]) & np.uint64((1 << 53) - 1)",
            "(pairs[:, 0] << np.uint64(32) | pairs[:, 1]) >> np.uint64(11)",
        ),
    ),
    Fault(
        "tempo_length_rounded",
        "length",
        "model.CosyVoice3Model",
        edit("model:_frames_at_speed", "return int(frames / speed)", "return round(frames / speed)"),
    ),
    Fault(
        "chunk_spectrum_cut_at_the_start",
        "off by one",
        "vocoder.generator.CausalHiFTGenerator.decode",
        edit(
            "vocoder.generator:CausalHiFTGenerator.decode",
            "s_stft[:, : -math.prod(config.upsample_rates) * look_right]",
            "s_stft[:, math.prod(config.upsample_rates) * look_right :]",
        ),
    ),
    Fault(
        "nucleus_summed_in_float64",
        "precision",
        "llm.sampling",
        edit("llm.sampling:nucleus", "dtype=np.float32)[:-1]", "dtype=np.float64)[:-1]"),
    ),
    Fault(
        "phase_step_not_wrapped",
        "missing step",
        "vocoder.source.SineGen2",
        edit(
            "vocoder.source:SineGen2._f02sine",
            "np.fmod(f0 / f32(self.sampling_rate), f32(1))",
            "f0 / f32(self.sampling_rate)",
        ),
    ),
    Fault(
        "time_frequencies_in_float64",
        "precision",
        "flow.layers.SinusPositionEmbedding",
        edit(
            "flow.layers:sinus_frequencies",
            "np.arange(half, dtype=np.float32) * np.float32(-(math.log(MAX_PERIOD) / (half - 1)))",
            "np.arange(half) * -(math.log(MAX_PERIOD) / (half - 1))",
        ),
    ),
    # The second round.
    Fault(
        "valid_frames_of_any_query",
        "mask",
        "flow.layers.Attention",
        edit("flow.layers:Attention.__call__", "mask[:, 0, -1]", "mask[:, 0].any(axis=1)"),
    ),
    Fault(
        "snake_of_the_size_of_alpha",
        "sign",
        "vocoder.generator.Snake",
        edit("vocoder.generator:Snake.__call__", "1.0 / (self.alpha + 1e-9)", "1.0 / (mx.abs(self.alpha) + 1e-9)"),
    ),
    Fault(
        "voicing_by_harmonic",
        "broadcast",
        "vocoder.source.SineGen2",
        edit(
            "vocoder.source:SineGen2.__call__",
            "np.float32(self.sine_amp) * uv",
            "np.float32(self.sine_amp) * self._f02uv(frames * harmonics)",
        ),
    ),
    Fault(
        "redraw_forbids_the_whole_window",
        "sampling",
        "llm.sampling",
        edit("llm.sampling:ras_sampling", "scores[token] =", "scores[list(decoded_tokens[-config.win_size :])] ="),
    ),
    Fault(
        "preemphasis_before_the_mean",
        "order",
        "frontend.audio.fbank",
        edit(
            "frontend.audio:fbank",
            "(frames - 0.97 * before) * window",
            "(frames - 0.97 * before - (frames - 0.97 * before).mean(axis=1, keepdims=True)) * window",
        ),
    ),
    Fault(
        "weight_norm_by_the_size_of_the_gain",
        "sign",
        "convert.transforms",
        edit("convert.transforms:fold_weight_norm", "return gain * ", "return np.abs(gain) * "),
    ),
)
