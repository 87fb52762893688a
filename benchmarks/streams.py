"""Shared by all sides: iterators of tokens and chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.inputs import SPEECH_OF_A_TEXT_TOKEN
from port.request import Chance, Prompt

if TYPE_CHECKING:  # for the port's worker alone
    from port.batched.decoder import Decoder, Row

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


def take_tokens_together(decoder: Decoder, rows: Sequence[Row], count: int) -> Callable[[], Outputs]:
    """As `take_tokens` for rows of one decoder, `count` of each; gives those of the first row."""
    decoder.step()

    def run() -> Outputs:
        for _ in range(count):
            decoder.step()
        if short := [row for row in rows if len(row.tokens) != count + 1]:
            raise RuntimeError(f"a row of the language model ended after {len(short[0].tokens) - 1} of {count} tokens")
        return {"tokens": rows[0].tokens}

    return run


def fix_length(llm: Any) -> None:
    """Have a language model of either side speak `SPEECH_OF_A_TEXT_TOKEN`, whatever its weights."""
    ratios = dict.fromkeys(("min_token_text_ratio", "max_token_text_ratio"), SPEECH_OF_A_TEXT_TOKEN)
    llm.config = replace(llm.config, **ratios)


def texts_of(size: Mapping[str, Any]) -> list[np.ndarray]:
    """Texts (1, L) of the lines of a manifest, of each length in `size["text"]` in turn."""
    lengths = size["text"]
    return [np.full((1, lengths[line % len(lengths)]), 5, np.int32) for line in range(size["lines"])]


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
