"""Faults of what a stream of the vocoder carries from chunk to chunk."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

STREAM = "stream.vocoder.StreamingVocoder"
_STREAM = "stream.vocoder:StreamingVocoder"

FAULTS = (
    Fault(
        "stream_tail_one_frame_short",
        "cache",
        STREAM,
        edit(
            "vocoder.convolution:CausalConv1d.__call__",
            "cache.keep(x[:, x.shape[1] - self.causal_padding :])",
            "cache.keep(x[:, x.shape[1] - self.causal_padding :] * (mx.arange(self.causal_padding) > 0)[:, None])",
        ),
    ),
    Fault(
        "stream_downsampling_tail_one_frame_early",
        "cache",
        STREAM,
        edit(
            "vocoder.convolution:CausalConv1dDownSample.__call__",
            "x[:, results * self.stride :]",
            "x[:, results * self.stride - 1 : -1]",
        ),
    ),
    Fault(
        "stream_pitch_without_tails",
        "cache",
        STREAM,
        edit(
            "vocoder.f0:CausalConvRNNF0Predictor.__call__",
            "tail_of(state, conv) if i else cache",
            "None if i else cache",
        ),
    ),
    Fault(
        "stream_phase_not_carried",
        "cache",
        STREAM,
        edit("vocoder.source:SineGen2._f02sine", "rad_values[:, :1] += tail.frames", "pass"),
    ),
    Fault(
        "stream_phase_carried_in_float32",
        "precision",
        STREAM,
        edit("vocoder.source:SineGen2._f02sine", "tail.keep(cycles[:, -1:])", "tail.keep(cycles[:, -1:].astype(f32))"),
    ),
    Fault(
        "stream_noise_from_the_start_again",
        "noise use",
        STREAM,
        edit(f"{_STREAM}._noise", "self._sine_waves[:, first:last]", "self._sine_waves[:, : last - first]"),
    ),
    Fault(
        "stream_fixed_noise_from_the_start_again",
        "noise use",
        STREAM,
        edit(f"{_STREAM}._noise", "noise.sine_waves(last - first, first)", "noise.sine_waves(last - first)"),
    ),
    Fault(
        "stream_reflected_at_every_chunk",
        "padding",
        STREAM,
        edit(f"{_STREAM}._excite", "[self._excitation, s] if", "[self._excitation, s[:, pad:0:-1], s] if"),
    ),
    Fault(
        "stream_end_not_reflected",
        "padding",
        STREAM,
        edit(f"{_STREAM}._excite", "[x, x[:, -2 : -pad - 2 : -1]]", "[x, 0 * x[:, :pad]]"),
    ),
    Fault(
        "stream_look_ahead_off_by_one",
        "off by one",
        STREAM,
        edit(f"{_STREAM}._filter", "self._mel[:, frames : frames", "self._mel[:, frames - 1 : frames - 1"),
    ),
    Fault(
        "stream_overlap_dropped",
        "cache",
        STREAM,
        edit(f"{_STREAM}._filter", "sums[:, :covered] + self._overlap", "sums[:, :covered]"),
    ),
    Fault(
        "stream_envelope_starts_anew",
        "normalisation",
        STREAM,
        edit(f"{_STREAM}._filter", "window[:covered] += self._window", "pass"),
    ),
    Fault(
        "stream_holds_one_frame_too_few_back",
        "off by one",
        STREAM,
        edit(f"{_STREAM}.push", "max(0, filtered - 1)", "filtered"),
    ),
    Fault(
        "stream_without_audio_limit",
        "missing step",
        STREAM,
        edit(f"{_STREAM}._filter", "mx.clip(wav, -config.audio_limit, config.audio_limit)", "wav"),
    ),
)
