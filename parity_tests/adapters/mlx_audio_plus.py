"""The CosyVoice 3 port inside the PyPI package mlx-audio-plus (0.1.8), by A. DePasquale.

It is channels-first like the original, so arrays pass unchanged. Weights go through the package's own converter
(`mlx_audio.tts.models.cosyvoice3.scripts.convert`) where it supports the part, so each case tests it too.
Its packages are pinned in mlx_audio_plus.requirements.txt; the findings are in findings/mlx_audio_plus.json.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_audio.tts.models.cosyvoice3 import flow, hifigan

from mlx_parity.adapter import AdapterError, NotOffered
from parity_tests.adapters.mlx_audio_plus_parts import flow as flow_parts
from parity_tests.adapters.mlx_audio_plus_parts import frontend, llm, vocoder
from parity_tests.adapters.parts import Parts, PartsAdapter

ABSENT = {
    "flow.layers.ConvNeXtV2Block": "CosyVoice 3 does not use it, and the package left it out",
    "flow.matching.CausalConditionalCFM.velocity": "inlined in solve_euler; judged with the whole decoder",
}


class MlxAudioPlus(PartsAdapter):
    """mlx-audio-plus with the weights in one dtype."""

    def __init__(self, dtype: str = "float32") -> None:
        tables = (frontend.PARTS, llm.PARTS, flow_parts.PARTS, vocoder.PARTS)
        parts = Parts({path: run for table in tables for path, run in table.items()})
        super().__init__("mlx_audio_plus", parts, ABSENT, to_numpy=as_numpy)
        self.dtype = np.dtype(dtype)

    def run(self, part: Any, config: Any, state: Any, inputs: Any, call: Any) -> dict[str, np.ndarray]:
        # The package's converter casts first and folds the weight norms afterwards.
        return super().run(part, config, {k: v.astype(self.dtype) for k, v in state.items()}, inputs, call)

    def noise(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "rand_noise":
            seen: list[mx.array] = []

            def estimator(x: mx.array, **_: Any) -> mx.array:
                seen.append(x[:1])
                return mx.zeros_like(x)

            mu = mx.zeros(shape)
            cfm = flow.CosyVoice3ConditionalCFM(estimator)
            cfm(mu, mx.ones((1, 1, shape[2])), mx.zeros((1, shape[1])), mu, n_timesteps=1)
            return as_numpy(seen[0])
        if name == "sine_waves":
            generator = hifigan.SineGen2(24000, 480, harmonic_num=shape[2] - 1, sine_amp=0.1, noise_std=0.003)
            unvoiced, _, _ = generator(mx.zeros((1, shape[1], 1)))
            return as_numpy(unvoiced / (generator.sine_amp / 3))
        raise NotOffered(f"the port has no {name}")

    def versions(self) -> dict[str, str]:
        return {package: metadata.version(package) for package in ("mlx-audio-plus", "mlx-lm", "mlx")}


def as_numpy(value: Any) -> np.ndarray:
    """Convert an MLX array, or anything numpy accepts, to numpy; half precision becomes float32."""
    if isinstance(value, mx.array) and value.dtype in (mx.float16, mx.bfloat16):
        value = value.astype(mx.float32)
    return np.array(value)


def make(dtype: str = "float32") -> MlxAudioPlus:
    """The adapter for weights of `dtype`: float32, or float16 as the package's converter writes them.

    Raises:
        AdapterError: another dtype.
    """
    if dtype not in ("float32", "float16"):
        raise AdapterError(f"mlx-audio-plus converts to float16 or float32, not {dtype}")
    return MlxAudioPlus(dtype)
