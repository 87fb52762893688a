"""The language model's tall weights in the order in which a CPU's product with a single row reads them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..llm.qwen2 import Qwen2MLP
from ..llm.speech_lm import CosyVoice3LM

ROWS = 128  # transposed at a time: the cache holds them, and so the whole takes a quarter of the time


def columns(model: nn.Module) -> nn.Module:
    """Put float32 weights (O, C) of linear layers with O > C into memory by input channel.

    With one row, as in decoding, a product takes as long as reading the weight. MLX has no product of a matrix and a
    vector, so the BLAS packs the weight as for many rows. OpenBLAS's kernels for AVX2 pack a tall one 1.5 times faster
    in this order, and the BLAS of MLX's Linux wheel multiplies 1.9 times faster. Other weights gain too little there
    for the time that the copy takes.
    """
    for part in model.modules():
        for layer in part.values() if isinstance(part, (CosyVoice3LM, Qwen2MLP)) else ():
            if type(layer) is nn.Linear and layer.weight.dtype == mx.float32:
                outputs, channels = layer.weight.shape
                layer.weight = by_channel(layer.weight) if outputs > channels else layer.weight
    return model


def by_channel(weight: mx.array) -> mx.array:
    """The same (O, C), with the outputs of a channel side by side in memory."""
    pieces = [weight[row : row + ROWS].T for row in range(0, weight.shape[0], ROWS)]
    return mx.contiguous(mx.concatenate(pieces, axis=1)).T
