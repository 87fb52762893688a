"""Isolated cases of the vocoder, smallest parts first."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_parity.case import Case, normal, uniform, values
from parity_tests.cases import Input, case, voiced_and_unvoiced

SINE: dict[str, Any] = dict(
    samp_rate=24000, upsample_scale=480, harmonic_num=8, sine_amp=0.1, noise_std=0.003, voiced_threshold=10
)
SOURCE = dict(
    sampling_rate=24000, upsample_scale=480, harmonic_num=8, sine_amp=0.1, add_noise_std=0.003, voiced_threshold=10
)
HIFT = dict(base_channels=16, f0_cond_channels=24)
STFT = dict(n_fft=16, hop_len=4)
GENERATOR = "vocoder.generator.CausalHiFTGenerator"


def _conv(side: str, taps: int, dilation: int, frames: int = 37, **inputs: Any) -> Case:
    sizes = dict(in_channels=6, out_channels=10, kernel_size=taps, dilation=dilation, causal_type=side)
    suffix = ".cache" if inputs else ""
    return case(
        f"vocoder.conv.{side}.k{taps}.d{dilation}.n{frames}{suffix}",
        "vocoder.convolution.CausalConv1d",
        sizes,
        x=normal(2, 6, frames),
        **inputs,
    )


def _rate(kind: str, taps: int, stride: int, frames: int, **inputs: Any) -> Case:
    suffix = ".cache" if inputs else ""
    return case(
        f"vocoder.conv.{kind.lower()}.k{taps}.s{stride}.n{frames}{suffix}",
        f"vocoder.convolution.CausalConv1d{kind}",
        dict(in_channels=6, out_channels=10, kernel_size=taps, stride=stride),
        x=normal(2, 6, frames),
        **inputs,
    )


def _decode(name: str, frames: int, finalize: bool, batch: int = 1, gain: float = 1.0) -> Case:
    return case(
        f"vocoder.decode.{name}",
        f"{GENERATOR}.decode",
        HIFT,
        dict(finalize=finalize),
        dead=dict.fromkeys(("f0_predictor.*", "m_source.*"), "decode is given the excitation"),
        x=normal(batch, 80, frames, scale=gain),
        s=normal(batch, 1, frames * 480, scale=0.1 * gain),
    )


def _inference(name: str, frames: int, finalize: bool) -> Case:
    return case(
        f"vocoder.inference.{name}",
        f"{GENERATOR}.inference",
        HIFT,
        dict(finalize=finalize),
        speech_feat=normal(1, 80, frames),
        sine_waves=uniform(1, frames * 480, 9),
    )


def _block(taps: int) -> dict[str, Any]:
    return dict(channels=10, kernel_size=taps, dilations=(1, 3, 5))


def _sine(name: str, frames: int, f0: Input) -> Case:
    return case(f"vocoder.sine.{name}", "vocoder.source.SineGen2", SINE, f0=f0, sine_waves=uniform(1, frames * 480, 9))


def _istft(name: str, magnitude: Input, batch: int, frames: int) -> Case:
    phase = uniform(batch, 9, frames, low=-3.2, high=3.2)
    return case(name, "vocoder.stft.istft", None, STFT, magnitude=magnitude, phase=phase)


PITCH = "vocoder.f0.CausalConvRNNF0Predictor"
CASES = (
    *(_conv(side, *shape) for side in ("left", "right") for shape in ((1, 1), (2, 1), (3, 1), (3, 5), (4, 1), (11, 5))),
    *(_conv(side, 7, 3, cache=normal(2, 6, 18)) for side in ("left", "right")),
    *(_conv("left", 11, 5, frames) for frames in (1, 2)),
    *(_rate("DownSample", *shape) for shape in ((30, 15, 90), (30, 15, 91), (30, 15, 104), (6, 3, 19), (8, 4, 27))),
    _rate("DownSample", 30, 15, 90, cache=normal(2, 6, 14)),
    *(_rate("Upsample", *shape) for shape in ((16, 8, 11), (11, 5, 11), (7, 3, 11), (16, 8, 1), (7, 3, 2))),
    _rate("Upsample", 16, 8, 11, cache=normal(2, 6, 15)),
    case("vocoder.snake", "vocoder.generator.Snake", dict(in_features=10), x=normal(2, 10, 37, scale=3)),
    *(
        case(f"vocoder.resblock.k{taps}", "vocoder.generator.ResBlock", _block(taps), x=normal(2, 10, 64))
        for taps in (3, 7, 11)
    ),
    *(
        case(
            f"vocoder.f0.{name}", PITCH, dict(num_class=1, in_channels=80, cond_channels=48), call, x=normal(2, 80, 24)
        )
        for name, call in (("end", dict(finalize=True)), ("more", dict(finalize=False)))
    ),
    *(_sine(str(frames), frames, voiced_and_unvoiced(1, frames)) for frames in (1, 9, 150, 300)),
    _sine("threshold", 6, np.repeat(values(10.0, 10.000001, 9.999999, 0.0, 200.0, 10.0), 480)[None, :, None]),
    case(
        "vocoder.source",
        "vocoder.source.SourceModuleHnNSF",
        SOURCE,
        f0=voiced_and_unvoiced(2, 9),
        sine_waves=uniform(1, 9 * 480, 9),
    ),
    case("vocoder.stft", "vocoder.stft.stft", None, STFT, x=normal(2, 1440)),
    case("vocoder.stft.odd", "vocoder.stft.stft", None, STFT, x=normal(1, 1001)),
    _istft("vocoder.istft", uniform(2, 9, 361, low=0, high=120), 2, 361),  # the original clips at 100
    _istft("vocoder.istft.short", uniform(1, 9, 3), 1, 3),
    _decode("end", 20, True),
    _decode("more", 20, False),
    _decode("batch", 8, True, batch=2),
    _decode("loud", 9, True, gain=6),  # reaches the magnitude clip and the audio limit
    _decode("short", 1, True),
    _inference("end", 20, True),
    _inference("more", 22, False),
    _inference("odd", 11, True),
    case(  # without `sine_waves` both sides take the original's
        "vocoder.inference.fixed_noise",
        f"{GENERATOR}.inference",
        HIFT,
        dict(finalize=True),
        speech_feat=normal(1, 80, 5),
    ),
)
