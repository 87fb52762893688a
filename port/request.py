"""What a request brings: whose voice, how it streams, what is random. Both packages use it, each with its own arrays.

L text tokens, P prompt tokens, F prompt frames, C mel bins, s samples
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

LONGEST_PAUSE = 60  # seconds
MOST_ROWS = {"cpu": 8, "gpu": 32}  # requests that decode together by default
NO_TOKENS = "the language model ended at once: no speech tokens; try another seed or a longer text"
SPEED_IN_STREAM = "speed {:g}: only a whole utterance can change its tempo; leave out stream or speed"


@dataclass(frozen=True)
class Prompt:
    """A voice; what a network is not to get of it is None.

    Attributes:
        flow_embedding: (1, spk_embed_dim) speaker x-vector.
        prompt_text: (1, L) token ids before the text.
        llm_prompt_speech_token: (1, P) speech that the language model continues.
        flow_prompt_speech_token, prompt_speech_feat: (1, P) and (1, F, C), speech that the flow decoder continues.
    """

    flow_embedding: Any
    prompt_text: Any = None
    llm_prompt_speech_token: Any = None
    flow_prompt_speech_token: Any = None
    prompt_speech_feat: Any = None

    def given(self) -> dict[str, Any]:
        """The arrays that are there, by name."""
        return {f.name: value for f in fields(Prompt) if (value := getattr(self, f.name)) is not None}

    def filled(self, tokens: Any, frames: Any) -> Prompt:
        """The same with `tokens` (1, 0) in the place of None, as `prompt_speech_feat` with `frames` (1, 0, C)."""
        return replace(Prompt(self.flow_embedding, tokens, tokens, tokens, frames), **self.given())


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _require_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} {value!r:.40} is neither True nor False")


@dataclass(frozen=True)
class Stream:
    """How a request streams.

    Attributes:
        reset_hop: start with the shortest chunk and leave the model's `token_hop_len` alone.
        causal_final: keep the chunk mask in the last chunk too, so that a stream's mel is that of one long streaming
            run. The original drops it there.
        incremental: compute only what is new in a chunk, the same up to rounding; otherwise both networks run over
            everything again, as in the original. In the last chunk the flow decoder does, unless `causal_final`. Of the
            port; the reference always runs over everything.
        max_cache_bytes: what all streams of a model and the prompts kept for later ones may hold together, see
            stream/memory.py; beyond it chunks are computed again. None takes a quarter of the device's memory.
    """

    reset_hop: bool = False
    causal_final: bool = False
    incremental: bool = True
    max_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("reset_hop", "causal_final", "incremental"):
            _require_bool(name, getattr(self, name))
        if self.max_cache_bytes is not None and not _is_whole(self.max_cache_bytes):
            raise ValueError(f"max_cache_bytes {self.max_cache_bytes!r:.40} is no whole number")


@dataclass(frozen=True)
class Chance:
    """What is random.

    Attributes:
        draws: random numbers of the language model (`llm.sampling.Draws`); needed unless the sampling draws nothing.
        noise: of the flow decoder, as for `CausalMaskedDiffWithDiT.inference`; None takes the original's.
        sine_waves: of the vocoder, as for `CausalHiFTGenerator.inference`; None takes the original's.
    """

    draws: Any = None
    noise: Any = None
    sine_waves: Any = None


NO_DRAWS = Chance()  # and the original's noise


@dataclass(frozen=True)
class Options:
    """How the `inference_*` methods speak.

    Attributes:
        stream: yield chunks early; True stands for `Stream()`.
        speed: tempo, 1.0 as learnt; not with `stream`.
        seed: of the sampling, 0 to 2^64 - 1; None draws one. All pieces of a text share one stream of numbers, which
            nothing else in the process can disturb.
        split_long: also normalise and split a text with `<|...|>` in it, after its instruction; and what the original
            leaves long: kana, other scripts, sentences, see `port.frontend.text.text_normalize`.
        raw_prompt: the original's law: prompt and text without `<|endofprompt|>` are refused. Otherwise the port puts
            the model's preamble there; the reference always keeps the law.
        pause: seconds of silence between paragraphs, which blank lines end; 0 joins them, as the original. Of the port.
        sampling, strict_min_length: as for `CosyVoice3LM.inference`; None is the original's sampling.
        noise, sine_waves: as for `Chance`.
        progress: called with the number of speech tokens so far, after each.
        decoder: decodes whole texts together with those of other requests (`batched.decoder.Decoder`). Of the port.

    Raises:
        ValueError: a tempo that is no number above 0, or not 1 in a stream; a seed or a pause out of its range; another
            type.
    """

    stream: bool | Stream | None = None
    speed: float = 1.0
    seed: int | None = None
    split_long: bool = False
    raw_prompt: bool = False
    pause: float = 0.0
    sampling: Callable[..., int] | None = None
    strict_min_length: bool = False
    noise: Any = None
    sine_waves: Any = None
    progress: Callable[[int], None] | None = None
    decoder: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.stream, bool | Stream | None):
            raise ValueError(f"stream {self.stream!r:.40} is neither True, False nor a Stream")
        if isinstance(self.speed, bool) or not isinstance(self.speed, Real):
            raise ValueError(f"speed {self.speed!r:.40} is no tempo; give a number above 0")
        if not 0 < self.speed <= sys.float_info.max:
            shown = math.inf if self.speed > 0 else self.speed  # a whole number may have any number of digits
            raise ValueError(f"speed {shown!r:.40} is no tempo; give a number above 0")
        if self.stream and self.speed != 1:
            raise ValueError(SPEED_IN_STREAM.format(self.speed))
        if isinstance(self.pause, bool) or not isinstance(self.pause, Real) or not 0 <= self.pause <= LONGEST_PAUSE:
            raise ValueError(f"pause {self.pause!r:.40} is no number of seconds in 0..{LONGEST_PAUSE}")
        if self.seed is not None and not _is_whole(self.seed):
            raise ValueError(f"seed {self.seed!r:.40} is no whole number")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise ValueError("the seed is outside 0..2^64-1")
        for name in ("split_long", "raw_prompt", "strict_min_length"):
            _require_bool(name, getattr(self, name))
        for name in ("sampling", "progress"):
            if (given := getattr(self, name)) is not None and not callable(given):
                raise ValueError(f"{name} {given!r:.40} cannot be called")

    def of_model(self, draws: Any = None) -> dict[str, Any]:
        """Arguments of `CosyVoice3Model.tts`, with these draws."""
        shared = {} if self.decoder is None else {"decoder": self.decoder}
        return shared | {
            "stream": Stream() if self.stream is True else self.stream or None,
            "speed": self.speed,
            "chance": Chance(draws, self.noise, self.sine_waves),
            "sampling": self.sampling,
            "strict_min_length": self.strict_min_length,
            "progress": self.progress,
        }
