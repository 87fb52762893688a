"""Convert arrays and weights for mlx-audio-plus."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_audio.tts.models.cosyvoice3.scripts import convert

from parity_tests.adapters.parts import Job

CONVERT = {"flow": convert.convert_flow_weights, "hift": convert.convert_hifigan_weights}
COMPUTED = ("stft_window",)  # parameters that the package computes itself


def array(value: np.ndarray) -> mx.array:
    return mx.array(value.astype(np.float32) if value.dtype.kind == "f" else value)


def inputs(job: Job) -> dict[str, mx.array]:
    return {name: array(value) for name, value in job.inputs.items()}


def load(module: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """Fill every parameter and set evaluation mode, as `load_cosyvoice3` does."""
    wanted = {name for name in dict(tree_flatten(module.parameters())) if name not in COMPUTED}
    if wanted != set(weights):
        raise ValueError(f"weights do not fit: {sorted(wanted ^ set(weights))[:6]}")
    module.load_weights([(name, mx.array(value)) for name, value in weights.items()], strict=False)
    return module.eval()


def converted(job: Job) -> dict[str, np.ndarray]:
    """The part's weights after the package's converter, named relative to the part."""
    full = {k: v for k, v in job.official().items() if not k.endswith("rotary_embed.inv_freq")}
    return {key.removeprefix(job.prefix): value for key, value in CONVERT[job.file](full).items()}
