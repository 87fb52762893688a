"""Grouping of utterances: each is in exactly one group, and the groups are within the limits."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from port.batched import flow, vocoder
from port.batched.rows import Limits, groups

pytestmark = pytest.mark.part("batched.rows")


@given(
    lengths=st.lists(st.integers(1, 60), max_size=12),
    limits=st.builds(Limits, st.integers(0, 200), st.integers(0, 20)),
)
def test_every_row_is_in_one_group_within_the_limits(lengths, limits):
    found = groups(lengths, limits)
    assert sorted(place for group in found for place in group) == list(range(len(lengths)))
    for group in found:
        longest, shortest = lengths[group[0]], lengths[group[-1]]
        assert [lengths[place] for place in group] == sorted((lengths[place] for place in group), reverse=True)
        assert len(group) == 1 or longest * len(group) <= limits.max_frames
        assert longest - shortest <= limits.max_padding
    # No group could take the first row of the next as well.
    for group, following in pairwise(found):
        longest, first = lengths[group[0]], lengths[following[0]]
        assert longest * (len(group) + 1) > limits.max_frames or longest - first > limits.max_padding


def test_like_lengths_go_together_and_unlike_ones_apart():
    assert groups([50, 9, 48, 10, 30], Limits(100, 2)) == [[0, 2], [4], [3, 1]]
    assert groups([50, 50, 50], Limits(100, 0)) == [[0, 1], [2]]


@pytest.mark.parametrize("network", [flow, vocoder], ids=["flow", "vocoder"])
def test_a_gpu_is_limited_by_its_memory_and_a_cpu_by_what_it_gains(network, monkeypatch):
    monkeypatch.setattr("port.batched.rows.on_cpu", lambda: True)
    assert network.limits() == network.CPU_LIMITS
    monkeypatch.setattr("port.batched.rows.on_cpu", lambda: False)
    monkeypatch.setattr("port.batched.rows.default_cache_bytes", lambda: 1000 * network.FRAME_BYTES)
    assert network.limits() == Limits(1000, network.GPU_PADDING)
