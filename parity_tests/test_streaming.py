"""The flow decoder as a stream: any cut gives the frames of the whole run, within its memory; streams do not mix."""

import gc
import threading
from functools import cache
from itertools import accumulate

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parity_tests.adapters.own import OwnPort
from parity_tests.cases.flow import FLOW
from parity_tests.harness.cases import case, normal, tokens
from parity_tests.harness.compare import compare
from parity_tests.harness.judge import Row
from parity_tests.harness.oracle import reference_state, run_reference
from parity_tests.harness.targets import TARGETS, swap
from parity_tests.speech_support import small_models
from port import streaming
from port.flow.incremental import StreamingFlow
from port.flow.state import Work, state_bytes
from port.paths import PLAIN, fast_paths
from port.streaming import StreamMemory, default_cache_bytes

INFERENCE = TARGETS["flow.decoder.CausalMaskedDiffWithDiT.inference"]
STREAM = "flow.incremental.StreamingFlow"
AHEAD, RATIO, CHUNK = 3, 2, 8  # tokens, frames a token, frames of a chunk in the small model
TOKENS = 23


@pytest.fixture(scope="module")
def flow():
    return OwnPort().build(INFERENCE, FLOW, reference_state(case("flow.stream", INFERENCE.path, FLOW)))


@cache
def utterance(prompt: int) -> dict[str, np.ndarray]:
    """Inputs of the flow decoder; `prompt_feat` is (1, F, C) on both sides, `noise` (1, C, n)."""
    drawn = case(
        "flow.stream",
        INFERENCE.path,
        FLOW,
        token=tokens(1, TOKENS, high=61),
        prompt_token=tokens(1, prompt, high=61),
        prompt_feat=normal(1, RATIO * prompt, 12),
        embedding=normal(1, 24),
        noise=normal(1, 12, RATIO * (prompt + TOKENS)),
    )
    return drawn.draw()


