"""Choosing a speech token from its log-probabilities: nucleus and repetition-aware sampling, on the host in numpy.

v vocabulary of speech tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..config import SamplingConfig
from ..noise import TorchGenerator


class Draws(Protocol):
    """A source of Exp(1) random numbers."""

    def exponential(self, n: int) -> np.ndarray:
        """The next `n` numbers, (n,) float32."""
        ...


class SeededDraws:
    """The numbers that the original draws after `torch.manual_seed(seed)`, from a generator of their own."""

    def __init__(self, seed: int) -> None:
        self._generator = TorchGenerator(seed)

    def exponential(self, n: int) -> np.ndarray:
        """The next `n` numbers, (n,) float32."""
        return self._generator.exponential(n)


class RecordedDraws:
    """Recorded numbers: the i-th request gets the first `n` entries of `rows[i]`."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self._rows = iter(rows)

    def exponential(self, n: int) -> np.ndarray:
        """The first `n` numbers of the next row, (n,) float32.

        Raises:
            ValueError: no row is left, or it is shorter than `n`.
        """
        row = next(self._rows, None)
        if row is None or len(row) < n:
            raise ValueError(f"recorded draws: {n} numbers wanted, {'no row' if row is None else len(row)} left")
        return np.asarray(row[:n], np.float32)


def multinomial(probabilities: np.ndarray, draws: Draws) -> int:
    """One index with chance proportional to `probabilities` (v,), which need not sum to one.

    Source: `torch.multinomial` with one sample: the largest ratio of probability to an Exp(1) number wins.
    """
    return int((probabilities / draws.exponential(len(probabilities))).argmax())


def nucleus(scores: np.ndarray, top_p: float, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens: at most `top_k`, up to and including the one that carries their sum to `top_p`.

    Args:
        scores: (v,) log-probabilities or logits.

    Returns:
        Probabilities, not renormalised, and ids, both (kept,), most likely first; equal ones in order of id.
    """
    probabilities = _softmax(scores)
    ids = _best(probabilities, min(top_k, len(probabilities)))
    probabilities = probabilities[ids]
    # numpy adds one by one in float32, and that sum decides who is in.
    before = np.cumsum(probabilities, dtype=np.float32)[:-1]
    kept = 1 + np.count_nonzero(before < np.float32(top_p))
    return probabilities[:kept], ids[:kept]


def _best(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest values, largest first; equal ones in order of id, as a stable full sort has them."""
    # All that reach the count-th value, ties included, so that the sort settles ties as if everything were there.
    ids = np.flatnonzero(probabilities >= np.partition(probabilities, -count)[-count])
    return ids[np.argsort(-probabilities[ids], kind="stable")][:count]


def nucleus_sampling(scores: np.ndarray, draws: Draws, top_p: float = 0.8, top_k: int = 25) -> int:
    """Draw a token id from the nucleus of `scores` (v,). Source: `nucleus_sampling` in cosyvoice/utils/common.py."""
    probabilities, ids = nucleus(scores, top_p, top_k)
    return int(ids[multinomial(probabilities, draws)])


def ras_sampling(scores: np.ndarray, decoded_tokens: Sequence[int], draws: Draws, config: SamplingConfig) -> int:
    """Draw from the nucleus; if the token repeats recent ones too often, forbid it and draw from all the others.

    Source: `ras_sampling` in cosyvoice/utils/common.py.

    Args:
        scores: (v,) log-probabilities; a forbidden token is set to -inf in place, as in the original.
        decoded_tokens: ids so far; the last `win_size` count.
    """
    token = nucleus_sampling(scores, draws, config.top_p, config.top_k)
    repeats = list(decoded_tokens[-config.win_size :]).count(token)
    if repeats >= config.win_size * config.tau_r:
        scores[token] = -np.inf
        # The second draw ignores top_p and top_k (`random_sampling` there): any token can come, even a stop token.
        token = multinomial(_softmax(scores), draws)
    return token


def greedy_sampling(
    scores: np.ndarray, decoded_tokens: Sequence[int], draws: Draws | None, config: SamplingConfig
) -> int:
    """The likeliest token; takes the arguments of `ras_sampling` and draws nothing."""
    return int(scores.argmax())


def _softmax(scores: np.ndarray) -> np.ndarray:
    """(v,) float32, each value correctly rounded, hence the nearest to whatever order torch sums in."""
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return (weights / weights.sum()).astype(np.float32)
