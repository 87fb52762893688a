"""The reference in PyTorch as one side of the benchmark; it also runs in float64, for the check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.cases import TO_SAMPLES
from benchmarks.streams import Outputs, chunks_timed, fix_length, take_tokens, texts_of, voice_conversion
from benchmarks.weights import State
from port.config import CosyVoice3Config
from port.request import Stream
from reference.flow.matching import cosine_schedule
from reference.llm.sampling import SeededDraws, greedy_sampling, ras_sampling
from reference.model import CosyVoice3Model, SynthesisCache
from reference.synthesize import EMBEDDED, TIED, build

ATTRIBUTES = {"hift": "vocoder"}
Run = Callable[[], Outputs]


class Side:
    """The reference with the loaded parts."""

    name = "torch"

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model: Any = None

    def load(self, part: str, config: CosyVoice3Config, state: State) -> None:
        """Fill one part; the others stay without storage."""
        if self.model is None:
            with torch.device("meta"):
                self.model = CosyVoice3Model(config)
        module: Any = build(part, config)
        tensors = {key: torch.from_numpy(value) for key, value in state.items()}
        if part == "llm":
            tensors[TIED] = tensors[EMBEDDED]
        module.load_state_dict(tensors, strict=True, assign=True)
        if part == "llm":
            module.llm["model"]["lm_head"].weight = module.qwen2.embed_tokens.weight  # `assign` undid the tie
            rotary, qwen2 = module.qwen2.rotary_emb, config.llm.qwen2
            # Buffers outside the state dict have no storage yet.
            module.qwen2.rotary_emb = type(rotary)(qwen2.head_dim, qwen2.rope_theta)
        setattr(self.model, ATTRIBUTES.get(part, part), module.eval())

    def prepare(
        self, kind: str, inputs: Mapping[str, np.ndarray], size: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Run:
        """What is timed, as a function without arguments; its results are complete when it returns.

        `options["double"]` runs in float64. `options["check"]` leaves out random outputs and adds the mel to the
        samples. `options["mel_error"]` changes that mel: see `_with_mel`.
        """
        dtype = torch.float64 if options.get("double") else torch.float32
        self.model.to(dtype)
        tensors = {k: torch.from_numpy(v.copy()) for k, v in inputs.items()}
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
        run = getattr(self, f"_{kind}")(tensors, size, options)
        if options.get("check") and kind in TO_SAMPLES:
            run = self._with_mel(run, *options.get("mel_error", (0.0, 0)))

        def inferred() -> Outputs:
            with torch.inference_mode():
                return run()

        return inferred

    @staticmethod
    def to_numpy(value: Any) -> np.ndarray:
        """One output, channels first."""
        return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

    def square(self, n: int) -> Callable[[], Any]:
        """A matrix product of `n` by `n` in float32."""
        a, b = (torch.randn(n, n) for _ in range(2))
        return lambda: a @ b

    def sweep(self, count: int) -> Callable[[], Any]:
        """The sum of `count` float32 numbers, which reads them once."""
        a = torch.ones(count)
        return lambda: a.sum()

    def reset_peak(self) -> None:
        """Torch counts no memory on a CPU."""

    def peak(self) -> int | None:
        return None

    def about(self) -> dict[str, Any]:
        return {"version": torch.__version__, "device": "cpu", "threads": torch.get_num_threads()}

    def _with_mel(self, run: Run, spread: float, seed: int) -> Run:
        """`run` with its last mel among the outputs; each mel gets noise of rms `spread` on its way to the vocoder."""
        flow = self.model.flow

        def shown() -> Outputs:
            found: Outputs = {}

            def inference(*given: Any, **named: Any) -> torch.Tensor:
                found["mel"] = mel = type(flow).inference(flow, *given, **named)
                # Frames first: a longer mel of a stream begins with the noise of the shorter one.
                noise = np.random.default_rng(seed).standard_normal((mel.shape[2], mel.shape[1]))
                return mel + torch.from_numpy(spread * noise.T).to(mel.dtype)

            flow.inference = inference
            try:
                return run() | found
            finally:
                del flow.inference

        return shown

    def _prefill(self, x: dict[str, torch.Tensor], *_: Any) -> Run:
        llm = self.model.llm
        return lambda: {"scores": llm.step(x["inputs_embeds"], llm.qwen2.make_cache())}

    def _decode(self, x: dict[str, torch.Tensor], size: Mapping[str, Any], options: Mapping[str, Any]) -> Run:
        sampling = greedy_sampling if options.get("check") else ras_sampling
        job = self.model.llm.inference(**x, draws=SeededDraws(0), sampling=sampling, strict_min_length=True)
        return take_tokens(job, size["tokens"])

    _batch = _decode  # the original decodes one request at a time

    def _dit(self, x: dict[str, torch.Tensor], *_: Any) -> Run:
        t = cosine_schedule(10, x["x"].dtype)[0]
        mask = torch.ones(1, 1, x["x"].shape[2])
        return lambda: {"v": self.model.flow.decoder.velocity(t=t, mask=mask, **x)[0]}

    def _flow(self, x: dict[str, torch.Tensor], size: Mapping[str, Any], *_: Any) -> Run:
        return lambda: {"mel": self.model.flow.inference(**x, streaming=size["streaming"])}

    def _vocoder(self, x: dict[str, torch.Tensor], *_: Any) -> Run:
        return lambda: {"wav": self.model.vocoder.inference(**x)[0]}

    def _token2wav(self, x: dict[str, torch.Tensor], *_: Any) -> Run:
        prompt, chance = voice_conversion(x)
        cut = {"stream": False, "finalize": True, "chance": chance}
        return lambda: {"wav": self.model.token2wav(x["token"], prompt, 0, SynthesisCache(), **cut)}

    def _networks(self, x: dict[str, torch.Tensor], *_: Any) -> Run:
        runs = [self._token2wav({**x, "token": token}) for token in x["token"].split(1)]
        return lambda: {"wav": torch.cat([run()["wav"] for run in runs])}

    def _manifest(self, x: dict[str, torch.Tensor], size: Mapping[str, Any], *_: Any) -> Run:
        prompt, chance = voice_conversion(x)
        prompt = replace(prompt, prompt_text=x["prompt_text"], llm_prompt_speech_token=x["prompt_token"])
        fix_length(self.model.llm)

        def say(line: int, text: np.ndarray) -> int:
            drawn = replace(chance, draws=SeededDraws(line))
            made = self.model.tts(prompt, torch.from_numpy(text), chance=drawn, strict_min_length=True)
            return sum(result["tts_speech"].shape[1] for result in made)

        return lambda: {"samples": [say(line, text) for line, text in enumerate(texts_of(size))]}

    def _first(self, x: dict[str, torch.Tensor], size: Mapping[str, Any], options: Mapping[str, Any]) -> Run:
        return self._stream(x, size, {**options, "chunks": 1})

    def _stream(self, x: dict[str, torch.Tensor], size: Mapping[str, Any], options: Mapping[str, Any]) -> Run:
        if options.get("way") == "offline":
            return self._token2wav(x)
        prompt, chance = voice_conversion(x)
        how = Stream(reset_hop=True, causal_final=options.get("way") == "causal_final")

        def run() -> Outputs:
            chunks = self.model.tts(prompt, source_speech_token=x["token"], stream=how, chance=chance)
            return chunks_timed(chunks, torch.cat, options.get("chunks"))

        return run
