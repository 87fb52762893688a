"""Audio front end: difficult signals compared three-way, real mistakes of ports, and refused input."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import torch

from mlx_parity.compare import BUDGET, compare
from mlx_parity.sides.truth import against
from port.frontend import audio as port
from reference.frontend import audio as reference

pytestmark = pytest.mark.part("frontend.audio")

SHARED = Path(__file__).resolve().parents[2] / "shared"
RATE = 24000
SIDES = pytest.mark.parametrize("side", [reference, port], ids=["reference", "port"])


def _signals():
    rng, t = np.random.default_rng(0), np.arange(RATE) / RATE
    speech = sum(np.sin(2 * np.pi * 120 * h * t + h) / h for h in range(1, 30)) * (
        0.5 + 0.5 * np.sin(2 * np.pi * 3 * t)
    )
    return {
        "noise": 0.2 * rng.standard_normal(RATE),
        "chirp": 0.5 * np.sin(2 * np.pi * (50 * t + 5500 * t * t)),
        "voice": 0.1 * speech + 1e-3 * rng.standard_normal(RATE),
        "onset": np.where(t < 0.4, 0.0, 0.5 * np.sin(2 * np.pi * 220 * t)),
        "beyond": 1.5 * rng.standard_normal(RATE),
    }


SIGNALS = {name: signal.astype(np.float32)[None] for name, signal in _signals().items()}
# name -> function of one side's module and array; the port's features are channels-last
FEATURES = {
    "mel": lambda side, y: side.mel_spectrogram(y),
    "log_mel": lambda side, y: side.log_mel_spectrogram(y),
    "fbank": lambda side, y: side.fbank(y),
    "fbank_mean_removed": lambda side, y: side.fbank(y, subtract_mean=True),
    "resample_24_16": lambda side, y: side.resample(y, 24000, 16000),
    "resample_22_24": lambda side, y: side.resample(y, 22050, 24000),
    "resample_44_16": lambda side, y: side.resample(y, 44100, 16000),
    "resample_48_24": lambda side, y: side.resample(y, 48000, 24000),
    "resample_16_24": lambda side, y: side.resample(y, 16000, 24000),
}


def judge(feature, y):
    found = np.array(FEATURES[feature](port, mx.array(y)))
    found = found.swapaxes(1, 2) if found.ndim == 3 else found
    return against(found, lambda dtype: FEATURES[feature](reference, torch.from_numpy(y).to(dtype)).numpy())


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("feature", FEATURES)
def test_port_equals_reference(feature, signal):
    reading = judge(feature, SIGNALS[signal])
    assert reading.status == "PASS", reading.message


def test_a_batch_equals_its_rows_alone():
    y = np.concatenate([SIGNALS["noise"], SIGNALS["chirp"]])
    for feature in ("mel", "resample_24_16"):
        rows = [np.array(FEATURES[feature](port, row[None])) for row in y]
        assert np.array_equal(np.array(FEATURES[feature](port, y)), np.concatenate(rows))


@pytest.mark.parametrize("name", ["zero_shot_prompt", "cross_lingual_prompt"])
def test_recorded_speech(name):
    path = SHARED / "audio" / f"{name}.wav"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    for rate in (16000, 24000):
        y, (exact, orig) = reference.load_wav(path, rate), soundfile.read(path, dtype="float64", always_2d=True)
        oracle = reference.resample(torch.from_numpy(exact.mean(axis=1))[None], orig, rate)
        reading = compare(np.array(port.load_wav(path, rate)), y.numpy(), oracle.numpy())
        assert reading.status == "PASS", reading.message
    for feature in FEATURES:
        reading = judge(feature, y.numpy())
        assert reading.status == "PASS", (feature, reading.message)


def test_lengths_of_the_features():
    """100 log-mel, 50 mel and 98 fbank frames a second; nothing is padded to 30 s."""
    for samples in (16000, 37920, 55680, 721 + 400):
        y = SIGNALS["noise"][:, :1].repeat(samples, axis=1) + np.linspace(0, 0.1, samples, dtype=np.float32)
        for side, frames in ((reference, -1), (port, 1)):
            z = torch.from_numpy(y) if side is reference else mx.array(y)
            assert side.log_mel_spectrogram(z).shape[frames] == samples // 160
            assert side.mel_spectrogram(z).shape[frames] == samples // 480
            assert side.fbank(z).shape == (1 + (samples - 400) // 160, 80)
            assert side.resample(z, 22050, 16000).shape == (1, -(-samples * 320 // 441))
            assert side.resample(z, 16000, 16000).shape == z.shape


@pytest.mark.parametrize(("orig", "new"), [(3, 2), (147, 160), (441, 320), (147, 80), (2, 1), (2, 3)])
def test_both_sides_have_the_same_kernel(orig, new):
    (theirs, width), (ours, own_width) = reference.resample_kernel(orig, new), port.resample_kernel(orig, new)
    assert width == own_width
    assert theirs.shape == ours.shape == (new, 2 * width + orig)
    # equal float64 values may round to float32 differently
    assert np.abs(theirs.numpy() - ours).max() <= 2**-24


KERNEL = port.resample_kernel


def _no_rounding(orig, new):
    _, width = KERNEL(orig, new)
    base, w = min(orig, new) * 0.99, 6
    t = (-np.arange(new)[:, None] / new + np.arange(-width, width + orig) / orig) * base
    t = np.clip(t, -w, w)
    return (np.sinc(t) * np.cos(t * np.pi / w / 2) ** 2 * base / orig).astype(np.float32), width


# Mistakes that ports have really made; each must fail.
MISTAKES: dict[str, tuple[str, dict[str, Callable]]] = {
    "phases not rounded to float32": ("resample_22_24", {"resample_kernel": _no_rounding}),
    "symmetric Hann window, 24 kHz": ("mel", {"_hann_window": np.hanning}),
    "symmetric Hann window, 16 kHz": ("log_mel", {"_hann_window": np.hanning}),
    "mel triangles up to 8 kHz only": (
        "mel",
        {"mel_filterbank": lambda rate, n, k, low, high: reference.mel_filterbank(rate, n, k, low, 8000.0).numpy()},
    ),
    "triangles linear in Hz": (
        "fbank",
        {"kaldi_mel_banks": lambda k, n, rate: reference.mel_filterbank(rate, n, k, 20.0, rate / 2).numpy()},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_a_port_fails(mistake, monkeypatch):
    feature, changes = MISTAKES[mistake]
    for name, value in changes.items():
        monkeypatch.setattr(port, name, value)
    reading = judge(feature, SIGNALS["voice"])
    assert reading.status == "FAIL"
    assert reading.ratio > BUDGET


@SIDES
@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "PCM_24"), ("flac", "PCM_16"), ("ogg", "VORBIS")],
)
def test_reads_formats(side, suffix, subtype, tmp_path):
    path = tmp_path / f"sound.{suffix}"
    stereo = np.stack([SIGNALS["voice"][0], 0.5 * SIGNALS["voice"][0]], axis=1)
    soundfile.write(path, stereo, RATE, subtype=subtype)
    y = np.asarray(side.load_wav(path, RATE))
    assert y.dtype == np.float32
    assert y.shape == (1, RATE)
    written, _ = soundfile.read(path, dtype="float64")
    assert np.abs(y[0] - written.mean(axis=1)).max() <= 2**-24
    assert side.load_wav(path, 16000).shape == (1, 16000)


def _broken_files(folder):
    y = SIGNALS["voice"][0]
    soundfile.write(folder / "slow.wav", y[:8000], 8000)
    soundfile.write(folder / "empty.wav", y[:0], RATE)
    soundfile.write(folder / "nan.wav", np.where(y > 0, np.nan, y), RATE, subtype="FLOAT")
    soundfile.write(folder / "odd.wav", y, 23999)
    (folder / "text.wav").write_text("no audio")
    (folder / "nothing.wav").write_bytes(b"")
    return {
        "slow.wav": "8000 Hz is below 16000 Hz",
        "empty.wav": "holds no samples",
        "nan.wav": "NaN or infinite",
        "odd.wav": "no exact resampler for the ratio 23999:16000",
        "text.wav": "cannot be read as audio",
        "nothing.wav": "cannot be read as audio",
        "missing.wav": "no such file",
        ".": "cannot be read as audio",
    }


@SIDES
def test_refuses_broken_files_in_one_line(side, tmp_path):
    for name, reason in _broken_files(tmp_path).items():
        with pytest.raises(side.Refused, match=reason) as caught:
            side.load_wav(tmp_path / name, 16000)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)


@SIDES
def test_refuses_audio_that_is_too_short_or_too_long(side):
    array = torch.zeros if side is reference else mx.zeros
    side.check_prompt_length(array((1, 480000)), 16000)
    with pytest.raises(side.Refused, match=r"30\.1 s is longer than 30 s"):
        side.check_prompt_length(array((1, 481600)), 16000)
    for function, longest in ((side.mel_spectrogram, 720), (side.log_mel_spectrogram, 200), (side.fbank, 399)):
        function(array((1, longest + 1)))
        with pytest.raises(side.Refused, match=f"{longest} samples is too short"):
            function(array((1, longest)))
    with pytest.raises(side.Refused, match="cannot resample from 0 Hz"):
        side.resample(array((1, 100)), 0, 16000)
