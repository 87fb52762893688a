"""Audio in, features out: file reading, torchaudio's resampler, the three spectrograms of CosyVoice 3.

b batch, s samples, n frames, k mel bins, f frequency bins
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from port.files.errors import Refused
from port.files.recording import Recording, about, at_hand

# A kernel has about orig x new values once both rates are divided by their gcd: 8 million is 64 MB in float64.
MAX_KERNEL_SIZE = 1 << 23


def load_wav(path: Recording, target_sr: int, min_sr: int = 16000) -> Tensor:
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
    heard = at_hand(path, min_sr)
    if target_sr not in heard.resampled:
        with about(heard):
            mono = torch.from_numpy(heard.samples.T.copy()).mean(dim=0, keepdim=True)
            heard.resampled[target_sr] = resample(mono, heard.rate, target_sr)
    return heard.resampled[target_sr]


def check_prompt_length(speech: Tensor, sample_rate: int, max_seconds: float = 30.0) -> None:
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
def resample_kernel(orig_freq: int, new_freq: int) -> tuple[Tensor, int]:
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
    taps = torch.arange(-width, width + orig_freq, dtype=torch.float64) / orig_freq
    # torchaudio divides integers here, which yields float32: without that rounding the kernel is off by 5e-6.
    phases = torch.arange(0, -new_freq, -1) / new_freq
    t = ((phases[:, None] + taps) * base_freq).clamp(-lowpass_filter_width, lowpass_filter_width)
    window = torch.cos(t * math.pi / lowpass_filter_width / 2) ** 2
    return (torch.sinc(t) * window * (base_freq / orig_freq)).float(), width


def resample(waveform: Tensor, orig_freq: int, new_freq: int) -> Tensor:
    """Change the sample rate as `torchaudio.transforms.Resample` does by default.

    Args:
        waveform: (b, s).
        orig_freq, new_freq: Hz.

    Returns:
        (b, ceil(s new_freq / orig_freq)) in the dtype of `waveform`.

    Raises:
        Refused: no sample rate, or rates whose ratio needs an absurdly large kernel.
    """
    if min(orig_freq, new_freq) <= 0:
        raise Refused(f"cannot resample from {orig_freq} Hz to {new_freq} Hz")
    if orig_freq == new_freq:
        return waveform
    divisor = math.gcd(orig_freq, new_freq)
    orig_freq, new_freq = orig_freq // divisor, new_freq // divisor
    kernel, width = resample_kernel(orig_freq, new_freq)
    b, s = waveform.shape
    padded = F.pad(waveform, (width, width + orig_freq))
    resampled = F.conv1d(padded[:, None], kernel[:, None].to(waveform), stride=orig_freq)  # (b, new_freq, frames)
    return resampled.transpose(1, 2).reshape(b, -1)[:, : math.ceil(new_freq * s / orig_freq)]


@lru_cache(maxsize=4)
def mel_filterbank(sampling_rate: int, n_fft: int, num_mels: int, fmin: float, fmax: float) -> Tensor:
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
    return torch.from_numpy((triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32))


def mel_spectrogram(
    y: Tensor,
    n_fft: int = 1920,
    num_mels: int = 80,
    sampling_rate: int = 24000,
    hop_size: int = 480,
    win_size: int = 1920,
    fmin: float = 0.0,
    fmax: float | None = None,
) -> Tensor:
    """Log-mel that the flow decoder continues (`mel_spectrogram` in matcha/utils/audio.py; sizes of cosyvoice3.yaml).

    Args:
        y: (b, s) at `sampling_rate`, in [-1, 1].
        fmin, fmax: Hz; None is half the rate.

    Returns:
        (b, num_mels, s // hop_size), natural logarithm, not below ln(1e-5).

    Raises:
        Refused: too short to reflect at the ends.
    """
    pad = (n_fft - hop_size) // 2
    _check_reflection(y, pad)
    y = F.pad(y[:, None], (pad, pad), mode="reflect")[:, 0]
    window = torch.hann_window(win_size).to(y)
    spectrum = torch.stft(y, n_fft, hop_size, win_size, window, center=False, return_complex=True)
    magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
    basis = mel_filterbank(sampling_rate, n_fft, num_mels, fmin, sampling_rate / 2 if fmax is None else fmax)
    return torch.log(torch.clamp(basis.to(y) @ magnitude, min=1e-5))


def log_mel_spectrogram(audio: Tensor, n_mels: int = 128) -> Tensor:
    """Whisper's log-mel, input of the speech tokenizer (`log_mel_spectrogram` in whisper/audio.py).

    Args:
        audio: (b, s) at 16 kHz.

    Returns:
        (b, n_mels, s // 160); decimal logarithm, (x + 4) / 4, at most 2 below the loudest bin.

    Raises:
        Refused: too short to reflect at the ends.
    """
    n_fft, hop = 400, 160
    _check_reflection(audio, n_fft // 2)
    window = torch.hann_window(n_fft).to(audio)
    power = torch.stft(audio, n_fft, hop, window=window, return_complex=True)[..., :-1].abs() ** 2
    mel = mel_filterbank(16000, n_fft, n_mels, 0.0, 8000.0).to(audio) @ power
    log_mel = torch.log10(torch.clamp(mel, min=1e-10))
    # The floor follows the loudest bin of the whole input, as in the original; nothing is padded to 30 s.
    return (torch.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0


@lru_cache(maxsize=2)
def kaldi_mel_banks(num_bins: int, n_fft: int, sample_frequency: int) -> Tensor:
    """Triangles linear in mel from 20 Hz to half the rate (`get_mel_banks` in torchaudio/compliance/kaldi.py).

    Returns:
        (num_bins, n_fft // 2 + 1) float32; the last bin has no weight.
    """
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (20.0, sample_frequency / 2))
    step = (high - low) / (num_bins + 1)
    index = torch.arange(num_bins)[:, None]
    left, center, right = low + index * step, low + (index + 1.0) * step, low + (index + 2.0) * step
    # From float64: torch's float32 logarithm is off by one unit in some bins, and in others on another machine.
    ratio = (1.0 + sample_frequency / n_fft * torch.arange(n_fft // 2) / 700.0).double()
    mel = 1127.0 * ratio.log().float()
    triangles = torch.minimum((mel - left) / (center - left), (right - mel) / (right - center)).clamp(min=0.0)
    return F.pad(triangles, (0, 1))


def fbank(
    waveform: Tensor, num_mel_bins: int = 80, sample_frequency: int = 16000, subtract_mean: bool = False
) -> Tensor:
    """Kaldi's log filterbank energies, for the speaker encoder (`fbank` in torchaudio/compliance/kaldi.py, dither 0).

    Args:
        waveform: (1, s) in [-1, 1]; the encoder was trained without Kaldi's usual factor of 32768.
        sample_frequency: Hz.
        subtract_mean: take the mean over time from each bin, as the speaker encoder wants it.

    Returns:
        (n, num_mel_bins) with n = 1 + (s - 400) // 160 at 16 kHz (25 ms windows, 10 ms hop).

    Raises:
        Refused: shorter than one window.
    """
    window_size, hop = sample_frequency * 25 // 1000, sample_frequency * 10 // 1000
    if waveform.shape[-1] < window_size:
        raise Refused(f"audio of {waveform.shape[-1]} samples is too short: the speaker encoder needs {window_size}")
    n_fft = 1 << (window_size - 1).bit_length()
    frames = waveform[0].unfold(0, window_size, hop)
    frames = frames - frames.mean(dim=1, keepdim=True)
    # Pre-emphasis takes a window's first sample as its own predecessor.
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = torch.hann_window(window_size, periodic=False, dtype=waveform.dtype) ** 0.85  # the "povey" window
    power = torch.fft.rfft((frames - 0.97 * before) * window, n_fft).abs() ** 2
    energies = power @ kaldi_mel_banks(num_mel_bins, n_fft, sample_frequency).to(waveform).T
    features = torch.log(torch.clamp(energies, min=torch.finfo(torch.float32).eps))
    return features - features.mean(dim=0, keepdim=True) if subtract_mean else features


def _check_reflection(audio: Tensor, pad: int) -> None:
    if audio.shape[-1] <= pad:
        raise Refused(f"audio of {audio.shape[-1]} samples is too short: more than {pad} are needed")
