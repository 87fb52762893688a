"""CausalHiFTGenerator: mel to audio (cosyvoice/hifigan/generator.py, Snake from cosyvoice/transformer/activation.py).

b batch, n mel frames, L samples, C channels, F STFT frames
"""

from __future__ import annotations

import math
import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from port import noise
from port.config import VocoderConfig
from reference.vocoder.convolution import CausalConv1d, CausalConv1dDownSample, CausalConv1dUpsample
from reference.vocoder.f0 import CausalConvRNNF0Predictor
from reference.vocoder.source import SourceModuleHnNSF
from reference.vocoder.stft import istft, stft

# `functional_call` swaps the module's parameters during the call, so requests take turns.
_PREDICTOR = threading.Lock()


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha with `alpha` (C,) on a linear scale."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (b, C, n)."""
        alpha = self.alpha[:, None]
        # The 1e-9 is the original's guard against alpha = 0.
        return x + (1.0 / (alpha + 1e-9)) * torch.sin(x * alpha).square()


class ResBlock(nn.Module):
    """Residual pairs of left-causal convolutions, the first of each pair dilated."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            weight_norm(CausalConv1d(channels, channels, kernel_size, dilation)) for dilation in dilations
        )
        self.convs2 = nn.ModuleList(weight_norm(CausalConv1d(channels, channels, kernel_size)) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (b, C, n)."""
        for conv1, conv2, act1, act2 in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x = x + conv2(act2(conv1(act1(x))))
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
        self.conv_pre = weight_norm(
            CausalConv1d(config.in_channels, channels, config.conv_pre_look_right + 1, causal_type="right")
        )
        self.ups = nn.ModuleList(
            weight_norm(CausalConv1dUpsample(2 * width, width, kernel_size, rate))
            for width, kernel_size, rate in zip(
                widths, config.upsample_kernel_sizes, config.upsample_rates, strict=True
            )
        )
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
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
        self.resblocks = nn.ModuleList(
            ResBlock(width, kernel_size, dilations)
            for width in widths
            for kernel_size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        self.conv_post = weight_norm(CausalConv1d(widths[-1], spectrum, 7))
        self.f0_predictor = CausalConvRNNF0Predictor(
            1, config.in_channels, config.f0_cond_channels, config.f0_look_right
        )

    def decode(self, x: Tensor, s: Tensor, finalize: bool = True) -> Tensor:
        """Filter the excitation.

        Args:
            x: (b, in_channels, n) mel.
            s: (b, 1, n * hop_samples) excitation.
            finalize: when False the last `conv_pre_look_right` frames are context only, and the samples of
                the last frame are held back, because later frames would change their end.

        Returns:
            (b, n * hop_samples) samples within +-audio_limit; those of n - conv_pre_look_right - 1 frames when not
            `finalize`.

        Raises:
            ValueError: no frame is left after the context.
        """
        config, look_right = self.config, self.config.conv_pre_look_right
        s_stft = torch.cat(stft(s.squeeze(1), config.istft_n_fft, config.istft_hop_len), dim=1)
        if finalize:
            x = self.conv_pre(x)
        else:
            if x.shape[2] <= look_right:
                raise ValueError(f"{x.shape[2]} frames: finalize=False needs more than {look_right}")
            x = self.conv_pre(x[:, :, :-look_right], x[:, :, -look_right:])
            s_stft = s_stft[:, :, : -math.prod(config.upsample_rates) * look_right]
        wav = istft(*self.spectrum(x, s_stft), config.istft_n_fft, config.istft_hop_len)
        if not finalize:
            wav = wav[:, : -config.hop_samples]
        return wav.clamp(-config.audio_limit, config.audio_limit)

    def spectrum(self, x: Tensor, s_stft: Tensor) -> tuple[Tensor, Tensor]:
        """Filter the excitation's spectrum: the network between `conv_pre` and the inverse transform.

        Args:
            x: (b, base_channels, n) from `conv_pre`.
            s_stft: (b, n_fft + 2, F), F = n * prod(upsample_rates) + 1 frames.

        Returns:
            Magnitude and phase (radians), each (b, n_fft / 2 + 1, F).
        """
        config = self.config
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, config.lrelu_slope))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # the STFT has one frame more than n times the rates
            x = x + self.source_resblocks[i](self.source_downs[i](s_stft))
            kernels = len(config.resblock_kernel_sizes)
            blocks = self.resblocks[i * kernels : (i + 1) * kernels]
            x = sum(block(x) for block in blocks) / kernels
        # The original leaves lrelu_slope out of this one call, so torch's default slope 0.01 applies.
        x = self.conv_post(F.leaky_relu(x))
        bins = config.istft_n_fft // 2 + 1
        return torch.exp(x[:, :bins]), torch.sin(x[:, bins:])

    @torch.inference_mode()
    def inference(
        self, speech_feat: Tensor, finalize: bool = True, sine_waves: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Synthesize.

        Args:
            speech_feat: (b, in_channels, n) mel.
            finalize: False when more frames will follow: the last `f0_look_right` ones are context of the pitch only,
                the next `conv_pre_look_right` ones context of the filter.
            sine_waves: (1, at least L, nb_harmonics + 1) uniform noise; the original's fixed noise when None.

        Returns:
            Samples (b, n * hop_samples) and the excitation `s` (b, 1, n * hop_samples). When not `finalize` the samples
            lack f0_look_right + conv_pre_look_right + 1 frames and the excitation f0_look_right.

        Raises:
            ValueError: too few frames for `finalize=False`.
        """
        config = self.config
        if not finalize and speech_feat.shape[2] <= config.f0_look_right + config.conv_pre_look_right:
            needed = config.f0_look_right + config.conv_pre_look_right + 1
            raise ValueError(f"{speech_feat.shape[2]} frames: finalize=False needs at least {needed}")
        # Float64, as in the original: a pitch error adds up in the phase. The original converts the predictor in place
        # and leaves it so; float64 copies of the parameters give the same numbers and change no state.
        parameters = {name: value.double() for name, value in self.f0_predictor.named_parameters()}
        with _PREDICTOR:
            f0 = functional_call(self.f0_predictor, parameters, (speech_feat.double(), finalize))
        f0 = f0.to(speech_feat.dtype)
        s = f0.repeat_interleave(config.hop_samples, dim=1)[:, :, None]
        if sine_waves is None:
            sine_waves = torch.tensor(noise.sine_waves(s.shape[1]))[None]
        s, _ = self.m_source(s, sine_waves.to(s))
        s = s.transpose(1, 2)
        if not finalize:
            speech_feat = speech_feat[:, :, : -config.f0_look_right]
        return self.decode(speech_feat, s, finalize), s
