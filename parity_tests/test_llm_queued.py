"""The queued decoding loop gives the tokens of the host loop, which `test_llm.py` compares with the reference."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.waits import watched
from mlx_parity.sides.truth import reference_state
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import case
from parity_tests.cases.llm import LM
from parity_tests.parts import PARTS
from port.config import SamplingConfig
from port.fast import replaced, sampling, speed_up
from port.fast.modules import recast
from port.llm.sampling import RecordedDraws, SeededDraws, greedy_sampling, nucleus, ras_sampling
from port.llm.speech_lm import CosyVoice3LM
from port.stream.threads import end_streams_with_thread

pytestmark = pytest.mark.part("fast.sampling")

CONFIG = SamplingConfig()


def scores_of(logits):
    """Log-probabilities in float32, as the language model gives them."""
    logits = np.asarray(logits, np.float64)
    return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def on_both(rows, config=CONFIG):
    """For each (scores, history, seed): token and count of numbers on the device, whether both are certain, the host's.

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
        token, _, _, certain = np.array(answer).tolist()
        yield (token, past.drawn.item()), bool(certain), (expected, draws.count)


class Counted(SeededDraws):
    """Draws that count the numbers they give."""

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
    """Nearly all rows are certain, ties included; in some the history triggers the second draw."""
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
    """The best tokens' probabilities add up to top_p, up to some roundings."""
    best = np.sort(rng.random(6) + 0.5)[::-1]
    off = 1 + rng.integers(-4, 5) * 2.0**-25
    others = 0.2 * rng.dirichlet(np.ones(60)) * 0.9
    return scores_of(np.log(np.concatenate((0.8 * off * best / best.sum(), others, [0.2 * 0.1])))), []


def neighbours(rng, seed):
    """The two best scores are neighbouring float32: their probabilities may be equal, and then the id decides."""
    high = np.float32(-0.3 - 0.1 * rng.random())
    return np.array([np.nextafter(high, np.float32(-1)), high, -5.0, -5.5, -6.0], np.float32), []


def equal_ratios(rng, seed):
    """Two tokens of the nucleus whose ratios of probability to number are equal, up to some roundings."""
    drawn = numbers(seed, 2).astype(np.float64)
    return scores_of(np.log([1.0, drawn[1] / drawn[0] * (1 + rng.integers(-4, 5) * 2.0**-25)])), []


def equal_ratios_of_all(rng, seed):
    """The same in the second draw: the first token is nearly certain and repeated."""
    drawn = numbers(seed, 4)[2:].astype(np.float64)
    off = 1 + rng.integers(-4, 5) * 2.0**-25
    return scores_of(np.log([0.9, *(0.1 * drawn * [1, off] / drawn.sum())])), [0]


@pytest.mark.parametrize(
    ("near", "top_p"), [(sum_at_the_edge, 0.8), (neighbours, 0.8), (equal_ratios, 2.0), (equal_ratios_of_all, 0.8)]
)
def test_what_a_rounding_decides_is_left_to_the_host(near, top_p):
    """It has to be: in some rows float32 on the device chooses another token."""
    rng = np.random.default_rng(7)
    # For `equal_ratios` the first number, which the likelier token gets, has to be the larger one.
    rows = [(*near(rng, seed), seed) for seed in range(120) if np.diff(numbers(seed, 2)) < 0]
    found = [*on_both(rows, SamplingConfig(top_p=top_p))]
    assert not any(certain for _, certain, _ in found)
    assert any(device != host for device, _, host in found)


def test_numbers_drawn_ahead_are_those_that_the_draws_will_give():
    """However many numbers a token takes; the draws themselves do not advance."""
    draws, rng, drawn, most = SeededDraws(3), np.random.default_rng(0), 0, 85
    ahead, expected = sampling.Ahead(draws, most), -np.log(numbers(3, 40 * most).astype(np.float64))
    while drawn < 30 * most:
        ahead.reach(drawn)
        at = drawn - ahead.start
        found = np.array(ahead.numbers)[at : at + 2 * most]
        np.testing.assert_array_equal(found, expected[drawn : drawn + 2 * most].astype(np.float32))
        drawn += int(rng.choice((1, 25, most)))
    np.testing.assert_array_equal(draws.exponential(5), numbers(3, 5))


# ---- whole decodings


@pytest.fixture(scope="module")
def pair():
    """Host loop and queued loop of one small language model."""
    part = PARTS["llm.speech_lm.CosyVoice3LM.scores"]
    plain = OwnPort(forms=()).build(part, LM, reference_state(case("llm.queued", part.path, LM)))
    return plain, sampling.queued(plain)


def texts(seed, length=4):
    rng = np.random.default_rng(seed)
    text, speech = rng.integers(0, 40, (2, 1, length)).astype(np.int32)
    return mx.array(text), mx.array([[3, LM["end_of_prompt"], 4]]), mx.array(speech)


def decoded(model, seed, count=None, pieces=2, **how):
    """The first `count` tokens of each of some pieces that share their draws, and the next numbers of the draws."""
    draws, found = SeededDraws(seed), []
    for piece in range(pieces):
        job = model.inference(*texts(seed + piece), draws, **how)
        found.append([*islice(job, count)])
        job.close()
    return found, draws.exponential(3).tolist()


