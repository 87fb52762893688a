"""Shared by all sides: iterators of tokens and chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from port.request import Chance, Prompt

Outputs = dict[str, Any]


def take_tokens(job: Iterator[int], count: int) -> Callable[[], Outputs]:
    """A function that takes `count` more tokens of a language model; the prompt and the first token come before it.

    Raises:
        RuntimeError: when run, if the tokens end too early.
    """
    first = next(job)

    def run() -> Outputs:
        tokens = list(islice(job, count))
        if len(tokens) != count:
            raise RuntimeError(f"the language model ended after {len(tokens)} of {count} tokens")
        return {"tokens": [first, *tokens]}

    return run


def voice_conversion(x: Mapping[str, Any]) -> tuple[Prompt, Chance]:
    """A fixed voice and fixed noise, for speaking tokens without the language model."""
    prompt = Prompt(x["embedding"], flow_prompt_speech_token=x["prompt_token"], prompt_speech_feat=x["prompt_feat"])
    return prompt, Chance(noise=x["noise"], sine_waves=x["sine_waves"])


def chunks_timed(
    chunks: Iterable[Mapping[str, Any]], join: Callable[[list[Any], int], Any], count: int | None = None
) -> Outputs:
    """Take chunks (all, or the first `count`); record when each arrived and how many samples it has."""
    start, marks, found = time.perf_counter(), [], []
    for chunk in islice(chunks, count):
        found.append(chunk["tts_speech"])
        marks.append((time.perf_counter() - start, found[-1].shape[1]))
    return {"wav": join(found, 1), "marks": marks}
