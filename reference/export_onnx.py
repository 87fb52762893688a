"""Write the speech tokenizer and the speaker encoder as the official ONNX files are written.

Both official files come from PyTorch's TorchScript exporter. A weight that is cast, transposed or
folded on the way has a number for a name in the file, so these exports do the same to their weights.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from port.config import SpeakerConfig, SpeechTokenizerConfig
from reference.frontend.speaker import CAMPPlus
from reference.frontend.speech_tokenizer import S3TokenizerV3

OPSETS = (14, 17)  # 14 as in the official files, which spell layer norms out; from 17 on each is one node


def live_speech_tokenizer(config: SpeechTokenizerConfig, seed: int) -> S3TokenizerV3:
    """A tokenizer with random float32 weights, each of which affects the tokens."""
    model = S3TokenizerV3(config).eval()
    _randomise(model, seed)
    return model


def live_speaker(config: SpeakerConfig, seed: int) -> CAMPPlus:
    """A speaker encoder with random float32 weights, each of which affects the embedding."""
    model = CAMPPlus(config).eval()
    _randomise(model, seed)
    return model


def export_speech_tokenizer(model: S3TokenizerV3, path: Path, opset: int = OPSETS[0]) -> None:
    """Write `speech_tokenizer_v3.onnx`: inputs mel (1, C, T) float32 and its length (1,) int32, output tokens (1, n).

    Args:
        model: in float32.
        path: appears only once the file is complete.
        opset: ONNX operator set, 14 or 17.
    """
    frames = 203
    example = (torch.zeros(1, model.config.n_mels, frames), torch.tensor([frames], dtype=torch.int32))
    with _anonymous_weights(model):
        names = ("feats", "feats_length", "indices")
        _export(model, example, path, opset, names, {"feats": {2: "T"}, "indices": {1: "n"}})


def export_speaker(model: CAMPPlus, path: Path, opset: int = OPSETS[0]) -> None:
    """Write `campplus.onnx`: input fbank (1, T, f) float32, output embedding (1, embed_dim).

    Args:
        model: in float32. Its folded convolutions are taken apart into convolution and batch norm, and the exporter
            folds them again, so their weights in the file differ from the model's by float32 rounding. The averages
            over segments have `count_include_pad` 1 (as the official file) or 0, by `divide_by_full_segment`.
        path, opset: as in `export_speech_tokenizer`.
    """
    with _unfolded(model):
        example = (torch.zeros(1, 331, model.config.n_mels),)
        _export(model, example, path, opset, ("input", "output"), {"input": {0: "B", 1: "T"}, "output": {0: "B"}})


def _export(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    opset: int,
    names: tuple[str, ...],
    dynamic_axes: dict[str, dict[int, str]],
) -> None:
    partial_path = path.with_name(path.name + ".partial")
    try:
        with warnings.catch_warnings():
            # The exporter is deprecated, and tracing warns of the length checks, which the graph does not need.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                example,
                str(partial_path),
                dynamo=False,
                opset_version=opset,
                input_names=list(names[:-1]),
                output_names=[names[-1]],
                dynamic_axes=dynamic_axes,
            )
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


@contextmanager
def _anonymous_weights(model: S3TokenizerV3) -> Iterator[None]:
    """Cast weights to the input's dtype, as Whisper's layers do, but not those of the memory and the quantizer."""
    casting: dict[type[nn.Module], Callable[..., Tensor]]
    casting = {nn.Linear: _cast_linear, nn.Conv1d: _cast_conv, nn.LayerNorm: _cast_norm}
    changed = [
        module
        for name, module in model.named_modules()
        if type(module) in casting and not name.endswith("fsmn_block") and not name.startswith("quantizer")
    ]
    for module in changed:
        module.forward = partial(casting[type(module)], module)
    whole = model.forward
    vars(model)["forward"] = lambda mel, mel_len: whole(mel, mel_len)[0]
    try:
        yield
    finally:
        for module in (model, *changed):
            del module.forward


def _cast_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _cast_conv(layer: nn.Conv1d, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.conv1d(x, layer.weight.to(x.dtype), bias, layer.stride, layer.padding)


def _cast_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)


class _ConvThenNorm(nn.Module):
    """A folded convolution as convolution and batch norm of random statistics, with the same result."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, eps: float, generator: torch.Generator) -> None:
        super().__init__()
        self.conv, self.eps = conv, eps
        channels = conv.out_channels
        mean, variance = torch.randn(channels, generator=generator), torch.rand(channels, generator=generator) + 0.5
        self.gain = nn.Parameter(torch.rand(channels, generator=generator) + 0.5)
        scale = self.gain.detach() / torch.sqrt(variance + eps)
        self.weight = nn.Parameter(conv.weight.detach() / scale.view(-1, *[1] * (conv.weight.dim() - 1)))
        bias = torch.zeros(channels) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias + mean * scale)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", variance)

    def forward(self, x: Tensor) -> Tensor:
        conv, function = self.conv, F.conv2d if isinstance(self.conv, nn.Conv2d) else F.conv1d
        y = function(x, self.weight, None, conv.stride, conv.padding, conv.dilation)
        return F.batch_norm(y, self.running_mean, self.running_var, self.gain, self.bias, eps=self.eps)


@contextmanager
def _unfolded(model: CAMPPlus) -> Iterator[None]:
    """Take the folded convolutions apart: all that have a bias, except those of the context masks."""
    generator = torch.Generator().manual_seed(0)
    folded = [
        (parent, name, child)
        for parent_name, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv1d | nn.Conv2d) and child.bias is not None and not parent_name.endswith("cam_layer")
    ]
    for parent, name, conv in folded:
        setattr(parent, name, _ConvThenNorm(conv, model.config.norm_eps, generator))
    model.eval()
    try:
        yield
    finally:
        for parent, name, conv in folded:
            setattr(parent, name, conv)


def _randomise(model: nn.Module, seed: int) -> None:
    """Matrices keep the scale of their input; no two vectors are equal, and none is all zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.empty_like(tensor).normal_(generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.dim() > 1:
                # Small, since no norm precedes the quantizer and its tanh must not always saturate.
                gain = 0.02 if name.startswith("quantizer") else 1.5
                tensor.copy_(noise * math.sqrt(gain / tensor[0].numel()))
            else:
                scale = name.endswith(("_ln.weight", "batchnorm.weight"))
                tensor.copy_(0.2 * noise + (1.0 if scale else 0.0))