@cache
def truth(prompt: int, have: int, finalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the original would give for the first `have` tokens, (1, n, C), in both precisions."""
    inputs = utterance(prompt)
    inputs = {**inputs, "token": inputs["token"][:, :have]}
    state = reference_state(case("flow.stream", INFERENCE.path, FLOW))
    call = dict(streaming=True, finalize=finalize)
    return tuple(
        swap(run_reference(INFERENCE, FLOW, state, inputs, call, dtype)["feat"])
        for dtype in (torch.float32, torch.float64)
    )


def start(flow, about, **options):
    arrays = {name: mx.array(about[name]) for name in ("prompt_feat", "embedding")}
    return StreamingFlow(flow, about["prompt_token"], noise=mx.array(swap(about["noise"])), **arrays, **options)


def run(stream, about, cuts, finalize=True, truth=truth):
    """Push tokens cut at the lengths `cuts`, then the rest; each piece is what the original's whole run ends with."""
    prompt, count = about["prompt_token"].shape[1], about["token"].shape[1]
    given_frames, pieces = 0, []
    for have, last in [*((min(have, count), False) for have in accumulate(cuts)), (count, finalize)]:
        piece = np.array(stream.push(about["token"][:, :have], finalize=last))
        pieces.append(piece)
        frames = RATIO * have if last else max(0, RATIO * (have - AHEAD))
        assert piece.shape[1] == frames - given_frames
        if piece.size and truth:
            reading = compare(piece, *(t[:, given_frames:].copy() for t in truth(prompt, have, last)))
            assert reading.status == "PASS", reading.message
        given_frames = frames
    return np.concatenate(pieces, axis=1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(prompt=st.sampled_from((0, 1, 4, 6, 15)), cuts=st.lists(st.integers(0, 9), max_size=8))
@example(prompt=6, cuts=[1] * TOKENS)
@example(prompt=0, cuts=[1] * TOKENS)
@example(prompt=15, cuts=[])
@example(prompt=15, cuts=[0, 0, 23])
def test_any_cut_gives_the_whole(flow, prompt, cuts):
    about = utterance(prompt)
    run(start(flow, about), about, cuts)


def test_a_stream_that_is_not_over_gives_what_the_original_gives(flow):
    about = utterance(6)
    stream = start(flow, about)
    run(stream, about, [5, 4, 1], finalize=False)


def test_the_plain_paths_stream_too(flow):
    about = utterance(6)
    with fast_paths(PLAIN):
        run(start(flow, about), about, [5, 4, 9])


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
        return tuple(reference(model, dtype, have, last) for model, dtype in
                     ((models.single, torch.float32), (models.double, torch.float64)))  # fmt: skip

    def reference(model, dtype, have, last):
        arrays = {**about, "token": about["token"][:, :have]}
        tensors = {k: torch.from_numpy(v) if k.endswith("token") else torch.from_numpy(v).to(dtype)
                   for k, v in arrays.items()}  # fmt: skip
        with torch.inference_mode():
            return swap(model.flow.inference(**tensors, streaming=True, finalize=last).numpy())

    found = run(start(models.port.flow, about), about, cuts, truth=truth)
    if not cuts:
        name = "walk.flow.stream"
        parity.add([Row(f"{name}.feat", "flow", "chained", STREAM, name, compare(found, *truth(prompt, count, True)))])


# ---- work and memory


def test_each_frame_is_computed_once_and_a_partial_chunk_again(flow):
    about, work = utterance(0), Work()
    run(start(flow, about, work=work), about, [4 + AHEAD, 4, 4, 4])
    assert work.frames == RATIO * TOKENS  # every push ends where a chunk does
    assert work.pairs == sum(CHUNK * (i + 1) * CHUNK for i in range(5)) + 6 * 46
    work = Work()
    run(start(flow, about, work=work), about, [6 + AHEAD])
    assert work.frames == RATIO * TOKENS + 4  # half a chunk was computed and forgotten


def test_no_room_means_the_same_frames_with_more_work(flow):
    about = utterance(6)
    for frames in (0, CHUNK, 3 * CHUNK):
        memory, work = StreamMemory(), Work()
        limit = state_bytes(flow.config, frames) if frames else 0
        stream = start(flow, about, memory=memory.within(limit), work=work)
        run(stream, about, [1] * 20)
        unbounded = Work()
        run(start(flow, about, work=unbounded), about, [1] * 20)
        assert work.frames > unbounded.frames


@settings(max_examples=15, deadline=None, derandomize=True)
@given(limit=st.integers(0, 1 << 20), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_memory_stays_within_its_limit(flow, limit, cuts):
    about, memory = utterance(15), StreamMemory()
    streams = [start(flow, about, memory=memory.within(limit)) for _ in range(2)]
    have = 0
    for length in cuts:
        have = min(have + length, TOKENS)
        for stream in streams:
            stream.push(about["token"][:, :have])
            assert memory.nbytes <= limit
            tails = state_bytes(flow.config, 0)  # which a stream has even without room
            assert sum(s.nbytes for s in streams) <= memory.nbytes + len(streams) * tails
    del streams, stream
    gc.collect()
    assert memory.nbytes <= limit


def test_a_size_is_what_is_held(flow):
    about = utterance(15)
    stream = start(flow, about)
    stream.push(about["token"])
    assert stream.nbytes == stream.bytes_for(stream._state.capacity)
    stream.close()
    assert stream.nbytes == 0
    with pytest.raises(ValueError, match="ended"):
        stream.push(about["token"])


def test_the_default_limit_is_a_quarter_of_the_device(monkeypatch):
    monkeypatch.setattr(streaming.mx, "device_info", lambda: {"memory_size": 64 << 30})
    assert default_cache_bytes() == 16 << 30
    monkeypatch.setattr(streaming.mx, "device_info", dict)
    assert default_cache_bytes() == 4 << 30


# ---- prompts


def test_a_second_request_finds_its_prompt(flow):
    about, memory = utterance(15), StreamMemory()
    first, second, other = Work(), Work(), Work()
    run(start(flow, about, memory=memory.within(1 << 30), work=first), about, [9])
    assert memory.prompts == 1
    run(start(flow, about, memory=memory.within(1 << 30), work=second), about, [9])
    whole = RATIO * (15 - AHEAD) // CHUNK * CHUNK
    assert first.frames - second.frames == whole
    changed = {**about, "embedding": about["embedding"] + 1}
    run(start(flow, changed, memory=memory.within(1 << 30), work=other), changed, [9], truth=None)
    assert (other.frames, memory.prompts) == (first.frames, 2)
    memory.clear()
    assert memory.prompts == 0


def test_each_thing_that_a_prompt_depends_on_is_in_its_key(flow):
    about = utterance(15)
    keys = {streaming.prompt_key(start(flow, about), 24)}
    for name, change in (("prompt_token", 1), ("prompt_feat", 0.5), ("embedding", 0.5), ("noise", 0.5)):
        changed = about[name].copy()
        changed[..., 0] += changed.dtype.type(change)
        keys.add(streaming.prompt_key(start(flow, {**about, name: changed}), 24))
    keys.add(streaming.prompt_key(start(flow, about), 16))
    assert len(keys) == 6


def test_other_weights_make_another_prompt():
    flow = OwnPort().build(INFERENCE, FLOW, reference_state(case("flow.stream", INFERENCE.path, FLOW)))
    about, memory, work = utterance(15), StreamMemory(), Work()
    before = run(start(flow, about, memory=memory.within(1 << 30)), about, [])
    flow.input_embedding.weight = flow.input_embedding.weight * 1.5
    found = run(start(flow, about, memory=memory.within(1 << 30), work=work), about, [], truth=None)
    inputs = {k: mx.array(about[k]) for k in ("prompt_feat", "embedding")}
    whole = flow.inference(about["token"], about["prompt_token"], **inputs, noise=mx.array(swap(about["noise"])),
                           streaming=True)  # fmt: skip
    assert np.abs(found - np.array(whole)).max() < 1e-4
    assert np.abs(found - before).max() > 1e-2


def test_streams_that_take_turns_do_not_mix(flow):
    abouts, memory = [utterance(15), utterance(6), utterance(0)], StreamMemory()
    streams = [start(flow, about, memory=memory.within(1 << 30)) for about in abouts]
    pieces = [[] for _ in streams]
    for have in (5, 9, 14):
        for stream, about, got in zip(streams, abouts, pieces, strict=True):
            got.append(np.array(stream.push(about["token"][:, :have])))
    for stream, about, got in zip(streams, abouts, pieces, strict=True):
        got.append(np.array(stream.push(about["token"], finalize=True)))
        alone = run(start(flow, about), about, [5, 4, 5])
        np.testing.assert_array_equal(np.concatenate(got, axis=1), alone)


def test_threads_share_the_memory(flow):
    about, memory, wrong = utterance(15), StreamMemory(), []

    def request():
        try:
            run(start(flow, about, memory=memory.within(1 << 22)), about, [7, 7])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=request) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- the driver


def request(model, prompt_tokens=10, count=130, **options):
    rng = np.random.default_rng(prompt_tokens)
    arguments = {
        "flow_prompt_speech_token": rng.integers(0, 81, (1, prompt_tokens)).astype(np.int32),
        "prompt_speech_feat": mx.array(rng.standard_normal((1, 2 * prompt_tokens, 80)).astype(np.float32)),
        "flow_embedding": mx.array(rng.standard_normal((1, 8)).astype(np.float32)),
        "source_speech_token": rng.integers(0, 81, (1, count)).astype(np.int32),
    }
    return model.tts(**arguments, stream=True, reset_hop=True, **options)


@pytest.mark.parametrize("causal_final", [False, True])
def test_the_driver_streams_what_it_would_compute_again(causal_final):
    """Chunk by chunk; both are held to the reference in test_driver.py and the walks."""
    _, model = small_models()
    chunks = [
        [np.array(c["tts_speech"]) for c in request(model, causal_final=causal_final, **options)]
        for options in (dict(incremental=False), dict(), dict(max_cache_bytes=0), dict())
    ]
    assert len(chunks[0]) > 2
    for others in chunks[1:]:
        assert [c.shape for c in others] == [c.shape for c in chunks[0]]
        for one, other in zip(chunks[0], others, strict=True):
            assert np.abs(one - other).max() < 2e-4 * max(1.0, np.abs(one).max())


def test_the_driver_forgets_a_stream_that_is_broken_off():
    _, model = small_models()
    speech = request(model)
    next(speech)
    assert model.stream_memory.nbytes > 0
    speech.close()
    del speech
    gc.collect()
    model.stream_memory.clear()
    assert model.stream_memory.nbytes == 0


def test_a_long_stream_costs_little_more_than_one_pass():
    """By the original's rule the last chunk runs over everything again."""
    _, model = small_models()
    frames = {}
    for name, options in (("stream", {}), ("causal", dict(causal_final=True)), ("again", dict(incremental=False))):
        caches = []
        token2wav = model.token2wav
        model.token2wav = lambda *a, cache, caches=caches, token2wav=token2wav, **k: (
            caches.append(cache),
            token2wav(*a, cache=cache, **k),
        )[1]
        try:
            list(request(model, count=400, **options))
        finally:
            del model.token2wav
        frames[name] = caches[-1].work.frames
    once = RATIO * (10 + 400)
    assert frames["causal"] <= 1.05 * once
    assert frames["stream"] <= 2.05 * once
    assert frames["again"] > 3 * once
