"""A decoding loop that queues the next step before it reads the last token, with sampling as part of the graph.

The host loop, `CosyVoice3LM.inference`, decides what is right. A device has no correctly rounded float32 softmax, so
the graph also tells whether its choice is certain: whether no decision hangs on less than float32 can be off by. The
rare other tokens are settled by the host's own code from the same scores, and the step queued behind is made again.

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

# Sums and logarithms that are nearer to each other may compare otherwise on the host. Float32 is off by at most 1.2e-5
# for two logarithms up to 64 and by 5e-5 for 6761 probabilities added up in eight lanes.
NEAR = 2.0**-14
# Two scores this far apart have different float32 probabilities, whose steps are at most 2^-23 of their value ...
APART = 2.0**-22
LOWEST = -64.0  # ... down to so far below the best score; from -87 on steps are wider.
NONE = -1  # in the window, where no token was


@dataclass(frozen=True)
class Past:
    """What the choice of a token needs of those before it, on the device.

    Attributes:
        window: last tokens, oldest first, (w,) int32.
        drawn: random numbers that they took, () int32.
    """

    window: mx.array
    drawn: mx.array

    @staticmethod
    def of(tokens: Sequence[int], size: int) -> Past:
        """After `tokens`, with a window of `size` and no number drawn."""
        last = [NONE] * size + list(tokens)
        return Past(mx.array(last[len(last) - size :], mx.int32), mx.array(0, mx.int32))


@dataclass(frozen=True)
class Step:
    """One queued step.

    Attributes:
        scores: (v,) float32, nothing forbidden yet.
        answer: (4,) int32: token, size of its nucleus, whether it was drawn again, whether all this is certain.
        past: of the next step.
    """

    scores: mx.array
    answer: mx.array
    past: Past


class Ahead:
    """The numbers that a generator will give, on the device before they are needed.

    Args:
        draws: is copied and stays as it is.
        most: that one token may take.

    Attributes:
        numbers: -log of each number, (n,) float32.
        start: how many numbers came before these.
    """

    def __init__(self, draws: SeededDraws, most: int) -> None:
        self._draws, self._most = copy.deepcopy(draws), most
        self._host = np.empty(0, np.float32)
        self.start = 0

    def reach(self, drawn: int) -> None:
        """Let go of the first `drawn` numbers and have those that two tokens may take."""
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
    # Not a number anywhere, and the total is none.
    certain = mx.isfinite(total) & (mx.abs(before - config.top_p) > NEAR).all()
    # The order of the kept, and of the first that is not, is that of their probabilities.
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
    return answer, Past(mx.concatenate((past.window, answer[:1]))[1:], drawn.astype(mx.int32))


def _best(scores: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest scores and their ids, largest first; equal ones in order of id.

    By keys that differ, since MLX says nothing of the order that equal values are sorted in.
    """
    bits = mx.view(0 - scores, mx.int32)
    ascending = mx.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(mx.int64)  # as the floats are
    keys = (ascending << 32) + mx.arange(scores.size)
    ids = (mx.sort(mx.partition(keys, count - 1)[:count]) & 0x7FFFFFFF).astype(mx.int32)
    return scores[ids], ids


def _draw(scores: mx.array, numbers: mx.array, at: mx.array) -> tuple[mx.array, mx.array]:
    """Index by `multinomial`, whose ratios are compared by their logarithms, and whether the next is not near."""
    numbers = mx.slice(numbers, at.reshape(1), (0,), scores.shape)
    ratios = scores - scores.max() + numbers
    index = ratios.argmax()
    second = mx.where(mx.arange(ratios.size) == index, -math.inf, ratios).max()
    return index, ratios[index] - second > NEAR


class QueuedLM(CosyVoice3LM):
    """`CosyVoice3LM` that waits for no token with nothing queued, where the original samples from seeded draws."""

    def inference(
        self,
        text: Tokens,
        prompt_text: Tokens,
        prompt_speech_token: Tokens,
        draws: Draws | None,
        sampling: Sampling = ras_sampling,
        strict_min_length: bool = False,
    ) -> Iterator[int]:
        """As in `CosyVoice3LM`, token for token; `draws` give out the same numbers by the time a token is yielded."""
        if sampling is not ras_sampling or not isinstance(draws, SeededDraws):
            yield from super().inference(text, prompt_text, prompt_speech_token, draws, sampling, strict_min_length)
            return
        config, size = self.config, self.config.num_speech_embeddings
        most, window = config.sampling.top_k + size, config.sampling.win_size
        lm_input = self.prepare_input(text, prompt_text, prompt_speech_token)
        min_len = int(text.shape[1] * config.min_token_text_ratio)
        max_len = int(text.shape[1] * config.max_token_text_ratio)
        held_back = np.zeros(size, np.float32)
        held_back[config.speech_token_size : None if strict_min_length else config.sos + 1] = -np.inf
        held_back = mx.array(held_back)
        cache, tokens = self.qwen2.make_cache(), []

        def queue(i: int, lm_input: mx.array, past: Past) -> Step | None:
            if i == max_len:
                return None
            ahead.reach(drawn)
            scores = self.step(lm_input, cache)
            allowed = scores + held_back if i < min_len else scores
            answer, past = choose(allowed, past, ahead, config.sampling)
            # All that the next step needs, since another thread may ask for it.
            mx.async_eval(scores, answer, past.window, past.drawn)
            return Step(scores, answer, past)

        ahead, drawn = Ahead(draws, most), 0
        queued = queue(0, lm_input, Past.of(tokens, window))
        try:
            for i in range(max_len):
                step = queued
                queued = queue(i + 1, self.speech_embedding(step.answer[None, :1]), step.past)
                token, kept, repeated, certain = step.answer.tolist()
                if certain:
                    for count in (kept, size)[: 1 + repeated]:
                        drawn += len(draws.exponential(count))
                else:
                    held = i < min_len, strict_min_length
                    token = self.sampling_ids(np.array(step.scores), tokens, draws, sampling, *held)
                if token >= config.speech_token_size:
                    break
                tokens.append(token)
                if not certain and queued is not None:
                    for layer in cache:
                        layer.offset -= 1  # the next step writes over what the queued one did
                    ahead, drawn = Ahead(draws, most), 0
                    queued = queue(i + 1, self._special(token), Past.of(tokens, window))
                yield token
        finally:
            if queued is not None:
                mx.eval(queued.answer)  # nothing runs on behind a generator that is closed


def queued(model: nn.Module) -> nn.Module:
    """Put `QueuedLM` in place."""
    return replace(model, {CosyVoice3LM: lambda plain: recast(plain, QueuedLM)})
