"""The MLX port as one side of the benchmark, with the requested fast forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.counts import Counts, count
from benchmarks.precision import in_precision
from benchmarks.streams import Outputs, chunks_timed, take_tokens, take_tokens_together, texts_of, voice_conversion
from benchmarks.waits import watched
from benchmarks.weights import State
from convert.mapping import PORT_ROOT, convert
from port.app.device import keep_freed_memory
from port.batched.decoder import Decoder
from port.batched.flow import flow_row, mels
from port.batched.spoken import Piece, Spoken
from port.batched.together import together
from port.batched.vocoder import waves
from port.config import CosyVoice3Config
from port.fast import chosen, speed_up
from port.fast.modulation import bake
from port.llm.sampling import SeededDraws, greedy_sampling, ras_sampling
from port.model import CosyVoice3Model, SynthesisCache
from port.request import Options, Stream
from port.stream.flow import state_bytes

CHANNELS_FIRST = ("x", "mu", "cond", "noise", "speech_feat")
WATCHED = 4  # tokens over which the host's waits are counted
FIRST_TIME = np.float32(0)  # of every schedule
# Ways to stream: the port's; with a voice that it has streamed before; the original's (everything again for each
# chunk); without the original's last chunk.
WAYS = {
    None: {},
    "known_voice": {},
    "recompute": {"incremental": False},
    "causal_final": {"causal_final": True},
}
Run = Callable[[], Outputs]


class Side:
    """The port with the loaded parts.

    Attributes:
        model: plain until it first runs, then with the forms for the device; always plain if it has variants.
        roots: attributes of the model that hold weights.
        variants: other forms and precisions of the model, by their options.
    """

    name = "port"

    def __init__(self, threads: int) -> None:
        self.model: CosyVoice3Model | None = None
        self.roots: list[str] = []
        self.variants: dict[Any, CosyVoice3Model] | None = None
        self._fast: set[str] = set()

    def load(self, part: str, config: CosyVoice3Config, state: State) -> None:
        """Convert and fill one part; the others stay lazy and take no memory."""
        self.model = self.model or CosyVoice3Model(config)
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
        run = getattr(self, f"_{kind}")(model, arrays, size, options)

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
        if kind in ("prefill", "decode"):

            def run(x: mx.array) -> mx.array:
                return model.llm.step(x, model.llm.qwen2.make_cache())

            arguments = (mx.zeros((1, size.get("positions", 1), config.llm.qwen2.hidden_size)),)
        elif kind == "dit":

            def run(x: mx.array, mu: mx.array, cond: mx.array, spks: mx.array) -> mx.array:
                return model.flow.decoder.velocity(x, FIRST_TIME, mu, None, spks, cond)[0]

            arguments = (*(mx.array(inputs[k]).swapaxes(1, 2) for k in ("x", "mu", "cond")), mx.array(inputs["spks"]))
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
        return {"version": mx.__version__, "device": mx.default_device().type.name}

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
    def _idle_waits(model: CosyVoice3Model, inputs: Mapping[str, np.ndarray]) -> float:
        """How often the host waits for a token with nothing queued behind it, per token, after the first."""
        job = model.llm.inference(**inputs, draws=SeededDraws(0), strict_min_length=True)
        with watched() as waits:
            next(job)
            waits.idle = 0
            tokens = len([*islice(job, WATCHED)])
            found = waits.idle / tokens
        job.close()
        return found

    def _prefill(self, model: CosyVoice3Model, x: dict[str, mx.array], *_: Any) -> Run:
        return lambda: {"scores": model.llm.step(x["inputs_embeds"], model.llm.qwen2.make_cache())}

    def _decode(
        self, model: CosyVoice3Model, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        sampling = greedy_sampling if options.get("check") else ras_sampling
        job = model.llm.inference(**x, draws=SeededDraws(0), sampling=sampling, strict_min_length=True)
        return take_tokens(job, size["tokens"])

    def _batch(
        self, model: CosyVoice3Model, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        """Tokens from one request alone, or from `rows` that decode together: the same one and shorter texts."""
        rows = options.get("rows")
        if rows is None:
            return self._decode(model, x, size, options)
        sampling = greedy_sampling if options.get("check") else ras_sampling
        decoder, given = Decoder(model.llm, rows), [{**x, "text": x["text"][:, i:]} for i in range(rows)]
        together = [
            decoder.inference(**of, draws=SeededDraws(0), sampling=sampling, strict_min_length=True) for of in given
        ]
        return take_tokens_together(
            decoder, together, size["tokens"] if options.get("check") else size["tokens"] // rows
        )

    def _dit(
        self, model: CosyVoice3Model, x: dict[str, mx.array], _: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        guidance = options.get("guidance", "batched")
        return lambda: {"v": model.flow.decoder.velocity(t=FIRST_TIME, mask=None, **x, guidance=guidance)[0]}

    def _flow(
        self, model: CosyVoice3Model, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        guidance = options.get("guidance", "batched")
        return lambda: {"mel": model.flow.inference(**x, streaming=size["streaming"], guidance=guidance)}

    def _vocoder(self, model: CosyVoice3Model, x: dict[str, mx.array], *_: Any) -> Run:
        return lambda: {"wav": model.vocoder.inference(**x)[0]}

    def _token2wav(self, model: CosyVoice3Model, x: dict[str, mx.array], *_: Any) -> Run:
        prompt, chance = voice_conversion(x)
        return lambda: {
            "wav": model.token2wav(x["token"], prompt, 0, SynthesisCache(), stream=False, finalize=True, chance=chance)
        }

    def _networks(
        self, model: CosyVoice3Model, x: dict[str, mx.array], _: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        (prompt, chance), step = voice_conversion(x), options.get("rows", 1)

        def run() -> Outputs:
            rows, found = [flow_row(model.flow, token[None], prompt, chance.noise) for token in x["token"]], []
            for start in range(0, len(rows), step):
                made = mels(model.flow, rows[start : start + step])
                found += waves(model.vocoder, made, [chance.sine_waves] * len(made))
            return {"wav": mx.concatenate(found)}

        return run

    def _manifest(
        self, model: CosyVoice3Model, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        (prompt, chance), rows = voice_conversion(x), options.get("rows", 1)
        prompt = replace(prompt, prompt_text=x["prompt_text"], llm_prompt_speech_token=x["prompt_token"])
        texts = texts_of(size)

        def spoken(line: int) -> Spoken:
            chosen = Options(seed=line, noise=chance.noise, sine_waves=chance.sine_waves, strict_min_length=True)
            return Spoken(model, prompt, [Piece({"text": mx.array(texts[line])})], chosen, lambda: None)

        def run() -> Outputs:
            made = dict(together(model, ((line, partial(spoken, line)) for line in range(len(texts))), rows))
            return {"samples": [made[line][0]["tts_speech"].shape[1] for line in range(len(texts))]}

        return run

    def _first(
        self, model: CosyVoice3Model, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        if options.get("way") != "hop":
            return self._stream(model, x, size, {**options, "chunks": 1})
        # Exactly the work of the first chunk: one hop through both networks, by their plain calls.
        config = model.config
        hop = config.streaming.token_hop_len
        tokens = hop + -size["prompt"] % hop + config.flow.pre_lookahead_len

        def run() -> Outputs:
            ready = {**x, "token": x["token"][:, :tokens]}
            sine_waves = ready.pop("sine_waves")
            mel = model.flow.inference(**ready, streaming=True, finalize=False)
            return {"wav": model.vocoder.inference(mel, finalize=False, sine_waves=sine_waves)[0]}

        return run

    def _stream(
        self, model: CosyVoice3Model, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        way = options.get("way")
        if way == "offline":
            return self._token2wav(model, x)
        further, (prompt, chance) = WAYS[way], voice_conversion(x)
        frames = x["noise"].shape[1]
        # Memory for the whole stream and its prompt, whatever the default: we compare the ways, not the limit.
        limit = 2 * state_bytes(model.config.flow, frames)

        def stream(count: int | None) -> Outputs:
            how = Stream(reset_hop=True, max_cache_bytes=limit, **further)
            chunks = model.tts(prompt, source_speech_token=x["token"], stream=how, chance=chance)
            return chunks_timed(chunks, mx.concatenate, count)

        def run() -> Outputs:
            if way != "known_voice":
                model.stream_memory.clear()
            return stream(options.get("chunks"))

        if way == "known_voice" and not model.stream_memory.prompts:
            stream(2)  # the second chunk stores the prompt
        return run


def fill(model: CosyVoice3Model, root: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Load one part, every parameter once."""
    module = getattr(model, root)
    module.load_weights([(k.removeprefix(f"{root}."), mx.array(v)) for k, v in tensors.items()], strict=True)
    module.eval()
    mx.eval(module.parameters())
