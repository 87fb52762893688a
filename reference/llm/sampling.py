"""Choosing a speech token from its log-probabilities: nucleus and repetition-aware sampling.

v vocabulary of speech tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from port.config import SamplingConfig


class Draws(Protocol):
    """A source of Exp(1) random numbers."""

    def exponential(self, n: int) -> np.ndarray:
        """The next `n` numbers, (n,) float32."""
        ...


class SeededDraws:
    """The numbers that the original draws after `torch.manual_seed(seed)`, from a generator of their own."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def exponential(self, n: int) -> np.ndarray:
        """The next `n` numbers, (n,) float32."""
        return torch.empty(n).exponential_(generator=self._generator).numpy()


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


def multinomial(probabilities: torch.Tensor, draws: Draws) -> int:
    """One index with chance proportional to `probabilities` (v,), which need not sum to one.

    Source: `torch.multinomial` with one sample: the largest ratio of probability to an Exp(1) number wins.
    """
    exponentials = torch.from_numpy(draws.exponential(len(probabilities))).to(probabilities)
    return int((probabilities / exponentials).argmax())


def nucleus(scores: torch.Tensor, top_p: float, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens: at most `top_k`, up to and including the one that carries their sum to `top_p`.

    Args:
        scores: (v,) log-probabilities or logits.

    Returns:
        Probabilities, not renormalised, and ids, both (kept,), most likely first; equal ones in order of id.
    """
    probabilities, ids = scores.softmax(dim=0).sort(descending=True, stable=True)
    kept, total = 1, probabilities[0]
    # Summed one by one: `cumsum` adds in float64, but the original's float32 sum decides which tokens are in.
    while kept < min(top_k, len(ids)) and total < top_p:
        total = total + probabilities[kept]
        kept += 1
    return probabilities[:kept], ids[:kept]


def nucleus_sampling(scores: torch.Tensor, draws: Draws, top_p: float = 0.8, top_k: int = 25) -> int:
    """Draw a token id from the nucleus of `scores` (v,). Source: `nucleus_sampling` in cosyvoice/utils/common.py."""
    probabilities, ids = nucleus(scores, top_p, top_k)
    return int(ids[multinomial(probabilities, draws)])


def ras_sampling(scores: torch.Tensor, decoded_tokens: Sequence[int], draws: Draws, config: SamplingConfig) -> int:
    """Draw from the nucleus; if the token repeats recent ones too often, forbid it and draw from all the others.

    Source: `ras_sampling` in cosyvoice/utils/common.py.

    Args:
        scores: (v,) log-probabilities; a forbidden token is set to -inf in place, as in the original.
        decoded_tokens: ids so far; the last `win_size` count.
    """
    token = nucleus_sampling(scores, draws, config.top_p, config.top_k)
    repeats = list(decoded_tokens[-config.win_size :]).count(token)
    if repeats >= config.win_size * config.tau_r:
        scores[token] = -torch.inf
        # The second draw ignores top_p and top_k (`random_sampling` there): any token can come, even a stop token.
        token = multinomial(scores.softmax(dim=0), draws)
    return token


def greedy_sampling(
    scores: torch.Tensor, decoded_tokens: Sequence[int], draws: Draws | None, config: SamplingConfig
) -> int:
    """The likeliest token; takes the arguments of `ras_sampling` and draws nothing."""
    return int(scores.argmax())
