"""mlx-audio-plus: audio features, speech tokenizer and speaker encoder, one function per part.

b batch, n frames
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import scipy.signal
from mlx_audio.codec.models.s3gen import mel, xvector
from mlx_audio.codec.models.s3tokenizer import log_mel_spectrogram_compat, mask_to_bias, model_v2, model_v3
from mlx_audio.dsp import mel_filters

from mlx_parity.adapter import NotOffered
from parity_tests.adapters.mlx_audio_plus_parts.weights import array, inputs, load
from parity_tests.adapters.parts import Job, Parts
from port.config import SpeakerConfig, SpeechTokenizerConfig, from_dict

PARTS = Parts()
NORM_EPS = 1e-5  # of mlx.nn.BatchNorm


# Audio features, as `Model.generate` in cosyvoice3.py calls them


@PARTS.offers("frontend.audio.resample")
def resample(job: Job) -> Mapping[str, Any]:
    if (job.call["orig_freq"], job.call["new_freq"]) != (24000, 16000):
        raise NotOffered("the port resamples from 24 kHz to 16 kHz only")
    wave = job.inputs["waveform"][0]
    return {"y": np.asarray(scipy.signal.resample(wave, int(len(wave) * 16000 / 24000)), np.float32)[None]}


@PARTS.offers("frontend.audio.mel_filterbank")
def mel_filterbank(job: Job) -> Mapping[str, Any]:
    c = job.call
    sizes = (c["sampling_rate"], c["n_fft"], c["num_mels"], c["fmin"], c["fmax"])
    return {"basis": mel_filters(*sizes, norm="slaney", mel_scale="slaney")}


@PARTS.offers("frontend.audio.mel_spectrogram")
def mel_spectrogram(job: Job) -> Mapping[str, Any]:
    sizes = dict(n_fft=1920, num_mels=80, sampling_rate=24000, hop_size=480, win_size=1920)
    return {"mel": mel.mel_spectrogram(array(job.inputs["y"]), **sizes, fmin=0, fmax=8000, center=False)}


@PARTS.offers("frontend.audio.log_mel_spectrogram")
def log_mel_spectrogram(job: Job) -> Mapping[str, Any]:
    return {"mel": log_mel_spectrogram_compat(array(job.inputs["audio"]), n_mels=128)}


@PARTS.offers("frontend.audio.kaldi_mel_banks")
def kaldi_mel_banks(job: Job) -> Mapping[str, Any]:
    rate = job.call["sample_frequency"]
    basis = mel_filters(rate, job.call["n_fft"], job.call["num_bins"], 20.0, rate / 2, norm=None, mel_scale="htk")
    return {"basis": basis}


@PARTS.offers("frontend.audio.fbank")
def fbank(job: Job) -> Mapping[str, Any]:
    wave = array(job.inputs["waveform"])
    if not job.call.get("subtract_mean"):
        return {"fbank": xvector.kaldi_fbank(wave[0], num_mel_bins=80)}
    features: list[mx.array] = []
    xvector.CAMPPlus.inference(features.append, wave)  # calls the network on features without their mean
    return {"fbank": features[0][0]}


# Speech tokenizer


def masks(mask: np.ndarray) -> tuple[mx.array, mx.array]:
    """The two masks that `AudioEncoderV3` makes from valid positions (b, n)."""
    valid = mx.array(mask)
    return mx.expand_dims(mask_to_bias(valid, mx.float32), 1), mx.expand_dims(valid, -1)


def tables(angles: np.ndarray) -> tuple[mx.array, mx.array]:
    return array(np.cos(angles.astype(np.float64))), array(np.sin(angles.astype(np.float64)))


def sequential(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names and layouts of the package, as its `sanitize` writes them."""
    named = {re.sub(r"mlp\.(\d)\.", r"mlp.layers.\1.", k): v for k, v in weights.items()}
    return {k: v.swapaxes(1, 2) if v.ndim == 3 else v for k, v in named.items()}


@PARTS.offers("frontend.speech_tokenizer.FSMNMultiHeadAttention", "frontend.speech_tokenizer.ResidualAttentionBlock")
def tokenizer_layer(job: Job) -> Mapping[str, Any]:
    part = getattr(model_v2, job.part.path.rpartition(".")[2])
    layer = load(part(job.config["dim"], job.config["heads"], job.config["kernel_size"]), sequential(job.state))
    found = layer(array(job.inputs["x"]), *masks(job.inputs["mask"]), tables(job.inputs["rope"]))
    return {"y": found[0] if isinstance(found, tuple) else found}


