"""`--bake-timesteps`: store what the flow decoder computes from its fixed timesteps, in place of the weights for it.

The port's own layers compute the tables, in float32 whatever the dtype of the other weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from convert.mapping import Step
from convert.transforms import Shape
from port.config import CosyVoice3Config
from port.fast.modulation import make_room, norms, step_times
from port.files.storage import TensorInfo
from port.files.weights import BAKED_TIMES
from port.flow.dit import DiT
from port.flow.matching import cosine_schedule

ROOT = "flow.decoder.estimator"
TIME_EMBED = BAKED_TIMES.rpartition(".")[0]


class Bake:
    """Turns converted parameters into tables, one layer in memory at a time.

    Args:
        config: of the model, which also says how many steps the flow takes.

    Attributes:
        times: that the model will know.
        replaced: names of the parameters that are not written.
        tensors: what is written for them.
    """

    def __init__(self, config: CosyVoice3Config) -> None:
        self.times = step_times(cosine_schedule(config.flow.cfm.n_timesteps))
        dit, baked = DiT(config.flow.dit), DiT(config.flow.dit)
        make_room(baked, len(self.times))
        before, after = (_shapes(model) for model in (dit, baked))
        self.replaced = before.keys() - after.keys()
        self.tensors = {name: TensorInfo("F32", after[name]) for name in after.keys() - before.keys()}
        paths = {id(module): f"{ROOT}.{path}" for path, module in dit.named_modules()}
        self._time_embed = dit.time_embed
        self._norms = {f"{paths[id(norm)]}.linear": norm for norm in norms(dit)}
        self._emb: mx.array | None = None  # of the times, (N, d), once the time embedding is there
        self._held: dict[str, dict[str, np.ndarray]] = {}  # by layer, its parameters so far
        self._complete = Counter(map(_layer, self.replaced))

    def order(self, steps: Sequence[Step]) -> list[Step]:
        """The steps of the flow with the time embedding first: the norms are tabulated from it."""
        return sorted(steps, key=lambda step: not (step.target or "").startswith(TIME_EMBED))

    def stored(self, name: str, array: np.ndarray) -> Iterator[tuple[str, mx.array]]:
        """The tensors that replace a layer, once its last parameter has arrived.

        Args:
            name: one of `replaced`.
            array: its value, float32.
        """
        layer = _layer(name)
        held = self._held.setdefault(layer, {})
        held[name.removeprefix(f"{layer}.")] = array
        if len(held) < self._complete[layer]:
            return
        weights = [(key, mx.array(value)) for key, value in self._held.pop(layer).items()]
        if layer == TIME_EMBED:
            self._time_embed.load_weights(weights)
            self._emb = self._time_embed(np.array(self.times, np.float32))
            yield BAKED_TIMES, mx.array(self.times, mx.float32)
            return
        norm = self._norms.pop(layer)
        norm.linear.load_weights(weights)
        yield f"{layer}.table", mx.stack(norm.modulation(self._emb), axis=1)


def _layer(name: str) -> str:
    """The layer that this parameter belongs to; its parameters are needed together."""
    return TIME_EMBED if name.startswith(TIME_EMBED) else name.rpartition(".")[0]


def _shapes(dit: DiT) -> dict[str, Shape]:
    return {f"{ROOT}.{name}": tuple(value.shape) for name, value in dict(tree_flatten(dit.parameters())).items()}
