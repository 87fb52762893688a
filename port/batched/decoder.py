"""Continuous batching: each step of the language model gives every one of several requests its next speech token.

A step reads the weights once, whatever the number of rows. Waiting rows enter as others leave. Each has its own draws,
repetition window, lengths and end, and gets the tokens that `CosyVoice3LM.inference` gives alone.

B rows, L positions, D hidden width, v speech vocabulary
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..llm.qwen2 import KVCache
from ..llm.sampling import Draws, ras_sampling
from ..llm.speech_lm import CosyVoice3LM, Sampling, Tokens
from .cache import BatchCache


@dataclass(eq=False)
class Row(Iterator[int]):
    """Speech tokens of one request, from `Decoder.inference`; `next` steps the decoder until there is one.

    A row that nobody holds any more leaves the batch at the next step.

    Attributes:
        lm_input: (1, L, D) embeddings of its prompt; once the row is active only the last, (1, 1, D).
        tokens: all so far, whether asked for or not.
        done: no more will come.
        error: what ended the row, until `next` raises it.
    """

    decoder: Decoder
    lm_input: mx.array
    min_len: int
    max_len: int
    draws: Draws | None
    sampling: Sampling
    strict_min_length: bool
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    error: Exception | None = None
    asked: int = 0

    def __next__(self) -> int:
        while self.asked == len(self.tokens) and not self.done:
            self.decoder.step()
        if self.asked < len(self.tokens):
            self.asked += 1
            return self.tokens[self.asked - 1]
        error, self.error = self.error, None
        raise error or StopIteration

    def close(self) -> None:
        """Leave the batch."""
        self.end()
        self.decoder.release()

    def end(self, error: Exception | None = None) -> None:
        """No token follows; `error` says why."""
        self.done, self.error = True, error


class Decoder:
    """Several requests to one language model, decoded together by whichever of them asks for a token.

    It starts no thread and belongs to one at a time. A row that is not asked decodes on with the others, up to its end.

    Args:
        llm: the language model.
        max_rows: that decode at a time; others wait.
    """

    def __init__(self, llm: CosyVoice3LM, max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows {max_rows}: a decoder needs one row or more")
        self.llm, self.max_rows = llm, max_rows
        self._waiting: deque[weakref.ref[Row]] = deque()
        self._active: list[weakref.ref[Row]] = []  # in the order of the cache's rows
        self._cache = BatchCache(len(llm.qwen2.layers))

    def inference(
        self,
        text: Tokens,
        prompt_text: Tokens,
        prompt_speech_token: Tokens,
        draws: Draws | None,
        sampling: Sampling = ras_sampling,
        strict_min_length: bool = False,
    ) -> Row:
        """A row of its own for a request, which waits; the network does not run yet.

        Args:
            text, prompt_text, prompt_speech_token, draws, sampling, strict_min_length: as for
                `CosyVoice3LM.inference`.

        Raises:
            ValueError: as for `CosyVoice3LM.prepare_input`.
        """
        lm_input = self.llm.prepare_input(text, prompt_text, prompt_speech_token)
        mx.eval(lm_input)  # a lazy array could be evaluated by this thread only
        min_len, max_len = self.llm.length_limits(text)
        row = Row(self, lm_input, min_len, max_len, draws, sampling, strict_min_length, done=not max_len)
        self._waiting.append(weakref.ref(row))
        return row

    def step(self) -> None:
        """Give each active row its next token; waiting ones enter first, as long as there is room."""
        rows = self._enter()
        if not rows:
            return
        try:
            scores = self._scores(rows)
        except Exception as error:  # of no single row
            for row in rows:
                row.end(error)
        else:
            for row, own in zip(rows, scores, strict=True):
                self._choose(row, own)
        self.release()

    def release(self) -> None:
        """Let go of the cache when no active row is left."""
        if not any(map(_alive, self._active)):
            self._active = []
            self._cache.take([])

    def _enter(self) -> list[Row]:
        """The active rows, after those that are done have left and waiting ones have entered."""
        staying = [(place, row) for place, held in enumerate(self._active) if (row := _alive(held))]
        rows, caches = [row for _, row in staying], []
        while self._waiting and len(rows) < self.max_rows:
            if row := _alive(self._waiting.popleft()):
                try:
                    caches.append(self._prefill(row))
                    rows.append(row)
                except Exception as error:
                    row.end(error)
        if caches or len(staying) < len(self._active):
            self._cache.take([place for place, _ in staying], caches)
            self._active = [weakref.ref(row) for row in rows]
        return rows

    def _prefill(self, row: Row) -> list[KVCache]:
        """Keys and values of a row's prompt but for its last position, which is the input of the row's first step."""
        cache = self.llm.qwen2.make_cache()
        self.llm.qwen2(row.lm_input[:, :-1], cache)
        row.lm_input = row.lm_input[:, -1:]
        mx.eval(row.lm_input, [(kept.keys, kept.values) for kept in cache])
        return cache

    def _scores(self, rows: list[Row]) -> np.ndarray:
        """Log-probabilities (B, v) of the next token of each row."""
        embed = self.llm.embed_speech
        lm_input = [embed(np.array([row.tokens[-1:]])) if row.tokens else row.lm_input for row in rows]
        self._cache.begin()
        layers: list[Any] = self._cache.layers
        scores = np.array(self.llm.scores(self.llm.qwen2(mx.concatenate(lm_input), layers)[:, -1]))
        self._cache.commit()
        return scores

    def _choose(self, row: Row, scores: np.ndarray) -> None:
        """Append a row's next token, or end the row."""
        early = len(row.tokens) < row.min_len
        try:
            token = self.llm.sampling_ids(scores, row.tokens, row.draws, row.sampling, early, row.strict_min_length)
        except Exception as error:
            row.end(error)
            return
        if token < self.llm.config.speech_token_size:
            row.tokens.append(token)
        if token >= self.llm.config.speech_token_size or len(row.tokens) == row.max_len:
            row.end()


def _alive(held: weakref.ref[Row]) -> Row | None:
    row = held()
    return None if row is None or row.done else row
