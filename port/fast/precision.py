"""Layers of reduced precision that compute in their own dtype, whatever the dtype of their input.

In a converted folder some weights are float16, bfloat16 or quantized and the rest float32 (convert/quantize.py). Sums
over the depth of a network stay float32, where half precision overflows; each of these layers rounds its own input. A
plain layer would promote its weights in every call instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..frontend.speaker import CAMPPlus
from ..frontend.speech_tokenizer import S3TokenizerV3
from ..llm.qwen2 import Mask, Qwen2Attention
from ..vocoder.generator import CausalHiFTGenerator
from .arithmetic import on_cpu
from .modules import recast, replace


def layer_dtype(layer: nn.Module) -> mx.Dtype:
    """Dtype that a linear layer or an embedding computes in; a quantized one has it in its scales."""
    return layer.scales.dtype if "scales" in layer else layer.weight.dtype


class OwnLinear(nn.Linear):
    """x (..., C) of any float dtype -> (..., O) in the dtype of the weight."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x.astype(layer_dtype(self)))


class OwnQuantizedLinear(nn.QuantizedLinear):
    """x (..., C) of any float dtype -> (..., O) in the dtype of the scales."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x.astype(layer_dtype(self)))


class GpuAttention(Qwen2Attention):
    """`Qwen2Attention` that keeps half precision: GPU kernels compute its scores in float32."""

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: Mask) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5, mask=mask)


# Their weights stay float32 unless requested (convert/quantize.py); then the input stays and the weights are promoted.
LEFT = (S3TokenizerV3, CAMPPlus, CausalHiFTGenerator)
OWN: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: OwnLinear, nn.QuantizedLinear: OwnQuantizedLinear}


def own_dtype(model: nn.Module) -> nn.Module:
    """Replace the layers of language model and flow decoder; on a GPU also the attention, by `GpuAttention`."""

    def make(layer: nn.Module) -> nn.Module:
        return layer if layer_dtype(layer) == mx.float32 else recast(layer, OWN[type(layer)])

    forms: dict[type[nn.Module], Callable[[Any], nn.Module]] = dict.fromkeys(OWN, make)
    if not on_cpu():
        forms[Qwen2Attention] = lambda plain: recast(plain, GpuAttention)
    return replace(model, forms, LEFT)
