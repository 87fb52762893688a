"""The queued decoding loop: token for token the host loop, which `test_llm.py` holds to the reference."""

import copy
import math
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest

from parity_tests.cases.llm import LM
from port.config import LLMConfig, SamplingConfig, from_dict
from port.fast import replaced, sampling, speed_up
from port.llm.sampling import RecordedDraws, SeededDraws, greedy_sampling, nucleus, ras_sampling
from port.llm.speech_lm import CosyVoice3LM

pytestmark = pytest.mark.part("fast.sampling")

CONFIG = SamplingConfig()
DRAWN = 400  # numbers compared after a decoding


def scores_of(logits):
    """Log-probabilities in float32, as the language model gives them."""
    logits = np.asarray(logits, np.float64)
    return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def on_both(rows, config=CONFIG):
    """Of each (scores, history, seed): what the device chooses and draws, whether that is certain, the same by the host.

    All rows are evaluated at once: on a busy machine each evaluation waits for a thread.
    """
    lazy = []
    for scores, history, seed in rows:
        ahead = sampling.Ahead(SeededDraws(seed), config.top_k + len(scores))
        ahead.reach(0)
        lazy.append(sampling.choose(mx.array(scores), sampling.Past.of(history, config.win_size), ahead, config))
    mx.eval([(answer, past.drawn) for answer, past in lazy])
    for (scores, history, seed), (answer, past) in zip(rows, lazy, strict=True):
        draws = Counted(seed)
        expected = ras_sampling(scores.copy(), history, draws, config)
        token, _, _, certain = answer.tolist()
        yield (token, past.drawn.item()), bool(certain), (expected, draws.count)


class Counted(SeededDraws):
    """Draws that know how many numbers they gave."""

    count = 0

    def exponential(self, n):
        self.count += n
        return super().exponential(n)


def numbers(seed, count):
    return SeededDraws(seed).exponential(count)


# ---- one token


def ordinary(rng, size):
    """Rows of many kinds: spreads, half precision with its ties, few values, one likely token, forbidden ones."""
    normal = rng.standard_normal(size)
    few = rng.integers(0, 4, size).astype(float)
    likely = np.where(np.arange(size) == rng.integers(size), 9.0, normal)
    barred = np.where(np.append([1, 1], rng.random(size - 2)) < 0.3, -np.inf, 2 * normal)
    rows = [0.1 * normal, normal, 4 * normal, np.round(64 * normal) / 16, few, likely, barred]
    return [scores_of(row) for row in rows]


@pytest.mark.parametrize(("size", "rounds"), [(3, 15), (26, 15), (300, 200), (6761, 12)])
def test_what_is_certain_is_what_the_host_chooses(size, rounds):
    """And nearly all is certain, ties included; the history makes the second draw run in part of the rows."""
    rng, rows = np.random.default_rng(size), []
    for seed in range(rounds):
        for row in ordinary(rng, size):
            _, best = nucleus(row, CONFIG.top_p, CONFIG.top_k)
            rows.append((row, [int(t) for t in rng.choice(best, rng.integers(0, 15))], seed))
    found = [*on_both(rows)]
    assert [host for _, certain, host in found if certain] == [device for device, certain, _ in found if certain]
    assert sum(certain for _, certain, _ in found) > 0.98 * len(found)
    assert sum(drawn > size for _, _, (_, drawn) in found) > 0.1 * len(found)


def sum_at_the_edge(rng, seed):
    """The best tokens' probabilities add up to top_p, but for some roundings."""
    best = np.sort(rng.random(6) + 0.5)[::-1]
    off = 1 + rng.integers(-4, 5) * 2.0**-25
    others = 0.2 * rng.dirichlet(np.ones(60)) * 0.9
    return scores_of(np.log(np.concatenate((0.8 * off * best / best.sum(), others, [0.2 * 0.1])))), []


def neighbours(rng, seed):
    """The two best scores are neighbouring float32: their probabilities may be equal, and then the id decides."""
    high = np.float32(-0.3 - 0.1 * rng.random())
    return np.array([np.nextafter(high, np.float32(-1)), high, -5.0, -5.5, -6.0], np.float32), []


def equal_ratios(rng, seed):
    """Two tokens of the nucleus whose ratios of probability to number are equal, but for some roundings."""
    drawn = numbers(seed, 2).astype(np.float64)
    return scores_of(np.log([1.0, drawn[1] / drawn[0] * (1 + rng.integers(-4, 5) * 2.0**-25)])), []


def equal_ratios_of_all(rng, seed):
    """The same in the second draw: the first token is nearly certain, and repeats."""
    drawn = numbers(seed, 4)[2:].astype(np.float64)
    off = 1 + rng.integers(-4, 5) * 2.0**-25
    return scores_of(np.log([0.9, *(0.1 * drawn * [1, off] / drawn.sum())])), [0]


@pytest.mark.parametrize(
    ("near", "top_p"), [(sum_at_the_edge, 0.8), (neighbours, 0.8), (equal_ratios, 2.0), (equal_ratios_of_all, 0.8)]
)
def test_what_a_rounding_decides_is_left_to_the_host(near, top_p):
    """And needs to be: float32 on the device would choose otherwise in some rows."""
    rng = np.random.default_rng(7)
    # For `equal_ratios` the first number, which the likelier token gets, has to be the larger one.
    rows = [(*near(rng, seed), seed) for seed in range(120) if np.diff(numbers(seed, 2)) < 0]
    found = [*on_both(rows, SamplingConfig(top_p=top_p))]
    assert not any(certain for _, certain, _ in found)
    assert any(device != host for device, _, host in found)
