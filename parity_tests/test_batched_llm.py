"""Batched decoding: scores of each row against the float64 reference alone, keys and values, and tokens."""

from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.compare import compare
from mlx_parity.judge import Row
from mlx_parity.sides.orders_pytorch import in_other_orders
from parity_tests.cases.llm import LM
from port.batched.cache import BatchCache
from port.batched.decoder import Decoder
from port.config import LLMConfig, from_dict
from port.llm.qwen2 import KVCache
from port.llm.sampling import SeededDraws, greedy_sampling, ras_sampling

pytestmark = pytest.mark.part("batched.decoder")
EOS = from_dict(LLMConfig, LM).eos
# Text tokens, prompt speech tokens and speech tokens of each request. Three decode at a time, so rows
# enter and leave at different steps, and only one row's keys outgrow the first buffers.
REQUESTS = ((6, 0, 9), (9, 240, 7), (3, 5, 21), (4, 31, 4), (2, 12, 11), (5, 0, 6))


def texts(text, speech, seed=0):
    """Text, prompt text and prompt speech of a request, numpy."""
    rng = np.random.default_rng((text, speech, seed))
    words, before, spoken = (rng.integers(0, 40, (1, count)).astype(np.int32) for count in (text, 3, speech))
    return words, np.append(before, [[LM["end_of_prompt"]]], axis=1).astype(np.int32), spoken


def forced(tokens, seen):
    """A sampler that returns these tokens, then the end, and records the scores and the history that it gets."""
    script = iter([*tokens, EOS])

    def sample(scores, decoded_tokens, *_):
        seen.append((np.asarray(scores).copy(), list(decoded_tokens)))
        return next(script)

    return sample


def in_batch(llm, requests, max_rows=3):
    """Tokens of requests (texts, sampling arguments) that decode together."""
    decoder = Decoder(llm, max_rows)
    rows = [decoder.inference(*asked) for asked in requests]
    return [list(row) for row in rows]


# ---- scores


def test_scores_of_each_row_under_teacher_forcing(parity, twins):
    """Every step of every row is as close to float64 as the float32 reference; no row gets another's history."""
    single, double, port = twins
    asked = [(texts(*sizes), list(np.random.default_rng(sizes).integers(0, 40, sizes[2]))) for sizes in REQUESTS]
    found: list[list] = [[] for _ in asked]
    pairs = zip(asked, found, strict=True)
    said = in_batch(port, [(*given, None, forced(script, seen)) for (given, script), seen in pairs])
    assert said == [script for _, script in asked]

    def alone(model, given, script):
        seen: list = []
        list(model.inference(*(torch.from_numpy(t) for t in given), None, forced(script, seen)))
        return np.stack([scores for scores, _ in seen])

    rows = []
    for at, ((given, script), seen) in enumerate(zip(asked, found, strict=True)):
        assert [history for _, history in seen] == [script[:n] for n in range(len(script) + 1)]
        mine, others = np.stack([s for s, _ in seen]), in_other_orders(partial(alone, single, given, script))
        reading = compare(
            mine, alone(single, given, script), alone(double, given, script), allow_inf=True, further=others
        )
        rows.append(Row(f"batch.llm.{at}.scores", "llm", "chained", "batched.decoder", "batch.llm", reading))
    parity.add(rows)


# ---- keys and values


@pytest.mark.part("batched.cache")
def test_a_row_sees_its_own_positions_and_no_others():
    """Rows enter, leave and outgrow a buffer; positions that a row does not see are zero."""
    rng = np.random.default_rng(0)

    def entering(length):
        held = rng.standard_normal((2, 2, 2, length, 4)).astype(np.float32)  # layers, keys and values, heads
        cache = [KVCache() for _ in held]
        for layer, (keys, values) in zip(cache, held, strict=True):
            layer.update(mx.array(keys[None]), mx.array(values[None]))
        return held, cache

    batch, own = BatchCache(2), list[Any]()
    for stay, lengths in (([], (5, 9)), ([1, 0], (3, 254)), ([3, 1], ()), ([0, 1], ()), ([0], (40, 2, 1)), ([2], ())):
        new = [entering(length) for length in lengths]
        batch.take(stay, [cache for _, cache in new])
        own = [*(own[at] for at in stay), *(held for held, _ in new)]
        for _ in range(2):
            step = rng.standard_normal((len(own), 2, 2, 2, 1, 4)).astype(np.float32)
            batch.begin()
            assert batch.layers[0].offset[:, 0, 0].tolist() == [held.shape[3] for held in own]
            own = [np.concatenate(pair, axis=3) for pair in zip(own, step, strict=True)]
            for at, layer in enumerate(batch.layers):
                keys, values, mask = layer.update(mx.array(step[:, at, 0]), mx.array(step[:, at, 1]))
                found = np.stack((np.array(keys), np.array(values)), axis=1)  # (B, 2, heads, S, d)
                seen = np.ones((len(own), found.shape[3]), bool) if mask is None else np.array(mask)[:, 0, 0]
                for row, (held, mine) in enumerate(zip(own, seen, strict=True)):
                    assert np.array_equal(found[row][:, :, mine], held[at])
                    assert not found[row][:, :, ~mine].any()
            batch.commit()
    batch.take([])
    assert batch.lengths == []


