"""Isolated cases of the front end: audio features, speech tokenizer, speaker encoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_parity.case import Case, Draw, normal
from parity_tests.cases import case, cases_of, valid

TOKENIZER = dict(n_mels=16, dim=32, heads=2, depth=2)
SPEAKER: dict[str, Any] = dict(
    n_mels=80, embed_dim=24, head_channels=4, init_channels=8, growth_rate=4, bottleneck_channels=8
)
SPEAKER |= dict(block_layers=(2, 3), block_dilations=(1, 2))
CAM = dict(bn_channels=8, out_channels=4, segment_frames=100)
FULL, HELD = dict(divide_by_full_segment=True), dict(divide_by_full_segment=False)
LAYER = dict(in_channels=12, out_channels=4, bn_channels=8, segment_frames=100, eps=1e-5, **FULL)
ATTENTION = dict(dim=32, heads=2, kernel_size=31)


def voice(samples: int, rate: int = 24000, batch: int = 1) -> Draw:
    """Speech-like: a gliding harmonic tone with noise and a silence in it, peak near 0.7."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        t = np.arange(samples) / rate
        pitch = 2 * np.pi * (140 * t + 40 * np.sin(2 * np.pi * 1.3 * t))
        tone = sum(np.sin(k * pitch + k) / k for k in range(1, 12))
        wave = 0.25 * tone + 0.02 * rng.standard_normal((batch, samples))
        wave[:, samples // 3 : samples // 2] *= 1e-4
        return wave.astype(np.float32)

    return draw


def from_silence(samples: int) -> Draw:
    """Exact silence, then noise that grows from far below the floor of a log-mel to well above it."""
    level = np.where(np.arange(samples) < samples // 4, 0.0, np.geomspace(1e-7, 1e-2, samples))
    return lambda rng: (level * rng.standard_normal((1, samples))).astype(np.float32)


def half_angles(n: int, dim: int) -> np.ndarray:
    """(n, dim) angles, the second half like the first."""
    frequencies = 1.0 / 10000.0 ** (np.arange(0, dim, 2, dtype=np.float32) / dim)
    return np.tile(np.arange(n, dtype=np.float32)[:, None] * frequencies, 2).astype(np.float32)


def _resample(source: int, target: int, samples: int) -> Case:
    call = dict(orig_freq=source, new_freq=target)
    name = f"frontend.resample.{source}.{target}"
    return case(name, "frontend.audio.resample", None, call, waveform=voice(samples, source))


def _tokenizer(name: str, what: str, frames: int, *lengths: int, digits: int = 4) -> Case:
    path = "frontend.speech_tokenizer.S3TokenizerV3" + what
    sizes = np.array(lengths, np.int32)
    return case(name, path, dict(TOKENIZER, fsq_dim=digits), mel=normal(len(lengths), 16, frames), mel_len=sizes)


def _bank(rate: int, n_fft: int, mels: int, top: float) -> dict[str, float]:
    return dict(sampling_rate=rate, n_fft=n_fft, num_mels=mels, fmin=0.0, fmax=top)


def _cam(frames: int, dilation: int, divided: dict[str, bool]) -> Case:
    name = f"cam.{frames}.{dilation}{'' if divided is FULL else '.held'}"
    return speaker(name, "CAMLayer", dict(CAM, dilation=dilation, **divided), x=normal(2, 8, frames))


audio = cases_of("frontend", "frontend.audio")
tokenizer = cases_of("speech_tokenizer", "frontend.speech_tokenizer")
speaker = cases_of("speaker", "frontend.speaker")
HEARD = dict(x=normal(2, 37, 32), mask=valid(37, 37, 20)[:, 0] > 0, rope=half_angles(37, 16))
NARROW = dict(in_channels=12, out_channels=6, eps=1e-5)
CASES = (
    *(_resample(*rates) for rates in ((24000, 16000, 2401), (22050, 16000, 2205), (22050, 24000, 2205))),
    *(_resample(*rates) for rates in ((44100, 24000, 4410), (48000, 16000, 4801), (16000, 24000, 1600))),
    audio("mel_basis", "mel_filterbank", None, _bank(24000, 1920, 80, 12000.0)),
    audio("log_mel_basis", "mel_filterbank", None, _bank(16000, 400, 128, 8000.0)),
    audio("mel", "mel_spectrogram", y=voice(9600, batch=2)),
    audio("mel.odd", "mel_spectrogram", y=voice(7001)),
    audio("mel.quiet", "mel_spectrogram", y=from_silence(9600)),
    audio("log_mel", "log_mel_spectrogram", audio=voice(8000, 16000, 2)),
    audio("log_mel.odd", "log_mel_spectrogram", audio=voice(4999, 16000)),
    audio("kaldi_basis", "kaldi_mel_banks", None, dict(num_bins=80, n_fft=512, sample_frequency=16000)),
    audio("fbank", "fbank", waveform=voice(8000, 16000)),
    audio("fbank.quiet", "fbank", waveform=from_silence(6400)),
    audio("fbank.mean", "fbank", None, dict(subtract_mean=True), waveform=voice(6001, 16000)),
    tokenizer("attention", "FSMNMultiHeadAttention", ATTENTION, **HEARD),
    tokenizer("block", "ResidualAttentionBlock", dict(ATTENTION, mlp_mult=4, eps=1e-5), **HEARD),
    tokenizer("fsq.activations", "FSQVectorQuantization.activations", dict(dim=32, fsq_dim=8), x=HEARD["x"]),
    tokenizer("fsq", "FSQVectorQuantization", dict(dim=32, fsq_dim=8), x=HEARD["x"]),
    _tokenizer("speech_tokenizer.activations", ".activations", 101, 101),
    _tokenizer("speech_tokenizer.activations.padded", ".activations", 103, 103, 58),
    _tokenizer("speech_tokenizer.activations.short", ".activations", 5, 5),
    # Rounding hides small changes, so it takes many digits to show every weight.
    _tokenizer("speech_tokenizer.tokens", "", 1601, 1601, digits=8),
    _tokenizer("speech_tokenizer.tokens.padded", "", 1203, 1203, 858, digits=8),
    *(speaker(f"res_block.{n}", "BasicResBlock", dict(channels=4, stride=n), x=normal(2, 4, 20, 17)) for n in (1, 2)),
    speaker("head", "FCM", dict(channels=4), x=normal(2, 80, 23)),
    speaker("tdnn", "TDNNLayer", dict(in_channels=12, out_channels=8, kernel_size=5, stride=2), x=normal(2, 12, 33)),
    *(_cam(*sizes, FULL) for sizes in ((37, 1), (100, 2), (137, 2), (201, 1))),
    *(_cam(*sizes, HELD) for sizes in ((37, 1), (137, 2))),
    speaker("dense_layer", "CAMDenseTDNNLayer", dict(LAYER, dilation=2), x=normal(2, 12, 123)),
    speaker("dense_block", "CAMDenseTDNNBlock", dict(LAYER, num_layers=3, dilation=2), x=normal(2, 12, 123)),
    *(
        speaker(f"transit.{name}", "TransitLayer", dict(NARROW, bias=name == "bias"), x=normal(2, 12, 23))
        for name in ("plain", "bias")
    ),
    speaker("stats", "StatsPool", x=normal(2, 12, 23)),
    speaker("dense", "DenseLayer", dict(in_channels=12, out_channels=24, eps=1e-5), x=normal(2, 12)),
    *(speaker(f"embedding.{frames}", "CAMPPlus", SPEAKER, x=normal(1, frames, 80)) for frames in (57, 250)),
)
