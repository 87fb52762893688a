"""A decoding loop that queues the next step before it reads the last token, with sampling as part of the graph.

It gives the tokens of the host loop, `CosyVoice3LM.inference`. Devices round float32 differently from the host, so the
graph also computes whether its choice is certain: no comparison in it is closer than the possible error of float32. The
host loop's own code chooses the other, rare tokens from the same scores, and the step behind them is queued again.

v vocabulary of speech tokens, k best of them, w tokens of the repetition window, n numbers drawn ahead
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import SamplingConfig
from ..llm.sampling import Draws, SeededDraws, ras_sampling
from ..llm.speech_lm import CosyVoice3LM, Sampling, Tokens
from .modules import recast, replace

# Sums and logarithms that are closer than this may compare differently on the host. The error of float32 is at most
# 1.2e-5 for two logarithms up to 64, and 5e-5 for the sum of 6761 probabilities in eight lanes.
NEAR = 2.0**-14
# Two scores this far apart have different float32 probabilities: neighbouring float32 differ by at most 2^-23.
APART = 2.0**-22
LOWEST = -64.0  # below the best score; from -87 on probabilities are subnormal, and their neighbours are further apart
NONE = -1  # in the window, for no token


@dataclass(frozen=True)
class Past:
    """What the device knows of the tokens before a step.

    Attributes:
        window: the last tokens, oldest first, (w,) int32.
        drawn: count of random numbers used so far, () int32.
    """

    window: mx.array
    drawn: mx.array

    @staticmethod
    def of(tokens: Sequence[int], size: int) -> Past:
        """After `tokens`, with a window of `size` and no number used."""
        last = [NONE] * size + list(tokens)
        return Past(mx.array(last[len(last) - size :], mx.int32), mx.array(0, mx.int32))


@dataclass(frozen=True)
class Step:
    """One queued step.

    Attributes:
        scores: (v,) float32, before the minimum length masks any.
        answer: (4,) int32: token, size of the nucleus, whether there was a second draw, whether all this is certain.
        past: for the next step.
    """

    scores: mx.array
    answer: mx.array
    past: Past


class Ahead:
    """The next numbers of a generator, on the device before they are needed.

    Args:
        draws: the generator; a copy of it draws ahead.
        most: numbers that one token may use.

    Attributes:
        numbers: -log of each number, (n,) float32.
        start: position of the first of them among all numbers.
    """

    def __init__(self, draws: SeededDraws, most: int) -> None:
        self._draws, self._most = copy.deepcopy(draws), most
        self._host = np.empty(0, np.float32)
        self.start = 0

    def reach(self, drawn: int) -> None:
        """Have enough numbers after the first `drawn` for two tokens: one whose answer is not read, and the next."""
        if drawn + 2 * self._most > self.start + len(self._host):
            fresh = -np.log(self._draws.exponential(2 * self._most).astype(np.float64))
            self._host = np.concatenate((self._host[drawn - self.start :], fresh.astype(np.float32)))
            self.numbers, self.start = mx.array(self._host), drawn


def choose(scores: mx.array, past: Past, ahead: Ahead, config: SamplingConfig) -> tuple[mx.array, Past]:
    """`ras_sampling` on the device.

    Args:
        scores: (v,) float32, -inf where forbidden.

    Returns:
        As in `Step`: answer and past of the next step.
    """
    size, count = scores.size, min(config.top_k, scores.size)
    best, ids = _best(scores, min(count + 1, size))
    total = mx.logsumexp(scores)
    before = mx.cumsum(mx.exp(best[:count] - total))[:-1]
    kept = 1 + (before < config.top_p).sum()
    # With NaN among the scores the total is NaN.
    certain = mx.isfinite(total) & (mx.abs(before - config.top_p) > NEAR).all()
    # The kept tokens and the next one are in the order of their probabilities.
    gaps = best[:-1] - best[1:]
    ordered = (gaps == 0) | ((gaps >= APART) & (best[:-1] - best[0] > LOWEST))
    certain &= (ordered | (mx.arange(gaps.size) >= kept)).all()

    at = past.drawn - ahead.start
    nucleus = mx.where(mx.arange(count) < kept, best[:count], -math.inf)
    index, clear = _draw(nucleus, ahead.numbers, at)
    token = ids[index]
    repeated = (past.window == token).sum() >= math.ceil(config.win_size * config.tau_r)
    others = mx.where(mx.arange(size) == token, -math.inf, scores)
    again, clear_again = _draw(others, ahead.numbers, at + kept)
    certain &= clear & (clear_again | ~repeated)

    token = mx.where(repeated, again, token)
    answer = mx.stack([part.astype(mx.int32) for part in (token, kept, repeated, certain)])
    drawn = past.drawn + kept + mx.where(repeated, size, 0)
    return answer, Past(mx.concatenate([past.window, answer[:1]])[1:], drawn.astype(mx.int32))


def _best(scores: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest scores and their ids, largest first; equal ones in order of id.

    MLX does not document how it orders equal values, so the keys hold score and id and are never equal.
    """
    bits = mx.view(0 - scores, mx.int32)
    ascending = mx.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(mx.int64)  # like the floats
    keys = (ascending << 32) + mx.arange(scores.size)
    ids = (mx.sort(mx.partition(keys, count - 1)[:count]) & 0x7FFFFFFF).astype(mx.int32)
    return scores[ids], ids