@pytest.mark.part("batched.cache")
def test_a_step_that_broke_off_is_made_again():
    batch, rng = BatchCache(2), np.random.default_rng(1)
    prompt, step = (mx.array(rng.standard_normal((1, 2, n, 4)).astype(np.float32)) for n in (3, 1))
    kept = [KVCache(), KVCache()]
    for layer in kept:
        layer.update(prompt, prompt)
    batch.take([], [kept])
    for layers in (batch.layers[:1], batch.layers):  # the first time, the second layer raises
        batch.begin()
        found = [layer.update(step, step)[0] for layer in layers]
    assert all(mx.array_equal(keys, mx.concatenate([prompt, step], axis=2)) for keys in found)


# ---- tokens


def watched(seen):
    """`ras_sampling` that records the scores, the sizes of the draws and the token of each step."""

    def sample(scores, decoded_tokens, draws, config):
        before, counts = scores.copy(), Counts(draws)
        token = ras_sampling(scores, decoded_tokens, counts, config)
        seen.append((before, counts.asked, token))
        return token

    return sample


class Counts:
    def __init__(self, draws):
        self.draws, self.asked = draws, []

    def exponential(self, n):
        self.asked.append(n)
        return self.draws.exponential(n)


@pytest.mark.float32
@pytest.mark.parametrize("count", [16, pytest.param(200, marks=pytest.mark.full)])
def test_requests_say_together_what_they_say_alone(parity, count):
    """Equal tokens on the embedded checkpoint; where they differ, the scores of both must be within the budget.

    Up to the first step that differs both have drawn the same numbers and chosen the same tokens, so only the scores of
    that step can differ: the choice depended on less than the float32 error.
    """
    models, rng = parity.models, np.random.default_rng(3)
    config, llm, requests = models.config.llm, models.port.llm, []
    for _ in range(count):
        limits = (config.end_of_prompt, rng.integers(1, 5)), (config.speech_token_size, rng.integers(0, 9))
        words, spoken = (rng.integers(0, high, (1, n)) for high, n in limits)
        requests.append((words, np.array([[config.end_of_prompt]]), spoken))
    together: list[list] = [[] for _ in requests]
    asked = zip(requests, range(count), together, strict=True)
    said = in_batch(llm, [(*ids, SeededDraws(seed), watched(seen)) for ids, seed, seen in asked], 5)
    exceptions = []
    for seed, (ids, seen, tokens) in enumerate(zip(requests, together, said, strict=True)):
        alone: list = []
        expected = list(llm.inference(*ids, SeededDraws(seed), watched(alone)))
        steps = enumerate(zip(seen, alone, strict=False))
        first = next((at for at, (mine, own) in steps if mine[1:] != own[1:]), None)
        at = min(len(seen), len(alone)) - 1 if first is None else first
        history = [token for _, _, token in alone[:at]]
        single, double = (partial(scores_after, model.llm, ids, history) for model in (models.single, models.double))
        for scores, _, _ in (seen[at], alone[at]):
            allowed = np.isfinite(scores)  # not barred by the minimum length
            others = (other[allowed] for other in in_other_orders(single))
            reading = compare(scores[allowed], single()[allowed], double()[allowed], further=others)
            assert reading.status == "PASS", reading.message
        if first is None:
            assert tokens == expected
            continue
        exceptions.append((seed, first))
        draws = SeededDraws(seed)
        for n in (n for _, drawn, _ in alone[:first] for n in drawn):
            draws.exponential(n)
        assert ras_sampling(seen[first][0].copy(), history, draws, config.sampling) == seen[first][2], "other draws"
    assert sum(map(len, said)) > 10 * count and len(exceptions) < count / 20, exceptions


def scores_after(llm, ids, tokens):
    """The reference's scores after these tokens, in one pass."""
    spoken = llm.embed_speech(torch.tensor([tokens], dtype=torch.int32))
    lm_input = torch.cat((llm.prepare_input(*map(torch.from_numpy, ids)), spoken), dim=1)
    with torch.inference_mode():
        return llm.scores(llm.qwen2(lm_input)[0, -1]).numpy()


@pytest.mark.float32
@pytest.mark.parametrize("strict", [False, True], ids=["as the original", "strict"])
def test_lengths_are_those_of_each_row(twins, strict):
    """With samplers that never end, or end at once, each row stops at its own maximum or minimum length."""
    port = twins[2]
    never = lambda scores, *_: int(scores[: port.config.speech_token_size].argmax())  # noqa: E731
    early = lambda scores, *_: EOS if np.isfinite(scores[EOS]) else never(scores)  # noqa: E731
    asked = [
        (*texts(text, 4), None, sampling, strict) for text, sampling in ((2, never), (1, never), (3, early), (5, early))
    ]
    assert in_batch(port, asked) == [list(port.inference(*request)) for request in asked]


def test_greedy_needs_no_draws(twins):
    asked = [(*texts(*sizes), None, greedy_sampling) for sizes in REQUESTS]
    assert in_batch(twins[2], asked) == [list(twins[2].inference(*request)) for request in asked]
