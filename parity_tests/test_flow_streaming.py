"""The flow decoder as a stream: however the tokens are cut, it gives the frames of the whole, each computed once."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_parity.compare import compare
from mlx_parity.judge import Row
from mlx_parity.sides.orders_pytorch import in_other_orders
from parity_tests.parts import swap
from parity_tests.stream_support import (
    AHEAD,
    CHUNK,
    RATIO,
    TOKENS,
    original,
    run,
    small_flow,
    small_state,
    start,
    utterance,
)
from parity_tests.stream_support import truth as stream_truth
from port.stream.flow import Work, state_bytes
from port.stream.memory import Memory

pytestmark = pytest.mark.part("stream.flow.StreamingFlow")

STREAM = "stream.flow.StreamingFlow"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(prompt=st.sampled_from((0, 1, 4, 6, 15)), cuts=st.lists(st.integers(0, 9), max_size=8))
@example(prompt=6, cuts=[1] * TOKENS)
@example(prompt=0, cuts=[1] * TOKENS)
@example(prompt=15, cuts=[])
@example(prompt=15, cuts=[0, 0, 23])
def test_any_cut_gives_the_frames_of_the_whole(flow, prompt, cuts):
    about = utterance(prompt)
    run(start(flow, about), about, cuts)


def test_an_unfinished_stream_gives_what_the_original_gives(flow):
    about = utterance(6)
    stream = start(flow, about)
    run(stream, about, [5, 4, 1], finalize=False)


def test_the_plain_layers_stream_too():
    about = utterance(6)
    run(start(small_flow(()), about), about, [5, 4, 9])


@pytest.mark.float32
@pytest.mark.parametrize("cuts", [[], [4] * 8, [25, 4]], ids=["one", "evenly", "uneven"])
def test_the_checkpoint_streams(parity, cuts):
    models, rng = parity.models, np.random.default_rng(3)
    config = models.config.flow
    prompt, count = 12, 34
    about = {
        "token": rng.integers(0, config.vocab_size, (1, count)).astype(np.int32),
        "prompt_token": rng.integers(0, config.vocab_size, (1, prompt)).astype(np.int32),
        "prompt_feat": rng.standard_normal((1, RATIO * prompt, config.output_size)).astype(np.float32),
        "embedding": rng.standard_normal((1, config.spk_embed_dim)).astype(np.float32),
        "noise": rng.standard_normal((1, config.output_size, RATIO * (prompt + count))).astype(np.float32),
    }

    def truth(_, have, last):
        single = partial(reference, models.single, torch.float32, have, last)
        return single(), reference(models.double, torch.float64, have, last), in_other_orders(single)

    def reference(model, dtype, have, last):
        arrays = {**about, "token": about["token"][:, :have]}
        tensors = {k: torch.from_numpy(v) if k.endswith("token") else torch.from_numpy(v).to(dtype)
                   for k, v in arrays.items()}  # fmt: skip
        with torch.inference_mode():
            return swap(model.flow.inference(**tensors, streaming=True, finalize=last).numpy())

    found = run(start(models.port.flow, about), about, cuts, truth=truth)
    if not cuts:
        name = "walk.flow.stream"
        single, double, further = truth(prompt, count, True)
        reading = compare(found, single, double, further=further)
        parity.add([Row(f"{name}.feat", "flow", "chained", STREAM, name, reading)])


def test_each_frame_is_computed_once_and_a_partial_chunk_again(flow):
    about, work = utterance(0), Work()
    run(start(flow, about, work=work), about, [4 + AHEAD, 4, 4, 4])
    assert work.frames == RATIO * TOKENS  # every push ends where a chunk does
    assert work.pairs == sum(CHUNK * (i + 1) * CHUNK for i in range(5)) + 6 * 46
    work = Work()
    run(start(flow, about, work=work), about, [6 + AHEAD])
    assert work.frames == RATIO * TOKENS + 4  # half a chunk was computed and dropped


def test_a_kept_prompt_serves_another_text(flow):
    """The last tokens of a prompt look ahead into the text: of 13 tokens two chunks depend on the prompt alone."""
    about, memory, works = utterance(13), Memory(), [Work(), Work()]
    other = {**about, "token": np.ascontiguousarray(about["token"][:, ::-1])}

    def truth(_, have, last):
        return original(small_state(), {**other, "token": other["token"][:, :have]}, streaming=True, finalize=last)

    run(start(flow, about, memory=memory, max_cache_bytes=1 << 30, work=works[0]), about, [9])
    run(start(flow, other, memory=memory, max_cache_bytes=1 << 30, work=works[1]), other, [9], truth=truth)
    assert works[0].frames - works[1].frames == 2 * CHUNK
    for text, expected in ((about, stream_truth), (other, truth), (about, stream_truth)):  # and once more for each
        run(start(flow, text, memory=memory, max_cache_bytes=1 << 30), text, [9], truth=expected)


def test_without_room_a_stream_recomputes_and_gives_the_same_frames(flow):
    about = utterance(6)
    for frames in (0, CHUNK, 3 * CHUNK):
        memory, work = Memory(), Work()
        limit = state_bytes(flow.config, frames) if frames else 0
        stream = start(flow, about, memory=memory, max_cache_bytes=limit, work=work)
        run(stream, about, [1] * 20)
        unbounded = Work()
        run(start(flow, about, work=unbounded), about, [1] * 20)
        assert work.frames > unbounded.frames