def _draw(scores: mx.array, numbers: mx.array, at: mx.array) -> tuple[mx.array, mx.array]:
    """The index that `multinomial` draws, by logarithms of its ratios, and whether the second best is not near."""
    numbers = mx.slice(numbers, at.reshape(1), (0,), scores.shape)
    ratios = scores - scores.max() + numbers
    index = ratios.argmax()
    second = mx.where(mx.arange(ratios.size) == index, -math.inf, ratios).max()
    return index, ratios[index] - second > NEAR


class QueuedLM(CosyVoice3LM):
    """`CosyVoice3LM` with a queued loop for `ras_sampling` from seeded draws; other samplings run in the host loop."""

    def inference(
        self,
        text: Tokens,
        prompt_text: Tokens,
        prompt_speech_token: Tokens,
        draws: Draws | None,
        sampling: Sampling = ras_sampling,
        strict_min_length: bool = False,
    ) -> Iterator[int]:
        """As in `CosyVoice3LM`, with the same tokens. At each yield `draws` are where the host loop leaves them."""
        if sampling is not ras_sampling or not isinstance(draws, SeededDraws):
            yield from super().inference(text, prompt_text, prompt_speech_token, draws, sampling, strict_min_length)
            return
        config, size = self.config, self.config.num_speech_embeddings
        most, window = config.sampling.top_k + size, config.sampling.win_size
        lm_input = self.prepare_input(text, prompt_text, prompt_speech_token)
        min_len, max_len = self.length_limits(text)
        held = np.zeros(size, np.float32)
        held[config.speech_token_size : None if strict_min_length else config.sos + 1] = -np.inf
        held_back, cache = mx.array(held), self.qwen2.make_cache()
        tokens: list[int] = []

        def queue(i: int, lm_input: mx.array, past: Past) -> Step | None:
            """Queue the step that gives token `i`."""
            if i == max_len:
                return None
            ahead.reach(drawn)
            scores = self.step(lm_input, cache)
            allowed = scores + held_back if i < min_len else scores
            answer, past = choose(allowed, past, ahead, config.sampling)
            # All that the next step needs: another thread may queue it, and could not evaluate lazy arrays.
            mx.async_eval(scores, answer, past.window, past.drawn)
            return Step(scores, answer, past)

        ahead, drawn = Ahead(draws, most), 0
        coming = queue(0, lm_input, Past.of(tokens, window))
        try:
            while coming is not None:
                step = coming
                coming = queue(len(tokens) + 1, self.speech_embedding(step.answer[None, :1]), step.past)
                token, kept, repeated, certain = np.array(step.answer).tolist()
                if certain:
                    for count in (kept, size)[: 1 + repeated]:
                        drawn += len(draws.exponential(count))
                else:
                    early = len(tokens) < min_len
                    token = self.sampling_ids(np.array(step.scores), tokens, draws, sampling, early, strict_min_length)
                if token >= config.speech_token_size:
                    break
                tokens.append(token)
                if not certain and coming is not None:
                    for layer in cache:
                        layer.offset -= 1  # the next step overwrites the queued one's keys
                    ahead, drawn = Ahead(draws, most), 0
                    coming = queue(len(tokens), self._special(token), Past.of(tokens, window))
                yield token
        finally:
            if coming is not None:
                mx.eval(coming.answer)  # a closed generator leaves nothing running


def queued(model: nn.Module) -> nn.Module:
    """Put `QueuedLM` in place."""
    return replace(model, {CosyVoice3LM: lambda plain: recast(plain, QueuedLM)})
