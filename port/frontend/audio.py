"""Audio in, features out: file reading, torchaudio's resampler, the three spectrograms of CosyVoice 3.

b batch, s samples, n frames, k mel bins, f frequency bins

All of it runs once for a prompt, on the host in float64, and is rounded to float32 at the end: the result is the same
on every device and nearer to the true value than the original's float32.
"""

from __future__ import annotations

import math
from functools import lru_cache

import mlx.core as mx
import numpy as np

from ..files.errors import Refused
from ..files.recording import Recording, about, at_hand
from ..stream.threads import end_streams_with_thread

# A kernel has about orig x new values once both rates are divided by their gcd: 8 million is 64 MB in float64.
MAX_KERNEL_SIZE = 1 << 23
MAX_BLOCK = 1 << 23  # numbers that the resampler multiplies at a time


def load_wav(path: Recording, target_sr: int, min_sr: int = 16000) -> mx.array:
    """Read a recording as mono at `target_sr`, once (`load_wav` in cosyvoice/utils/file_utils.py).

    Args:
        path: a sound file or samples, see `recording.read`.
        target_sr: Hz.
        min_sr: lowest rate accepted, Hz.

    Returns:
        (1, s) float32; the mean over channels, peak not normalised.

    Raises:
        Refused: see `recording.read`; or a rate whose ratio to `target_sr` needs an absurdly large kernel.
    """
    end_streams_with_thread()  # every prompt starts here, in whatever thread
    heard = at_hand(path, min_sr)
    if target_sr not in heard.resampled:
        with about(heard):
            mono = heard.samples.mean(axis=1, dtype=np.float64)[None]
            heard.resampled[target_sr] = resample(mono, heard.rate, target_sr)
    return heard.resampled[target_sr]


def check_prompt_length(speech: mx.array, sample_rate: int, max_seconds: float = 30.0) -> None:
    """Refuse a prompt that the speech tokenizer was not trained for (`_extract_speech_token` in cli/frontend.py).

    Args:
        speech: (..., s).
        sample_rate: Hz.
        max_seconds: longest prompt accepted.

    Raises:
        Refused: longer than `max_seconds`.
    """
    if (seconds := speech.shape[-1] / sample_rate) > max_seconds:
        raise Refused(f"{seconds:.1f} s is longer than {max_seconds:g} s; cut it")


@lru_cache(maxsize=16)
def resample_kernel(orig_freq: int, new_freq: int) -> tuple[np.ndarray, int]:
    """Windowed-sinc kernel of torchaudio's default `Resample` (width 6, rolloff 0.99, Hann window).

    Args:
        orig_freq, new_freq: rates divided by their greatest common divisor.

    Returns:
        kernel (new_freq, 2 width + orig_freq) float32, one row for each phase; and width, the samples it reaches back.

    Raises:
        Refused: the kernel would be absurdly large.
    """
    lowpass_filter_width, rolloff = 6, 0.99
    base_freq = min(orig_freq, new_freq) * rolloff
    width = math.ceil(lowpass_filter_width * orig_freq / base_freq)
    if new_freq * (2 * width + orig_freq) > MAX_KERNEL_SIZE:
        raise Refused(f"no exact resampler for the ratio {orig_freq}:{new_freq}; convert the file to 24000 Hz first")
    taps = np.arange(-width, width + orig_freq, dtype=np.float64) / orig_freq
    # torchaudio divides integers here, which yields float32: without that rounding the kernel is off by 5e-6.
    phases = (np.arange(0, -new_freq, -1) / new_freq).astype(np.float32)
    t = np.clip((phases[:, None] + taps) * base_freq, -lowpass_filter_width, lowpass_filter_width)
    window = np.cos(t * math.pi / lowpass_filter_width / 2) ** 2
    return (np.sinc(t) * window * (base_freq / orig_freq)).astype(np.float32), width


