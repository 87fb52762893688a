"""The CosyVoice 3 of mlx-audio-plus as one side of the benchmark; it runs in its own environment.

Built and filled by the functions of its adapter (parity_tests/adapters/mlx_audio_plus_parts), with the same noise as
the other sides. Streams come from its `synthesize_streaming` with the language model's tokens given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_audio.tts.models.cosyvoice3 import cosyvoice3
from mlx_audio.tts.models.cosyvoice3.llm import llm
from mlx_audio.tts.models.cosyvoice3.scripts import convert
from mlx_lm.models import qwen2

from benchmarks.streams import Outputs, chunks_timed, take_tokens
from benchmarks.weights import State
from parity_tests.adapters.mlx_audio_plus_parts import flow, vocoder
from parity_tests.adapters.mlx_audio_plus_parts.llm import qwen2_args
from parity_tests.adapters.mlx_audio_plus_parts.weights import array, load
from port.config import CosyVoice3Config

Run = Callable[[], Outputs]


class Side:
    """Those of the package's three networks that are loaded."""

    name = "mlx_audio_plus"

    def __init__(self, threads: int) -> None:
        self.parts: dict[str, Any] = {}

    def load(self, part: str, config: CosyVoice3Config, state: State) -> None:
        """Convert one part with the package's own converter and fill it."""
        self.config = config
        if part == "llm":
            c = config.llm
            backbone = load(qwen2.Model(qwen2_args(c.qwen2)), convert.convert_qwen2_weights(state))
            width = c.qwen2.hidden_size
            model = llm.CosyVoice3LM(width, width, c.speech_token_size, c.num_special_tokens, None, llm.ras_sampling)
            load(model, convert.convert_speech_weights(state))
            model.llm = llm.Qwen2Encoder(backbone)
        elif part == "flow":
            state = {k: v for k, v in state.items() if not k.endswith("rotary_embed.inv_freq")}
            unused = np.zeros((1, config.flow.output_size, 1), np.float32)
            model = load(flow.flow_decoder(config.flow, unused), convert.convert_flow_weights(state))
        else:
            model = load(vocoder.generator_model(config.vocoder), convert.convert_hifigan_weights(state))
        self.parts[part] = model
        mx.eval(model.parameters())

    def prepare(
        self, kind: str, inputs: Mapping[str, np.ndarray], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        """What is timed, as a function without arguments; its results are evaluated when it returns."""
        arrays = {name: array(value) for name, value in inputs.items()}
        mx.eval(arrays)
        if "noise" in inputs:
            self.parts["flow"].decoder._rand_noise = arrays["noise"]
        run = getattr(self, f"_{kind}")(arrays, size, options)

        def evaluated() -> Outputs:
            found = run()
            mx.eval([value for value in found.values() if isinstance(value, mx.array)])
            return found

        if "sine_waves" not in inputs:
            return evaluated

        def with_noise() -> Outputs:
            with vocoder.uniform_noise(inputs["sine_waves"]):
                return evaluated()

        return with_noise

    @staticmethod
    def to_numpy(value: Any) -> np.ndarray:
        """One output, channels first as the package has it."""
        return np.array(value)

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
        version = metadata.version
        return {"version": version("mlx-audio-plus"), "mlx": version("mlx"), "device": mx.default_device().type.name}

    def _prefill(self, x: dict[str, mx.array], *_: Any) -> Run:
        model = self.parts["llm"]

        def run() -> Outputs:
            hidden, _ = model.llm.forward_one_step(x["inputs_embeds"])
            return {"scores": mx.log(mx.softmax(model.llm_decoder(hidden[:, -1]), axis=-1))[0]}

        return run

    def _decode(self, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]) -> Run:
        model = self.parts["llm"]
        model.sampling = likeliest if options.get("check") else llm.ras_sampling
        mx.random.seed(0)
        job = model.inference(**x, **lengths(x), embedding=None)
        return take_tokens(job, size["tokens"])

    def _dit(self, x: dict[str, mx.array], *_: Any) -> Run:
        solver = self.parts["flow"].decoder
        rate = solver.inference_cfg_rate

        def doubled(value: mx.array, second: mx.array | None = None) -> mx.array:
            return mx.concatenate([value, mx.zeros_like(value) if second is None else second])

        def run() -> Outputs:
            # One iteration of the loop in solve_euler.
            v = solver.estimator(
                x=doubled(x["x"], x["x"]),
                mask=mx.ones((2, x["x"].shape[2])),
                mu=doubled(x["mu"]),
                t=mx.zeros(2),
                spks=doubled(x["spks"]),
                cond=doubled(x["cond"]),
                streaming=False,
            )
            return {"v": (1.0 + rate) * v[:1] - rate * v[1:]}

        return run

    def _mel(self, x: dict[str, mx.array], streaming: bool = False) -> mx.array:
        sequences = {name: x[name] for name in ("token", "prompt_token", "prompt_feat")}
        further = {"embedding": x["embedding"], "streaming": streaming}
        return self.parts["flow"].inference(**sequences, **lengths(sequences), **further)[0]

    def _flow(self, x: dict[str, mx.array], size: Mapping[str, Any], *_: Any) -> Run:
        return lambda: {"mel": self._mel(x, size["streaming"])}

    def _vocoder(self, x: dict[str, mx.array], *_: Any) -> Run:
        return lambda: {"wav": self.parts["hift"](x["speech_feat"])[0]}

    def _token2wav(self, x: dict[str, mx.array], *_: Any) -> Run:
        return lambda: {"wav": self.parts["hift"](self._mel(x))[0]}

    def _first(self, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]) -> Run:
        return self._stream(x, size, {**options, "chunks": 1})

    def _stream(self, x: dict[str, mx.array], size: Mapping[str, Any], options: Mapping[str, Any]) -> Run:
        model = cosyvoice3.CosyVoice3(None, None, self.parts["flow"], self.parts["hift"])
        tokens = np.array(x["token"][0]).tolist()
        model.generate_tokens = lambda **_: iter(tokens)
        texts = {"text": x["token"], "prompt_text": x["token"], "prompt_speech_token": x["prompt_token"]}
        further = {"prompt_mel": x["prompt_feat"], "speaker_embedding": x["embedding"], "filter_silent_tokens": False}

        def chunks() -> Iterator[dict[str, mx.array]]:
            names = lengths(texts) | {"prompt_mel_len": mx.array([x["prompt_feat"].shape[1]])}
            for chunk in model.synthesize_streaming(**texts, **names, **further):
                mx.eval(chunk)
                yield {"tts_speech": chunk[None]}

        return lambda: chunks_timed(chunks(), mx.concatenate, options.get("chunks"))


def lengths(sequences: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The package's arguments `NAME_len`."""
    return {f"{name}_len": mx.array([value.shape[1]]) for name, value in sequences.items()}


def likeliest(scores: mx.array, *_: Any) -> int:
    """Greedy choice, with the arguments of the package's sampling functions."""
    return np.array(mx.argmax(scores)).item()
