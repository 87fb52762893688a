"""Which arithmetic a layer runs in: that of its weights, whatever its input is.

In a converted folder some weights are float16, bfloat16 or quantized and the rest float32 (convert/quantize.py). Sums
over the depth of a network stay float32, where half precision overflows; each layer rounds its own input.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .arithmetic import on_cpu


def layer_dtype(layer: nn.Module) -> mx.Dtype:
    """Dtype that a linear layer or an embedding computes in; a quantized one has it in its scales."""
    return layer.scales.dtype if "scales" in layer else layer.weight.dtype


def run(layer: nn.Module, x: mx.array) -> mx.array:
    """Apply a linear layer in its own dtype: x (..., C) of any float dtype -> (..., O) in the layer's.

    Without the cast MLX would promote the weights of every call instead.
    """
    return layer(x.astype(layer_dtype(layer)))


def attention_dtype(x: mx.array) -> mx.Dtype:
    """Dtype for the queries, keys and values `x`: MLX's CPU rounds scores to it, its GPU kernels keep them float32."""
    return mx.float32 if on_cpu() else x.dtype
