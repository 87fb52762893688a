"""Requests to one driver, on both sides: threads and foreign random draws do not affect them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
import torch

from parity_tests.driver_support import joined

pytestmark = pytest.mark.part("model.CosyVoice3Model")


def test_requests_in_other_threads_change_nothing(speaker):
    options = {"stream": True, "reset_hop": True, "strict_min_length": True}

    def request(seed):
        return joined(speaker.say(text=24, seed=seed, **options))

    expected = [request(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(request, range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_stream_may_move_between_threads(speaker):
    """Like a web server that requests each chunk from any free thread."""
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


def test_the_global_generators_have_no_effect(speaker):
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
