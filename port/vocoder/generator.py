"""CausalHiFTGenerator: mel to audio (cosyvoice/hifigan/generator.py, Snake from cosyvoice/transformer/activation.py).

b batch, n mel frames, L samples, C channels, F STFT frames
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from .. import noise
from ..config import VocoderConfig
from ..stream.state import State, tail_of
from .convolution import CausalConv1d, CausalConv1dDownSample, CausalConv1dUpsample
from .f0 import CausalConvRNNF0Predictor
from .source import SourceModuleHnNSF
from .stft import istft, stft


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha with `alpha` (C,) on a linear scale."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.alpha = mx.ones(in_features)

    def __call__(self, x: mx.array) -> mx.array:
        """Apply to (b, n, C)."""
        # The 1e-9 is the original's guard against alpha = 0.
        sine = mx.sin(x * self.alpha)
        return x + (1.0 / (self.alpha + 1e-9)) * (sine * sine)


class ResBlock(nn.Module):
    """Residual pairs of left-causal convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = [CausalConv1d(channels, channels, kernel_size, dilation) for dilation in dilations]
        self.convs2 = [CausalConv1d(channels, channels, kernel_size) for _ in dilations]
        self.activations1 = [Snake(channels) for _ in dilations]
        self.activations2 = [Snake(channels) for _ in dilations]

    def __call__(self, x: mx.array, state: State | None = None) -> mx.array:
        """Apply to (b, n, C), a chunk of the stream whose `state` is given."""
        for conv1, conv2, act1, act2 in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x = x + conv2(act2(conv1(act1(x), tail_of(state, conv1))), tail_of(state, conv2))
        return x


