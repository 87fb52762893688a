"""The driver of either side with a fixed prompt, and a sampler that gives a list of tokens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np

from parity_tests.adapters.own import SIDES as BY_NAME
from parity_tests.speech_support import SMALL
from port.llm.sampling import SeededDraws
from port.request import Chance, Prompt, Stream

SIDES = ("reference", "port")
SAMPLES = 960  # per token


class Speaker:
    """The driver of one side with a fixed prompt; requests and results are numpy arrays."""

    def __init__(self, side: str, model: Any, prompt_tokens: int = 10) -> None:
        self.kit, self.model = BY_NAME[side](), model
        model.token_hop_len = SMALL.streaming.token_hop_len  # as in a new object
        rng = np.random.default_rng(prompt_tokens)
        prompt = {
            "flow_prompt_speech_token": rng.integers(0, 81, (1, prompt_tokens)).astype(np.int32),
            "prompt_speech_feat": rng.standard_normal((1, 2 * prompt_tokens, 80)).astype(np.float32),
            "flow_embedding": rng.standard_normal((1, 8)).astype(np.float32),
        }
        self.prompt = {k: self.kit.tensor(v) for k, v in prompt.items()}

    def stream(
        self, tokens: int | None = None, text: int | None = None, seed: int | None = None, **options: Any
    ) -> Generator[np.ndarray]:
        """Chunks (1, L) of a request for `tokens` given speech tokens, or for a text of `text` tokens.

        Args:
            seed: of the draws.
            options: `stream` as a bool, fields of `Stream` and `Chance`, and further arguments of `tts`.
        """
        prompt = dict(self.prompt)
        if tokens is not None:
            options["source_speech_token"] = self.kit.tensor(some_tokens(tokens))
        if text is not None:
            options["text"] = self.kit.tensor(np.full((1, text), 5, np.int32))
            prompt["prompt_text"] = self.kit.tensor(np.array([[SMALL.llm.end_of_prompt]], np.int32))
        if seed is not None:
            options["draws"] = SeededDraws(seed)
        for result in self.model.tts(Prompt(**prompt), **arguments(**options)):
            yield np.array(self.kit.array(result["tts_speech"]))

    def say(self, *args: Any, **options: Any) -> list[np.ndarray]:
        """All chunks of `stream`."""
        return list(self.stream(*args, **options))

    def lengths(self, *args: Any, **options: Any) -> list[int]:
        """Samples of each chunk of `stream`."""
        return [speech.shape[1] for speech in self.say(*args, **options)]


def arguments(stream: bool = False, **options: Any) -> dict[str, Any]:
    """Arguments of `tts`, whose `Stream` and `Chance` are built from the options named like their fields."""

    def taken(kind: type) -> Any:
        return kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})

    how, chance = taken(Stream), taken(Chance)
    return {**options, "stream": how if stream else None, "chance": chance}


def some_tokens(count: int) -> np.ndarray:
    """Speech tokens (1, count), none of them silent."""
    return np.random.default_rng(count).integers(30, 54, (1, count)).astype(np.int32)


def scripted(tokens: Sequence[int], seen: list[int] | None = None) -> Callable[..., int]:
    """A sampler that gives these tokens, then the end, and notes them in `seen`."""
    script = iter([*tokens, SMALL.llm.eos])

    def sample(*_: Any) -> int:
        token = next(script)
        if seen is not None:
            seen.append(token)
        return int(token)

    return sample


@contextmanager
def watched(model: Any, silence: Any = None) -> Iterator[list[tuple[list[int], Any]]]:
    """Note the tokens and the cache of every chunk; an array `silence` (1, 0) replaces the two networks."""
    calls, original = [], model.token2wav

    def token2wav(token: Any, *arguments: Any, cache: Any, **options: Any) -> Any:
        calls.append((token[0].tolist(), cache))
        return original(token, *arguments, cache=cache, **options) if silence is None else silence

    model.token2wav = token2wav
    try:
        yield calls
    finally:
        del model.token2wav


def joined(chunks: Sequence[np.ndarray]) -> np.ndarray:
    """The chunks as one array (1, L)."""
    return np.concatenate(chunks, axis=1)
