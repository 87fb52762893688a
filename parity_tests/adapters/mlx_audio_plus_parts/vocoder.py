"""mlx-audio-plus: the vocoder, one function per part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
from mlx_audio.tts.models.cosyvoice3 import convolution, hifigan

from parity_tests.adapters.mlx_audio_plus_parts.weights import array, converted, inputs, load
from parity_tests.adapters.parts import Job, Parts
from port.config import VocoderConfig, from_dict

PARTS = Parts()


@PARTS.offers(
    "vocoder.convolution.CausalConv1d",
    "vocoder.convolution.CausalConv1dDownSample",
    "vocoder.convolution.CausalConv1dUpsample",
)
def convolutions(job: Job) -> Mapping[str, Any]:
    built = getattr(convolution, job.part.path.rpartition(".")[2])(**job.config)
    weights = {"conv.weight": job.state["weight"].swapaxes(1, 2), "conv.bias": job.state["bias"]}
    return {"y": load(built, weights)(**inputs(job))}


@PARTS.offers("vocoder.generator.Snake", "vocoder.generator.ResBlock", "vocoder.f0.CausalConvRNNF0Predictor")
def vocoder_layer(job: Job) -> Mapping[str, Any]:
    name = job.part.path.rpartition(".")[2]
    built = hifigan.Snake(job.config["in_features"]) if name == "Snake" else getattr(hifigan, name)(**job.config)
    return {job.part.outputs[0]: load(built, converted(job))(**inputs(job), **job.call)}


@contextlib.contextmanager
def uniform_noise(waves: np.ndarray) -> Iterator[None]:
    """Replace the noise that the package draws by the original's; `Adapter.noise` judges the package's own."""

    def normal(shape: tuple[int, ...], **_: Any) -> mx.array:
        # The package never uses its second draw.
        return mx.broadcast_to(mx.array(waves)[:, : shape[1]], shape) if shape[2] > 1 else mx.zeros(shape)

    with mock.patch.object(mx.random, "normal", normal):
        yield


@PARTS.offers("vocoder.source.SineGen2", "vocoder.source.SourceModuleHnNSF")
def source(job: Job) -> Mapping[str, Any]:
    f0 = array(job.inputs["f0"])
    with uniform_noise(job.given("sine_waves")):
        if not job.state:
            sizes = {"sampling_rate" if k == "samp_rate" else k: v for k, v in job.config.items()}
            y, uv, _ = hifigan.SineGen2(**sizes)(f0)
            return {"y": y, "uv": uv}
        merged, _, uv = load(hifigan.SourceModuleHnNSF2(**job.config), converted(job))(f0)
    return {"sine_merge": merged, "uv": uv}


@PARTS.offers("vocoder.stft.stft", "vocoder.stft.istft")
def spectra(job: Job) -> Mapping[str, Any]:
    n_fft, hop = job.call["n_fft"], job.call["hop_len"]
    function = getattr(hifigan, job.part.path.rpartition(".")[2])
    found = function(*inputs(job).values(), n_fft, hop, hifigan.hann_window_periodic(n_fft))
    return dict(zip(job.part.outputs, found if isinstance(found, tuple) else (found,), strict=True))


def generator_model(c: VocoderConfig) -> hifigan.CausalHiFTGenerator:
    """The whole vocoder without weights."""
    model = hifigan.CausalHiFTGenerator(
        in_channels=c.in_channels,
        base_channels=c.base_channels,
        upsample_rates=list(c.upsample_rates),
        upsample_kernel_sizes=list(c.upsample_kernel_sizes),
        istft_params={"n_fft": c.istft_n_fft, "hop_len": c.istft_hop_len},
        resblock_kernel_sizes=list(c.resblock_kernel_sizes),
        resblock_dilation_sizes=[list(d) for d in c.resblock_dilation_sizes],
        source_resblock_kernel_sizes=list(c.source_resblock_kernel_sizes),
        source_resblock_dilation_sizes=[list(d) for d in c.source_resblock_dilation_sizes],
        conv_pre_look_right=c.conv_pre_look_right,
    )
    # The package ties the pitch predictor's width to the generator's; both are 512 in the model.
    model.f0_predictor = hifigan.CausalConvRNNF0Predictor(1, c.in_channels, c.f0_cond_channels)
    return model


@PARTS.offers("vocoder.generator.CausalHiFTGenerator.decode", "vocoder.generator.CausalHiFTGenerator.inference")
def generator(job: Job) -> Mapping[str, Any]:
    model = load(generator_model(from_dict(VocoderConfig, dict(job.config))), converted(job))
    if job.part.path.endswith("decode"):
        return {"wav": model.decode(**inputs(job), **job.call)}
    with uniform_noise(job.given("sine_waves")):
        wav, s = model(array(job.inputs["speech_feat"]), **job.call)
        mx.eval(wav, s)
    return {"wav": wav, "s": s}
