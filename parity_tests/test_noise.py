"""The original's fixed noise without torch: equal bits where torch is exact, else equal to the last digits."""

import hashlib
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from port import noise

pytestmark = pytest.mark.part("noise")

# of the original: sha256 of the float32 little-endian bytes
SINE_WAVES = "2f60f92217f65e9f2728d4e662f520432603d88e7a24f78666cc88bb76247f61"
RAND_INI = "7dd3ebf888575a2514d2ae7a19adadd351540458ca331fc9518a361f0dee9d01"


def ulps(found: np.ndarray, expected: np.ndarray) -> int:
    """Largest distance in units of the last place of `expected`."""
    return int((np.abs(found.astype(np.float64) - expected) / np.spacing(np.abs(expected))).max())


def test_uniform_noise_is_the_original_bit_for_bit(monkeypatch):
    """All 64.8 million values, in windows that cross the generator's blocks."""
    monkeypatch.setattr(noise, "_FIXED", noise._FixedNoise())  # so that its 259 MB are freed afterwards
    digest = hashlib.sha256()
    rows, block = noise.MAX_SAMPLES, 250_001
    for start in range(0, rows, block):
        digest.update(noise.sine_waves(min(block, rows - start), start).astype("<f4").tobytes())
    assert digest.hexdigest() == SINE_WAVES


def test_start_phases_are_the_original_bit_for_bit():
    assert hashlib.sha256(noise.rand_ini().astype("<f4").tobytes()).hexdigest() == RAND_INI


def test_flow_noise_is_the_original_to_three_ulp():
    torch_noise = torch.randn(1, 80, 15000, generator=torch.Generator().manual_seed(0)).numpy()
    found = noise.rand_noise(15000)
    assert ulps(found, torch_noise) <= 3
    assert np.mean(found == torch_noise) > 0.9
    assert np.array_equal(noise.rand_noise(77), found[:, :, :77])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    draws=st.lists(
        st.tuples(st.sampled_from(("uniform", "normal", "exponential", "skip")), st.integers(1, 70)),
        min_size=1,
        max_size=6,
    ),
)
def test_any_sequence_of_draws_equals_torchs(seed, draws):
    mine, theirs = noise.TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for kind, n in draws:
        if kind == "skip":
            mine.skip(n)
            torch.rand(n, generator=theirs)
            continue
        found = getattr(mine, kind)(n)
        if kind == "uniform":
            assert np.array_equal(found, torch.rand(n, generator=theirs).numpy())
        elif kind == "exponential":
            assert ulps(found, torch.empty(n).exponential_(generator=theirs).numpy()) <= 1
        else:
            expected = torch.randn(n, generator=theirs).numpy()
            # torch computes the angle in float32, so a sine or cosine near zero has no relative accuracy.
            assert np.abs(found - expected).max() <= 5e-7


def test_the_noise_may_be_empty_and_is_read_only():
    assert noise.sine_waves(0).shape == (0, 9)
    with pytest.raises(ValueError, match="read-only"):
        noise.sine_waves(5000)[0, 0] = 1


def test_threads_get_the_same_noise():
    found = {}

    def ask(i: int) -> None:
        found[i] = noise.sine_waves(3000 + 500 * i)[:3000].copy()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(rows, found[0]) for rows in found.values())


@pytest.mark.parametrize(
    "ask",
    [lambda: noise.rand_noise(15001), lambda: noise.sine_waves(7_200_001), lambda: noise.sine_waves(1, offset=-1)],
)
def test_beyond_the_buffer_is_one_clear_error(ask):
    with pytest.raises(ValueError, match="300 s"):
        ask()
