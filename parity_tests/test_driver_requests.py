"""Requests to one model driver, on both sides: one after another, broken off, in threads; none touches another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
import torch

from parity_tests.driver_support import SIDES, Speaker, joined
from parity_tests.speech_support import small_models

pytestmark = pytest.mark.part("model.CosyVoice3Model")


@pytest.mark.parametrize("stream", [False, True])
def test_two_requests_equal_two_on_fresh_objects(stream):
    options = {"stream": stream, "reset_hop": True, "strict_min_length": True}
    requests = [{"text": 16, "seed": 3}, {"text": 24, "seed": 4}]
    for side in range(2):
        one = small_models()[side]
        shared = [Speaker(SIDES[side], one).say(**options, **r) for r in requests]
        fresh = [Speaker(SIDES[side], small_models()[side]).say(**options, **r) for r in requests]
        assert all(np.array_equal(joined(a), joined(b)) for a, b in zip(shared, fresh, strict=True))
        assert not np.array_equal(joined(shared[0])[:, :9600], joined(shared[1])[:, :9600])


def test_an_interrupted_stream_leaves_the_object_usable(speaker):
    expected = speaker.say(120, stream=True, reset_hop=True)
    for chunks in (0, 1, 2):
        stream = speaker.stream(120, stream=True, reset_hop=True)
        for _ in range(chunks):
            next(stream)
        stream.close()
        assert np.array_equal(joined(speaker.say(120, stream=True, reset_hop=True)), joined(expected))


def test_requests_in_other_threads_change_nothing(speaker):
    options = {"stream": True, "reset_hop": True, "strict_min_length": True}

    def request(seed):
        return joined(speaker.say(text=24, seed=seed, **options))

    expected = [request(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(request, range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_stream_may_move_between_threads(speaker):
    """As a web server has it that asks for each chunk from whichever thread is free."""
    options = {"text": 24, "stream": True, "reset_hop": True, "strict_min_length": True}
    expected = joined(speaker.say(**options, seed=5))
    stream, chunks = speaker.stream(**options, seed=5), []

    def advance():
        try:
            chunks.append(next(stream))
        except StopIteration:
            chunks.append(None)
        except Exception as error:
            chunks.append(error)

    while not chunks or isinstance(chunks[-1], np.ndarray):
        thread = threading.Thread(target=advance)
        thread.start()
        thread.join()
    assert chunks.pop() is None
    assert np.array_equal(joined(chunks), expected)


def test_other_draws_from_torch_and_numpy_do_not_disturb(speaker):
    options = {"text": 12, "stream": True, "reset_hop": True, "strict_min_length": True}
    expected = joined(speaker.say(**options, seed=6))
    stream, chunks = speaker.stream(**options, seed=6), []
    for chunk in stream:
        chunks.append(chunk)
        torch.manual_seed(0)
        mx.random.seed(0)
        np.random.seed(0)  # noqa: NPY002 (the point is the global state)
        torch.rand(3)
    assert np.array_equal(joined(chunks), expected)