def resample(waveform: mx.array | np.ndarray, orig_freq: int, new_freq: int) -> mx.array:
    """Change the sample rate as `torchaudio.transforms.Resample` does by default.

    Args:
        waveform: (b, s).
        orig_freq, new_freq: Hz.

    Returns:
        (b, ceil(s new_freq / orig_freq)) float32.

    Raises:
        Refused: no sample rate, or rates whose ratio needs an absurdly large kernel.
    """
    if min(orig_freq, new_freq) <= 0:
        raise Refused(f"cannot resample from {orig_freq} Hz to {new_freq} Hz")
    if orig_freq == new_freq:
        return _to_mlx(_to_host(waveform))
    divisor = math.gcd(orig_freq, new_freq)
    orig_freq, new_freq = orig_freq // divisor, new_freq // divisor
    kernel, width = resample_kernel(orig_freq, new_freq)
    b, s = waveform.shape
    padded = np.pad(_to_host(waveform), ((0, 0), (width, width + orig_freq)))
    frames = _frames(padded, kernel.shape[1], orig_freq)
    # The product copies the frames, which overlap up to 14 times: some of them at a time.
    step = max(1, MAX_BLOCK // kernel.shape[1])
    blocks = [frames[:, i : i + step] @ kernel.T.astype(np.float64) for i in range(0, frames.shape[1], step)]
    resampled = np.concatenate(blocks, axis=1)  # (b, frames, new_freq)
    return _to_mlx(resampled.reshape(b, -1)[:, : math.ceil(new_freq * s / orig_freq)])


@lru_cache(maxsize=4)
def mel_filterbank(sampling_rate: int, n_fft: int, num_mels: int, fmin: float, fmax: float) -> np.ndarray:
    """Triangles of Slaney's Auditory Toolbox with unit area (`librosa.filters.mel` with its defaults).

    Args:
        sampling_rate, fmin, fmax: Hz.

    Returns:
        (num_mels, n_fft // 2 + 1) float32.
    """
    # Linear below 1 kHz (200/3 Hz a mel), logarithmic above (27 steps for a factor of 6.4).
    hz_per_mel, log_start, log_step = 200.0 / 3.0, 1000.0, math.log(6.4) / 27.0

    def hz_to_mel(hz: float) -> float:
        return hz / hz_per_mel if hz < log_start else log_start / hz_per_mel + math.log(hz / log_start) / log_step

    mels = np.linspace(hz_to_mel(fmin), hz_to_mel(fmax), num_mels + 2)
    above = np.maximum(mels - log_start / hz_per_mel, 0.0)
    edges = np.where(above > 0, log_start * np.exp(log_step * above), hz_per_mel * mels)
    bins = np.fft.rfftfreq(n_fft, 1.0 / sampling_rate)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def mel_spectrogram(
    y: mx.array | np.ndarray,
    n_fft: int = 1920,
    num_mels: int = 80,
    sampling_rate: int = 24000,
    hop_size: int = 480,
    win_size: int = 1920,
    fmin: float = 0.0,
    fmax: float | None = None,
) -> mx.array:
    """Log-mel that the flow decoder continues (`mel_spectrogram` in matcha/utils/audio.py; sizes of cosyvoice3.yaml).

    Args:
        y: (b, s) at `sampling_rate`, in [-1, 1].
        win_size: equal to `n_fft`, as the model has it.
        fmin, fmax: Hz; None is half the rate.

    Returns:
        (b, s // hop_size, num_mels) float32, natural logarithm, not below ln(1e-5).

    Raises:
        Refused: too short to reflect at the ends.
    """
    pad = (n_fft - hop_size) // 2
    _check_reflection(y, pad)
    padded = np.pad(_to_host(y), ((0, 0), (pad, pad)), mode="reflect")
    spectrum = np.fft.rfft(_frames(padded, win_size, hop_size) * _hann_window(win_size), n_fft)
    magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
    basis = mel_filterbank(sampling_rate, n_fft, num_mels, fmin, sampling_rate / 2 if fmax is None else fmax)
    return _to_mlx(np.log(np.maximum(magnitude @ basis.T.astype(np.float64), 1e-5)))


def log_mel_spectrogram(audio: mx.array | np.ndarray, n_mels: int = 128) -> mx.array:
    """Whisper's log-mel, input of the speech tokenizer (`log_mel_spectrogram` in whisper/audio.py).

    Args:
        audio: (b, s) at 16 kHz.

    Returns:
        (b, s // 160, n_mels) float32; decimal logarithm, (x + 4) / 4, at most 2 below the loudest bin.

    Raises:
        Refused: too short to reflect at the ends.
    """
    n_fft, hop = 400, 160
    _check_reflection(audio, n_fft // 2)
    padded = np.pad(_to_host(audio), ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    power = np.abs(np.fft.rfft(_frames(padded, n_fft, hop)[:, :-1] * _hann_window(n_fft))) ** 2
    mel = power @ mel_filterbank(16000, n_fft, n_mels, 0.0, 8000.0).T.astype(np.float64)
    log_mel = np.log10(np.maximum(mel, 1e-10))
    # The floor follows the loudest bin of the whole input, as in the original; nothing is padded to 30 s.
    return _to_mlx((np.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0)


@lru_cache(maxsize=2)
def kaldi_mel_banks(num_bins: int, n_fft: int, sample_frequency: int) -> np.ndarray:
    """Triangles linear in mel from 20 Hz to half the rate (`get_mel_banks` in torchaudio/compliance/kaldi.py).

    Returns:
        (num_bins, n_fft // 2 + 1) float32; the last bin has no weight.
    """
    # float32 step by step, as in the original: mel values near 2840 leave an error of 1e-5 in the weights.
    one, scale, corner = (np.float32(value) for value in (1.0, 1127.0, 700.0))
    lowest, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (20.0, sample_frequency / 2))
    low, step = np.float32(lowest), np.float32((high - lowest) / (num_bins + 1))
    index = np.arange(num_bins, dtype=np.float32)[:, None]
    left, center, right = low + index * step, low + (index + one) * step, low + (index + np.float32(2.0)) * step
    hz = np.float32(sample_frequency / n_fft) * np.arange(n_fft // 2, dtype=np.float32)
    mel = scale * np.log((one + hz / corner).astype(np.float64)).astype(np.float32)
    triangles = np.maximum(
        np.minimum((mel - left) / (center - left), (right - mel) / (right - center)), np.float32(0.0)
    )
    return np.pad(triangles, ((0, 0), (0, 1)))


def fbank(
    waveform: mx.array | np.ndarray,
    num_mel_bins: int = 80,
    sample_frequency: int = 16000,
    subtract_mean: bool = False,
) -> mx.array:
    """Kaldi's log filterbank energies, for the speaker encoder (`fbank` in torchaudio/compliance/kaldi.py, dither 0).

    Args:
        waveform: (1, s) in [-1, 1]; the encoder was trained without Kaldi's usual factor of 32768.
        sample_frequency: Hz.
        subtract_mean: take the mean over time from each bin, as the speaker encoder wants it.

    Returns:
        (n, num_mel_bins) float32 with n = 1 + (s - 400) // 160 at 16 kHz (25 ms windows, 10 ms hop).

    Raises:
        Refused: shorter than one window.
    """
    window_size, hop = sample_frequency * 25 // 1000, sample_frequency * 10 // 1000
    if waveform.shape[-1] < window_size:
        raise Refused(f"audio of {waveform.shape[-1]} samples is too short: the speaker encoder needs {window_size}")
    n_fft = 1 << (window_size - 1).bit_length()
    frames = _frames(_to_host(waveform)[0], window_size, hop)
    frames = frames - frames.mean(axis=1, keepdims=True)
    # Pre-emphasis takes a window's first sample as its own predecessor.
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = np.hanning(window_size) ** 0.85  # the "povey" window
    power = np.abs(np.fft.rfft((frames - 0.97 * before) * window, n_fft)) ** 2
    energies = power @ kaldi_mel_banks(num_mel_bins, n_fft, sample_frequency).T.astype(np.float64)
    features = np.log(np.maximum(energies, np.finfo(np.float32).eps))
    return _to_mlx(features - features.mean(axis=0, keepdims=True) if subtract_mean else features)


@lru_cache(maxsize=2)
def _hann_window(size: int) -> np.ndarray:
    """Periodic; with the angle and the result in float32, as `torch.hann_window` has them."""
    angle = np.arange(size, dtype=np.float32) * np.float32(2 * math.pi / size)
    cosine = np.cos(angle.astype(np.float64)).astype(np.float32)
    return (np.float32(0.5) - np.float32(0.5) * cosine).astype(np.float64)


def _frames(audio: np.ndarray, size: int, hop: int) -> np.ndarray:
    """(..., s) -> (..., n, size), a view."""
    return np.lib.stride_tricks.sliding_window_view(audio, size, axis=-1)[..., ::hop, :]


def _to_host(audio: mx.array | np.ndarray) -> np.ndarray:
    return np.asarray(audio, dtype=np.float64)


def _to_mlx(array: np.ndarray) -> mx.array:
    return mx.array(array.astype(np.float32))


def _check_reflection(audio: mx.array | np.ndarray, pad: int) -> None:
    if audio.shape[-1] <= pad:
        raise Refused(f"audio of {audio.shape[-1]} samples is too short: more than {pad} are needed")