class CausalHiFTGenerator(nn.Module):
    """Mel frames to audio: a source of sines shaped by a convolutional filter that predicts an STFT."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        harmonics, channels = config.nb_harmonics, config.base_channels
        spectrum = config.istft_n_fft + 2  # real and imaginary part, or magnitude and phase, of n_fft / 2 + 1 bins
        widths = [channels // 2 ** (i + 1) for i in range(len(config.upsample_rates))]
        self.m_source = SourceModuleHnNSF(
            config.sampling_rate,
            config.hop_samples,
            harmonics,
            config.nsf_alpha,
            config.nsf_sigma,
            config.nsf_voiced_threshold,
        )
        self.conv_pre = CausalConv1d(config.in_channels, channels, config.conv_pre_look_right + 1, causal_type="right")
        self.ups = [
            CausalConv1dUpsample(2 * width, width, kernel_size, rate)
            for width, kernel_size, rate in zip(
                widths, config.upsample_kernel_sizes, config.upsample_rates, strict=True
            )
        ]
        self.source_downs = []
        self.source_resblocks = []
        for i, width in enumerate(widths):
            rate = math.prod(config.upsample_rates[i + 1 :])
            down = (
                CausalConv1d(spectrum, width, 1)
                if rate == 1
                else CausalConv1dDownSample(spectrum, width, 2 * rate, rate)
            )
            self.source_downs.append(down)
            self.source_resblocks.append(
                ResBlock(width, config.source_resblock_kernel_sizes[i], config.source_resblock_dilation_sizes[i])
            )
        self.resblocks = [
            ResBlock(width, kernel_size, dilations)
            for width in widths
            for kernel_size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        ]
        self.conv_post = CausalConv1d(widths[-1], spectrum, 7)
        self.f0_predictor = CausalConvRNNF0Predictor(
            1, config.in_channels, config.f0_cond_channels, config.f0_look_right
        )

    def decode(self, x: mx.array, s: mx.array, finalize: bool = True) -> mx.array:
        """Filter the excitation.

        Args:
            x: (b, n, in_channels) mel.
            s: (b, n * hop_samples, 1) excitation.
            finalize: when False the last `conv_pre_look_right` frames are context only, and the samples of
                the last frame are held back, because later frames would change their end.

        Returns:
            (b, n * hop_samples) float32 samples within +-audio_limit; those of
            n - conv_pre_look_right - 1 frames when not `finalize`.

        Raises:
            ValueError: no frame is left after the context.
        """
        config, look_right = self.config, self.config.conv_pre_look_right
        real, imaginary = stft(s.squeeze(2), config.istft_n_fft, config.istft_hop_len)
        s_stft = mx.concatenate([real, imaginary], axis=2).astype(x.dtype)
        if finalize:
            x = self.conv_pre(x)
        else:
            if x.shape[1] <= look_right:
                raise ValueError(f"{x.shape[1]} frames: finalize=False needs more than {look_right}")
            x = self.conv_pre(x[:, :-look_right], x[:, -look_right:])
            s_stft = s_stft[:, : -math.prod(config.upsample_rates) * look_right]
        wav = istft(*self.spectrum(x, s_stft), config.istft_n_fft, config.istft_hop_len)
        if not finalize:
            wav = wav[:, : -config.hop_samples]
        return mx.clip(wav, -config.audio_limit, config.audio_limit)

    def spectrum(self, x: mx.array, s_stft: mx.array, state: State | None = None) -> tuple[mx.array, mx.array]:
        """Filter the excitation's spectrum: the network between `conv_pre` and the inverse transform.

        Args:
            x: (b, n, base_channels) from `conv_pre`.
            s_stft: (b, F, n_fft + 2), F = n * prod(upsample_rates) + 1 frames; without that 1 in later chunks.
            state: of a stream, whose chunk `x` and `s_stft` are.

        Returns:
            Magnitude and phase (radians), each (b, F, n_fft / 2 + 1) float32.
        """
        config = self.config
        for i, up in enumerate(self.ups):
            x = up(nn.leaky_relu(x, config.lrelu_slope), tail_of(state, up))
            if i == len(self.ups) - 1 and (state is None or not state.started):
                # Reflected by one frame: the STFT has one frame more than n times the rates.
                x = mx.concatenate([x[:, 1:2], x], axis=1)
            down = self.source_downs[i]
            x = x + self.source_resblocks[i](down(s_stft, tail_of(state, down)), state)
            kernels = len(config.resblock_kernel_sizes)
            blocks = self.resblocks[i * kernels : (i + 1) * kernels]
            x = sum((block(x, state) for block in blocks[1:]), blocks[0](x, state)) / kernels
        # The original leaves lrelu_slope out of this one call, so torch's default slope 0.01 applies.
        x = self.conv_post(nn.leaky_relu(x), tail_of(state, self.conv_post)).astype(mx.float32)
        bins = config.istft_n_fft // 2 + 1
        return mx.exp(x[..., :bins]), mx.sin(x[..., bins:])

    def inference(
        self, speech_feat: mx.array, finalize: bool = True, sine_waves: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Synthesize.

        Args:
            speech_feat: (b, n, in_channels) mel.
            finalize: False when more frames will follow: the last `f0_look_right` ones are context of the pitch only,
                the next `conv_pre_look_right` ones context of the filter.
            sine_waves: (1, at least L, nb_harmonics + 1) uniform noise; the original's fixed noise when None.

        Returns:
            Samples (b, n * hop_samples) and the excitation `s` (b, n * hop_samples, 1), float32. When not
            `finalize` the samples lack f0_look_right + conv_pre_look_right + 1 frames and the excitation f0_look_right.

        Raises:
            ValueError: too few frames for `finalize=False`.
        """
        config = self.config
        if not finalize and speech_feat.shape[1] <= config.f0_look_right + config.conv_pre_look_right:
            needed = config.f0_look_right + config.conv_pre_look_right + 1
            raise ValueError(f"{speech_feat.shape[1]} frames: finalize=False needs at least {needed}")
        f0 = self.f0_predictor(speech_feat, finalize)
        if sine_waves is None:
            sine_waves = mx.array(noise.sine_waves(f0.shape[1] * config.hop_samples))[None]
        s, _ = self.m_source(f0, sine_waves)
        if not finalize:
            speech_feat = speech_feat[:, : -config.f0_look_right]
        return self.decode(speech_feat, s, finalize), s
