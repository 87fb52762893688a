"""Faults of the driver: chunks, hops, caches, what one request leaves behind for the next."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

MODEL = "model.CosyVoice3Model"
_TTS, _CHUNKS, _WAV = (f"model:CosyVoice3Model.{name}" for name in ("tts", "_chunks", "token2wav"))
_SILENCE, _TEMPO = "model:drop_silence", "model:interpolate"

FAULTS = (
    Fault(
        "hop_never_grows", "chunks", MODEL, edit(_CHUNKS, "config.stream_scale_factor * token_hop_len", "token_hop_len")
    ),
    Fault(
        "hop_grows_without_limit",
        "chunks",
        MODEL,
        edit(
            _CHUNKS,
            "min(longest, config.stream_scale_factor * token_hop_len)",
            "config.stream_scale_factor * token_hop_len",
        ),
    ),
    Fault(
        "hop_reset_by_every_request",
        "state",
        MODEL,
        edit(_CHUNKS, "if not reset_hop:", "if reset_hop:"),
        "CosyVoice PR 1849",
    ),
    Fault(
        "reset_hop_leaks",
        "state",
        MODEL,
        edit(_CHUNKS, "                if not reset_hop:\n", "                if True:\n"),
        "CosyVoice PR 1849",
    ),
    Fault("first_chunk_not_padded", "chunks", MODEL, edit(_CHUNKS, "-prompt_tokens % token_hop_len", "0")),
    Fault(
        "first_chunk_padded_by_the_remainder",
        "chunks",
        MODEL,
        edit(_CHUNKS, "-prompt_tokens % token_hop_len", "prompt_tokens % token_hop_len"),
    ),
    Fault(
        "chunk_without_waiting_for_the_lookahead",
        "chunks",
        MODEL,
        edit(_CHUNKS, "needed = token_offset + hop + ahead", "needed = token_offset + hop"),
    ),
    Fault(
        "chunk_waits_for_one_more",
        "off by one",
        MODEL,
        edit(_CHUNKS, "needed = token_offset + hop + ahead", "needed = token_offset + hop + ahead + 1"),
    ),
    Fault(
        "chunks_as_if_final",
        "chunks",
        MODEL,
        edit(_CHUNKS, "stream=True, finalize=False", "stream=True, finalize=True"),
    ),
    Fault(
        "chunks_see_everything",
        "mask",
        MODEL,
        edit(_CHUNKS, "stream=True, finalize=False", "stream=False, finalize=False"),
    ),
    Fault(
        "last_chunk_keeps_the_mask",
        "mask",
        MODEL,
        edit(_TTS, "full = stream is None or not stream.causal_final", "full = stream is None"),
    ),
    Fault(
        "last_chunk_is_not_final", "chunks", MODEL, edit(_TTS, "finalize=True, speed", "finalize=stream is None, speed")
    ),
    Fault("samples_given_twice", "state", MODEL, edit(_WAV, "cache.speech_offset += speech.shape[1]", "pass")),
    Fault(
        "samples_counted_one_short",
        "off by one",
        MODEL,
        edit(_WAV, "cache.speech_offset += speech.shape[1]", "cache.speech_offset += speech.shape[1] - 1"),
    ),
    Fault(
        "mel_cut_by_tokens",
        "chunks",
        MODEL,
        edit(_WAV, "token_offset * self.config.flow.token_mel_ratio", "token_offset"),
    ),
    Fault(
        "prompt_cut_on_audio",
        "chunks",
        MODEL,
        edit(
            _WAV, "speech[:, cache.speech_offset :]", "speech[:, cache.speech_offset + (480 if token_offset else 0) :]"
        ),
        "speech-swift 378",
    ),
    Fault(
        "vocoder_sees_the_new_mel_only", "state", MODEL, edit(_WAV, "mx.concatenate([cache.mel, new], axis=1)", "new")
    ),
    Fault(
        "requests_share_their_cache",
        "state",
        MODEL,
        edit(
            _TTS,
            "cache=SynthesisCache(stream=stream)",
            'cache=self.__dict__.setdefault("shared", SynthesisCache(stream=stream))',
        ),
        "CosyVoice PR 1849",
    ),
    Fault(
        "silence_limit_of_six",
        "off by one",
        "model.drop_silence",
        edit(_SILENCE, "silent <= config", "silent - 1 <= config"),
    ),
    Fault(
        "silence_never_dropped",
        "missing step",
        "model.drop_silence",
        edit(_SILENCE, "if silent <= config.max_silent_tokens:", "if True:"),
    ),
    Fault(
        "silence_counted_in_all",
        "state",
        "model.drop_silence",
        edit(
            _SILENCE, "silent + 1 if token in config.silent_tokens else 0", "silent + (token in config.silent_tokens)"
        ),
    ),
    Fault(
        "tempo_aligned_at_the_corners",
        "interpolation",
        "model.interpolate",
        edit(
            _TEMPO,
            "(np.arange(size) + 0.5) * (frames / size) - 0.5",
            "np.arange(size) * ((frames - 1) / max(size - 1, 1))",
        ),
    ),
    Fault(
        "tempo_nearest_frame",
        "interpolation",
        "model.interpolate",
        edit(_TEMPO, "(position - below).astype(np.float32)", "np.round(position - below).astype(np.float32)"),
    ),
    Fault(
        "tempo_in_reverse",
        "order",
        MODEL,
        edit("model:_frames_at_speed", "return int(frames / speed)", "return int(frames * speed)"),
    ),
)
