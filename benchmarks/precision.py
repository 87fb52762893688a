"""The port in half precision or quantized, made from the float32 model in memory as the converter does it."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from convert.quantize import Precision
from port.files.weights import quantize
from port.model import CosyVoice3Model

QUANTIZED = ("llm", "flow")


def in_precision(exact: CosyVoice3Model, roots: Sequence[str], dtype: str | None, bits: int | None) -> CosyVoice3Model:
    """A copy of the loaded parts `roots` in another precision; float32 shares the arrays. Other parts stay lazy.

    Args:
        exact: the model in float32.
        roots: attributes of the model that hold weights.
        dtype: float16 or bfloat16; None for float32.
        bits: 8 or 4 for the big matrices of language model and flow; None for none.
    """
    model = CosyVoice3Model(exact.config)
    if not dtype and not bits:
        for root in roots:
            model[root].update(exact[root].parameters())
        model.eval()
        return model
    precision = Precision(dtype or "float32", bits=dict.fromkeys(QUANTIZED, bits) if bits else {})
    held = {
        f"{root}.{name}": np.array(value)
        for root in roots
        for name, value in dict(tree_flatten(getattr(exact, root).parameters())).items()
    }
    pieces = {name: mx.array(piece) for given, value in held.items() for name, piece in precision.stored(given, value)}
    if settings := precision.quantization({name: value.shape for name, value in held.items()}):
        quantize(model, settings, pieces)
    model.load_weights(list(pieces.items()), strict=False)
    model.eval()
    mx.eval(pieces)
    return model
