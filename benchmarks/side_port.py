"""The MLX port as one side of the benchmark, with the requested fast forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.counts import Counts, count
from benchmarks.port_runs import FIRST_TIME, RUNS, Run
from benchmarks.precision import in_precision
from benchmarks.streams import Outputs
from benchmarks.waits import watched
from benchmarks.weights import State
from convert.mapping import PORT_ROOT, convert
from port.app.device import keep_freed_memory
from port.config import CosyVoice3Config
from port.fast import chosen, speed_up
from port.fast.modulation import bake
from port.llm.sampling import SeededDraws
from port.model import CosyVoice3Model

CHANNELS_FIRST = ("x", "mu", "cond", "noise", "speech_feat")
WATCHED = 4  # tokens over which the host's waits are counted


class Side:
    """The port with the loaded parts.

    Attributes:
        model: plain until it first runs, then with the forms for the device; always plain if it has variants.
        roots: attributes of the model that hold weights.
        variants: other forms and precisions of the model, by their options.
    """

    name = "port"

    def __init__(self, threads: int) -> None:
        self.model: CosyVoice3Model
        self.roots: list[str] = []
        self.variants: dict[Any, CosyVoice3Model] | None = None
        self._fast: set[str] = set()

    def load(self, part: str, config: CosyVoice3Config, state: State) -> None:
        """Convert and fill one part; the others stay lazy and take no memory."""
        if not self.roots:
            self.model = CosyVoice3Model(config)
        root = PORT_ROOT[part]
        fill(self.model, root, convert(part, state, config).tensors)
        self.roots.append(root)
        if self.variants:
            self.variants = {}

    def baked(self) -> None:
        """Keep the tables of the fixed timesteps and drop the weights behind them."""
        bake(self.model.flow.decoder)

    def varied(self) -> None:
        """Keep the plain layers, from which variants are made."""
        self.variants = self.variants or {}

    def prepare(
        self, kind: str, inputs: Mapping[str, np.ndarray], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        """What is timed, as a function without arguments; its results are evaluated when it returns."""
        model = self._model(options)
        keep_freed_memory()  # as the command line does when the weights are there
        arrays = {
            k: mx.array(np.ascontiguousarray(v.swapaxes(1, 2)) if k in CHANNELS_FIRST else v) for k, v in inputs.items()
        }
        mx.eval(arrays)
        run = RUNS[kind](model, arrays, size, options)

        def evaluated() -> Outputs:
            found = run()
            mx.eval([value for value in found.values() if isinstance(value, mx.array)])
            return found

        return evaluated

    def counts(
        self, kind: str, inputs: Mapping[str, np.ndarray], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Counts | None:
        """Counts of the graph of a kind that is one graph; None for the others.

        For decoding we count one token; for the vocoder only the filter: pitch and source run partly on the host.
        """
        model, config = self._model(options), self.model.config
        run: Callable[..., mx.array]
        arguments: tuple[mx.array, ...]
        if kind in ("prefill", "decode"):

            def step(x: mx.array) -> mx.array:
                return model.llm.step(x, model.llm.qwen2.make_cache())

            run, arguments = step, (mx.zeros((1, size.get("positions", 1), config.llm.qwen2.hidden_size)),)
        elif kind == "dit":

            def velocity(x: mx.array, mu: mx.array, cond: mx.array, spks: mx.array) -> mx.array:
                return model.flow.decoder.velocity(x, FIRST_TIME, mu, None, spks, cond)[0]

            run, spks = velocity, mx.array(inputs["spks"])
            arguments = (*(mx.array(inputs[k]).swapaxes(1, 2) for k in ("x", "mu", "cond")), spks)
        elif kind == "vocoder":
            run = model.vocoder.decode
            mel = mx.array(inputs["speech_feat"]).swapaxes(1, 2)
            arguments = (mel, mx.zeros((1, mel.shape[1] * config.vocoder.hop_samples, 1)))
        else:
            return None
        found = count(run, *arguments)
        return replace(found, idle_waits=self._idle_waits(model, inputs)) if kind == "decode" else found

    @staticmethod
    def to_numpy(value: Any) -> np.ndarray:
        """One output, channels first."""
        if not isinstance(value, mx.array):
            return np.asarray(value)
        found = np.array(value.astype(mx.float32))
        return np.ascontiguousarray(found.swapaxes(1, 2)) if found.ndim == 3 else found

    def square(self, n: int) -> Callable[[], Any]:
        """A matrix product of `n` by `n` in float32."""
        a, b = (mx.random.normal((n, n)) for _ in range(2))
        mx.eval(a, b)
        return lambda: mx.eval(a @ b)

    def sweep(self, count: int) -> Callable[[], Any]:
        """The sum of `count` float32 numbers, which reads them once."""
        a = mx.ones(count)
        mx.eval(a)
        return lambda: mx.eval(a.sum())

    def reset_peak(self) -> None:
        mx.clear_cache()
        mx.reset_peak_memory()

    def peak(self) -> int:
        return mx.get_peak_memory()

    def about(self) -> dict[str, Any]:
        return {"version": version("mlx"), "device": mx.default_device().type.name}

    def _model(self, options: Mapping[str, Any]) -> CosyVoice3Model:
        """The model in the requested forms and precision."""
        if self.variants is None:
            for root in set(self.roots) - self._fast:
                self.model[root] = speed_up(self.model[root])
                self._fast.add(root)
            return self.model
        off, on = options.get("off", []), options.get("on", [])
        dtype, bits = options.get("dtype"), options.get("bits")
        key = str((off, on, dtype, bits))
        if key not in self.variants:
            made = in_precision(self.model, self.roots, dtype, bits)
            for root in self.roots:
                only = () if off == "all" else set(chosen()) - set(off) | set(on)
                made[root] = speed_up(made[root], only)
            if dtype or bits:  # keep one at a time: they share no weights
                self.variants = {k: v for k, v in self.variants.items() if k.endswith("None, None)")}
            self.variants[key] = made
        return self.variants[key]

    @staticmethod
    def _idle_waits(model: CosyVoice3Model, inputs: Mapping[str, Any]) -> float:
        """How often the host waits for a token with nothing queued behind it, per token, after the first."""
        job: Any = model.llm.inference(**inputs, draws=SeededDraws(0), strict_min_length=True)
        with watched() as waits:
            next(job)
            waits.idle = 0
            tokens = len([*islice(job, WATCHED)])
            found = waits.idle / tokens
        job.close()
        return found


def fill(model: CosyVoice3Model, root: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Load one part, every parameter once."""
    module = getattr(model, root)
    module.load_weights([(k.removeprefix(f"{root}."), mx.array(v)) for k, v in tensors.items()], strict=True)
    module.eval()
    mx.eval(module.parameters())
