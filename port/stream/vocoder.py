"""The vocoder as a stream: mel in pieces of any length, each sample computed once.

All convolutions but two are causal, so a stream needs the last inputs of each (state.py), the phase of the source, and
a few mel frames for the two that look ahead. The original runs the whole mel again for each chunk
(`CosyVoice3Model.token2wav` in cosyvoice/cli/model.py); samples and their number after each chunk are the same here.

b batch (1 here), n mel frames, C mel bins, F STFT frames
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from .. import noise
from ..vocoder.generator import CausalHiFTGenerator
from ..vocoder.stft import analyse, envelope, overlap_add
from .state import State


class StreamingVocoder:
    """One utterance of `CausalHiFTGenerator.inference`, mel pieces in, samples out; not safe for several threads.

    Frames are counted from the start of the utterance: `received`, of these `pitched` have their excitation and
    `filtered` have left the network; all their samples are final except the last four.
    """

    def __init__(self, generator: CausalHiFTGenerator, sine_waves: mx.array | None = None) -> None:
        """`sine_waves` (1, L, nb_harmonics + 1) is the noise of the utterance; the original's fixed noise when None."""
        config = generator.config
        self._generator, self._sine_waves = generator, sine_waves
        self._state = State()
        self._received = self._pitched = self._filtered = self._emitted = 0
        self._closed = False
        self._mel = mx.zeros((1, 0, config.in_channels))  # from the first frame that is not filtered
        self._excitation = mx.zeros((1, 0))  # from the first sample of the STFT frame that comes next
        hops = config.istft_n_fft // config.istft_hop_len
        self._overlap = mx.zeros((1, hops - 1, config.istft_hop_len))  # overlap-add sums that later frames add to
        self._window = np.zeros((hops - 1, config.istft_hop_len))  # and of the squared window
        self._wav = mx.zeros((1, 0))  # finished, not yet returned

    @property
    def nbytes(self) -> int:
        """Bytes held between two calls; they do not grow with the stream."""
        return sum(array.nbytes for array in self._arrays())

    def push(self, mel: mx.array, finalize: bool = False) -> mx.array:
        """Process the next mel frames.

        Args:
            mel: (1, n, C); n may be 0.
            finalize: these are the last.

        Returns:
            (1, s) float32, the samples that are new. After N frames in all, N - f0_look_right - conv_pre_look_right - 1
            frames' worth have been returned, or all when `finalize`.

        Raises:
            ValueError: another shape, no frame at all before the end, a stream that is over, more frames than noise.
        """
        config = self._generator.config
        if self._closed:
            raise ValueError("the stream is over: its last frames came with finalize=True")
        if mel.ndim != 3 or mel.shape[0] != 1 or mel.shape[2] != config.in_channels:
            raise ValueError(f"mel is {mel.shape}; a stream takes (1, n, {config.in_channels})")
        received = self._received + mel.shape[1]
        if finalize and not received:
            raise ValueError("the stream ends without a mel frame")
        pitched = received if finalize else max(0, received - config.f0_look_right)
        filtered = received if finalize else max(0, pitched - config.conv_pre_look_right)
        hop = config.hop_samples
        waves = noise_of(self._sine_waves, self._pitched * hop, pitched * hop)  # first, since it may refuse

        self._received, self._closed = received, finalize
        self._mel = mx.concatenate([self._mel, mel], axis=1)
        if pitched > self._pitched:
            self._excite(waves, finalize)
            self._pitched = pitched
        if filtered > self._filtered:
            self._filter(filtered - self._filtered, finalize)
            self._filtered = filtered
        wanted = received if finalize else max(0, filtered - 1)
        new = wanted * hop - self._emitted
        wav, self._wav = self._wav[:, :new], mx.contiguous(self._wav[:, new:])
        self._emitted += new
        mx.eval(wav, [array for array in self._arrays() if isinstance(array, mx.array)])
        return wav

    def _excite(self, waves: mx.array, finalize: bool) -> None:
        generator, pad = self._generator, self._generator.config.istft_n_fft // 2
        f0 = generator.f0_predictor(self._mel[:, self._pitched - self._filtered :], finalize, self._state)
        s = generator.m_source(f0, waves, self._state)[0].squeeze(2)
        pieces = [self._excitation, s] if self._pitched else [s[:, pad:0:-1], s]  # reflected at the start, as in `stft`
        x = mx.concatenate(pieces, axis=1)
        self._excitation = mx.concatenate([x, x[:, -2 : -pad - 2 : -1]], axis=1) if finalize else x

    def _filter(self, frames: int, finalize: bool) -> None:
        """Run the next `frames` mel frames through the network and add their spectra to the wave."""
        generator, config, start = self._generator, self._generator.config, not self._state.started
        n_fft, hop = config.istft_n_fft, config.istft_hop_len
        spectra = frames * math.prod(config.upsample_rates) + start
        s = self._excitation[:, : (spectra - 1) * hop + n_fft]
        self._excitation = mx.contiguous(self._excitation[:, spectra * hop :])
        s_stft = mx.concatenate(list(analyse(s, n_fft, hop)), axis=2).astype(self._mel.dtype)
        x, ahead = self._mel[:, :frames], self._mel[:, frames : frames + config.conv_pre_look_right]
        x = generator.conv_pre(x) if finalize else generator.conv_pre(x, ahead)
        self._mel = mx.contiguous(self._mel[:, frames:])
        sums = overlap_add(*generator.spectrum(x, s_stft, self._state), n_fft, hop)
        self._state.started = True

        covered = self._overlap.shape[1]
        sums = mx.concatenate([sums[:, :covered] + self._overlap, sums[:, covered:]], axis=1)
        window = envelope(spectra, n_fft, hop)
        window[:covered] += self._window
        self._overlap, self._window = mx.contiguous(sums[:, spectra:]), window[spectra:].copy()
        if not finalize:
            sums, window = sums[:, :spectra], window[:spectra]
        trim = slice(n_fft // 2 if start else 0, -(n_fft // 2) if finalize else None)
        wav = sums.reshape(1, -1)[:, trim] * mx.array((1 / window.reshape(-1)[trim]).astype(np.float32))
        wav = mx.clip(wav, -config.audio_limit, config.audio_limit)
        self._wav = mx.concatenate([self._wav, wav], axis=1)

    def _arrays(self) -> list[mx.array | np.ndarray]:
        return [self._mel, self._excitation, self._overlap, self._window, self._wav, *self._state.arrays]


def noise_of(given: mx.array | None, first: int, last: int) -> mx.array:
    """Noise of the source for the samples `first` to `last`: of the noise `given`, or the original's.

    Raises:
        ValueError: the noise given is shorter.
    """
    if given is None:
        return mx.array(noise.sine_waves(last - first, first))[None]
    if last > given.shape[1]:
        raise ValueError(f"sine_waves has {given.shape[1]} samples, the mel needs {last}")
    return given[:, first:last]