def rounded(run: Any) -> tuple[Any, mx.array]:
    """What `run` returns, and the numbers before they are rounded to digits."""
    seen: list[mx.array] = []
    true_round = mx.round

    def keep(x: mx.array, *rest: Any) -> mx.array:
        seen.append(x)
        return true_round(x, *rest)

    with mock.patch.object(mx, "round", keep):
        return run(), seen[0]


@PARTS.offers(
    "frontend.speech_tokenizer.FSQVectorQuantization", "frontend.speech_tokenizer.FSQVectorQuantization.activations"
)
def quantizer(job: Job) -> Mapping[str, Any]:
    built = model_v2.FSQVectorQuantization(job.config["dim"], 3 ** job.config["fsq_dim"])
    names = {"project_in": "fsq_codebook.project_down"}
    load(built, {k.replace("project_in", names["project_in"]): v for k, v in job.state.items()})
    x = array(job.inputs["x"])
    tokens, before = rounded(lambda: built.encode(x))
    return {"tokens": tokens} if "tokens" in job.part.outputs else {"y": before.reshape(*x.shape[:2], -1)}


@PARTS.offers("frontend.speech_tokenizer.S3TokenizerV3", "frontend.speech_tokenizer.S3TokenizerV3.activations")
def tokenizer(job: Job) -> Mapping[str, Any]:
    c = from_dict(SpeechTokenizerConfig, dict(job.config))
    config = model_v3.ModelConfigV3(c.n_mels, n_audio_state=c.dim, n_audio_head=c.heads, n_audio_layer=c.depth)
    model = model_v3.S3TokenizerV3(config=config)
    model.encoder._freqs_cis = model_v2.precompute_freqs_cis(c.dim // c.heads, 2048)  # the package assumes heads of 64
    state, digits = dict(job.state), model.quantizer.fsq_codebook.project_down.weight.shape[0]
    for key in ("quantizer.project_in.weight", "quantizer.project_in.bias"):
        value = state.pop(key)  # the package assumes 8 digits: zeros in the rest round to the middle level
        state[key.replace("project_in", "fsq_codebook.project_down")] = np.concatenate(
            [value, np.zeros((digits - c.fsq_dim, *value.shape[1:]), value.dtype)]
        )
    named = {k if k.startswith("quantizer") else f"encoder.{k}": mx.array(v) for k, v in state.items()}
    load(model, model.sanitize(named))
    lengths = array(job.inputs["mel_len"])
    (tokens, sizes), before = rounded(lambda: model(array(job.inputs["mel"]), lengths))
    inside = mx.arange(tokens.shape[1]) < sizes[:, None]  # values past a row's length are meaningless
    if "tokens" in job.part.outputs or job.part.path.endswith("S3TokenizerV3"):
        middle = sum(3**i for i in range(c.fsq_dim, digits))
        return {"tokens": (tokens - middle) * inside, "lengths": sizes}
    return {"y": before.reshape(*tokens.shape, digits)[..., : c.fsq_dim] * inside[..., None], "lengths": sizes}


# Speaker encoder: the official graph has folded batch norms, the package keeps them as layers

FOLDED = (
    (r"conv(\d)$", r"bn\1"),
    (r"shortcut\.0$", "shortcut.1"),
    (r"(layers\.\d+\.)linear1$", r"\1nonlinear2.0"),
    (r"^linear1$", "nonlinear2.0"),
    (r"^tdnn\.linear$", "tdnn.nonlinear.0"),
    (r"^transits\.\d+\.linear$", "out_nonlinear.0"),
)
NAMES = (
    (r"^xvector\.", ""),
    (r"\bblock(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}."),
    (r"\btransit(\d+)\.", lambda m: f"transits.{int(m[1]) - 1}."),
    (r"\btdnnd(\d+)\.", lambda m: f"layers.{int(m[1]) - 1}."),
    (r"\bnonlinear(\d?)\.batchnorm\.", r"nonlinear\1.0."),
)


def unfolded(state: Mapping[str, np.ndarray], folded: Any = FOLDED) -> dict[str, np.ndarray]:
    """Rename to the package's names; a bias folded from a batch norm becomes the bias of an otherwise neutral one."""
    weights: dict[str, np.ndarray] = {}
    for key, value in state.items():
        for pattern, name in NAMES:
            key = re.sub(pattern, name, key)
        part, _, what = key.rpartition(".")
        norm = next((re.sub(old, new, part) for old, new in folded if re.search(old, part)), None)
        if what == "bias" and norm is not None:
            ones, zeros = np.ones_like(value), np.zeros_like(value)
            found = {"weight": ones, "bias": value, "running_mean": zeros, "running_var": ones - NORM_EPS}
            weights |= {f"{norm}.{k}": v for k, v in found.items()}
        else:
            weights[key] = np.moveaxis(value, 1, -1) if value.ndim > 2 else value
    return weights


def dense_block(c: SpeakerConfig, layers: int, dilation: int, channels: int) -> nn.Module:
    return xvector.CAMDenseTDNNBlock(
        layers, channels, c.growth_rate, c.bottleneck_channels, kernel_size=3, dilation=dilation
    )


@PARTS.offers("frontend.speaker.BasicResBlock")
def res_block(job: Job) -> Mapping[str, Any]:
    channels = job.config["channels"]
    block = load(xvector.BasicResBlock(channels, channels, job.config["stride"]), unfolded(job.state))
    return {"y": block(array(job.inputs["x"].transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)}


@PARTS.offers("frontend.speaker.FCM")
def head(job: Job) -> Mapping[str, Any]:
    return {"y": load(xvector.FCM(m_channels=job.config["channels"]), unfolded(job.state))(**inputs(job))}


@PARTS.offers("frontend.speaker.TDNNLayer")
def tdnn(job: Job) -> Mapping[str, Any]:
    layer = xvector.TDNNLayer(**job.config, padding=-1)
    return {"y": load(layer, unfolded(job.state, [(r"^linear$", "nonlinear.0")]))(**inputs(job))}


@PARTS.offers("frontend.speaker.CAMLayer")
def cam(job: Job) -> Mapping[str, Any]:
    c, dilation = job.config, job.config["dilation"]
    if not c["divide_by_full_segment"]:
        raise NotOffered("the port divides a short last segment by 100, as the official campplus.onnx says")
    layer = xvector.CAMLayer(c["bn_channels"], c["out_channels"], 3, 1, padding=dilation, dilation=dilation, bias=False)
    return {"y": load(layer, unfolded(job.state, ()))(**inputs(job))}


@PARTS.offers("frontend.speaker.CAMDenseTDNNLayer", "frontend.speaker.CAMDenseTDNNBlock")
def dense_layers(job: Job) -> Mapping[str, Any]:
    sizes = {k: v for k, v in job.config.items() if k not in ("segment_frames", "divide_by_full_segment", "eps")}
    built = getattr(xvector, job.part.path.rpartition(".")[2])(**sizes, kernel_size=3)
    return {"y": load(built, unfolded(job.state))(**inputs(job))}


@PARTS.offers("frontend.speaker.TransitLayer", "frontend.speaker.DenseLayer")
def last_layers(job: Job) -> Mapping[str, Any]:
    sizes = {k: v for k, v in job.config.items() if k != "eps"}
    if job.part.path.endswith("DenseLayer"):
        sizes["config_str"] = "batchnorm_"
    built = getattr(xvector, job.part.path.rpartition(".")[2])(**sizes)
    return {"y": load(built, unfolded(job.state, ()))(**inputs(job))}


@PARTS.offers("frontend.speaker.StatsPool")
def stats(job: Job) -> Mapping[str, Any]:
    return {"y": xvector.StatsPool()(**inputs(job))}


@PARTS.offers("frontend.speaker.CAMPPlus")
def speaker(job: Job) -> Mapping[str, Any]:
    """The package builds one size only; a smaller encoder is assembled from its parts."""
    c = from_dict(SpeakerConfig, dict(job.config))
    model = xvector.CAMPPlus(c.n_mels, c.embed_dim, growth_rate=c.growth_rate, init_channels=c.init_channels)
    model.head = xvector.FCM(m_channels=c.head_channels, feat_dim=c.n_mels)
    model.tdnn = xvector.TDNNLayer(model.head.out_channels, c.init_channels, 5, stride=2, padding=-1)
    model.blocks, model.transits, channels = [], [], c.init_channels
    for layers, dilation in zip(c.block_layers, c.block_dilations, strict=True):
        model.blocks.append(dense_block(c, layers, dilation, channels))
        channels += layers * c.growth_rate
        model.transits.append(xvector.TransitLayer(channels, channels // 2, bias=False))
        channels //= 2
    model.out_nonlinear = xvector.get_nonlinear("batchnorm-relu", channels)
    model.dense = xvector.DenseLayer(2 * channels, c.embed_dim, config_str="batchnorm_")
    return {"embedding": load(model, unfolded(job.state))(array(job.inputs["x"]))}