@pytest.mark.parametrize("strict", [False, True], ids=["as the original", "strict"])
def test_every_token_and_every_draw_is_that_of_the_host_loop(pair, strict):
    plain, queued = pair
    for seed in range(8):
        assert decoded(queued, seed, strict_min_length=strict) == decoded(plain, seed, strict_min_length=strict), seed


def test_doubtful_tokens_change_nothing_behind_them(pair, monkeypatch):
    """Some choices are made doubtful: the host decides them, and the step queued behind is repeated."""
    plain, queued = pair
    monkeypatch.setattr(sampling, "NEAR", 0.004)
    asked, settle = [], CosyVoice3LM.sampling_ids
    monkeypatch.setattr(sampling.QueuedLM, "sampling_ids", lambda *args: asked.append(1) or settle(*args))
    tokens = 0
    for seed in range(8):
        found, expected = (decoded(model, seed, strict_min_length=True) for model in (queued, plain))
        assert found == expected, seed
        tokens += sum(map(len, found[0])) + len(found[0])
    assert 0.2 * tokens < len(asked) < 0.8 * tokens


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_loop_that_is_closed_early_leaves_nothing_running(pair, count):
    """Its draws are where the host loop would have left them."""
    plain, queued = pair
    with watched() as waits:
        found = decoded(queued, 1, count, strict_min_length=True)
        assert waits.queued == 0
    assert found == decoded(plain, 1, count, strict_min_length=True)
    assert [len(piece) for piece in found[0]] == [count, count]


@pytest.mark.parametrize("end", ["stop token", "maximum length"])
def test_no_token_is_waited_for_with_nothing_queued(pair, end):
    """Both loops wait once per token; only the host loop has nothing queued meanwhile."""
    ratio = 100.0 if end == "stop token" else 2.0  # the minimum
    for model, queues in zip(pair, (False, True), strict=True):
        changed = recast(model, type(model))
        changed.config = replace(model.config, max_token_text_ratio=ratio)
        job = changed.inference(*texts(5), SeededDraws(5), strict_min_length=True)
        with watched() as waits:
            next(job)
            waits.waits = waits.idle = 0  # reading the inputs does not count
            tokens = len([*islice(job, 5)])
            assert waits.waits == tokens == 5
            assert waits.idle == (0 if queues else tokens)
            tokens += len([*job])
            ends = end == "stop token"  # this token is read too, and the step queued behind it awaited
            assert waits.waits == tokens + ends + ends * queues
            assert waits.idle == (1 if queues else tokens + ends)
            assert waits.queued == 0


@pytest.mark.parametrize("sample", ["greedy", "recorded", "own"])
def test_other_samplings_and_draws_take_the_host_loop(pair, sample):
    rows = np.random.default_rng(0).exponential(size=(400, 60)).astype(np.float32)

    def own(scores, tokens, draws, config):
        return ras_sampling(scores, tokens, draws, replace(config, top_k=5))

    found = []
    for model in pair:
        draws = {"greedy": None, "recorded": RecordedDraws(list(rows)), "own": SeededDraws(2)}[sample]
        how = {"greedy": greedy_sampling, "recorded": ras_sampling, "own": own}[sample]
        found.append([*model.inference(*texts(2), draws, how, strict_min_length=True)])
    assert found[0] == found[1] and found[0]


def test_scores_that_are_no_numbers_are_refused(pair):
    for model in pair:
        broken = recast(model, type(model))
        broken.llm_decoder = recast(model.llm_decoder, type(model.llm_decoder))
        broken.llm_decoder.weight = model.llm_decoder.weight.at[7, 3].add(float("nan"))
        with pytest.raises(ValueError, match="scores are no numbers"):
            next(broken.inference(*texts(0), SeededDraws(0)))


def test_each_token_may_be_asked_for_by_another_thread(pair):
    """First two threads in turn, then a new thread for each token."""
    plain, queued = pair
    expected = [*plain.inference(*texts(4), SeededDraws(4), strict_min_length=True)]
    pools = [ThreadPoolExecutor(1, initializer=end_streams_with_thread) for _ in range(2)]
    job, found = queued.inference(*texts(4), SeededDraws(4), strict_min_length=True), []
    for at in range(len(expected)):
        if at < len(expected) // 2:
            found.append(pools[at % 2].submit(next, job).result())
        else:
            with ThreadPoolExecutor(1, initializer=end_streams_with_thread) as pool:
                found.append(pool.submit(next, job).result())
    for pool in pools:
        pool.shutdown()
    assert found == expected and [*job] == []


def test_the_form_is_put_in_place_where_it_is_asked_for(pair):
    assert replaced(pair[0]) == []
    assert replaced(speed_up(pair[0], ["queued"])) == ["QueuedLM"]


@pytest.mark.float32
@pytest.mark.part("fast.sampling", late=1)
def test_decodings_of_the_checkpoint_over_hundreds_of_seeds(parity):
    """With the whole vocabulary of 6761."""
    lm = parity.models.port.llm
    loops = [recast(lm, kind) for kind in (CosyVoice3LM, sampling.QueuedLM)]
    for loop in loops:
        loop.config = replace(lm.config, max_token_text_ratio=3.0)
    prompt = mx.array([[3, lm.config.end_of_prompt, 4]]), mx.array([[5, 600, 17]])
    for seed in range(200):
        text = mx.array([[seed % 100]])
        found = [[*loop.inference(text, *prompt, SeededDraws(seed), strict_min_length=seed % 2 == 0)] for loop in loops]
        assert found[0] == found[1], seed
