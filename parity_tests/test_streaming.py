"""Streams of one model: their memory has a limit, prompts are kept for later requests, and streams do not mix."""

import gc
import threading

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_parity.compare import compare
from mlx_parity.sides.orders_pytorch import in_other_orders
from parity_tests.driver_support import arguments, watched
from parity_tests.parts import swap
from parity_tests.speech_support import small_models
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
from port.noise import rand_noise
from port.request import Prompt
from port.stream import memory as streaming
from port.stream.flow import Work, state_bytes
from port.stream.memory import Memory, default_cache_bytes

pytestmark = pytest.mark.part("stream.memory")


@settings(max_examples=10, deadline=None, derandomize=True)
@given(room=st.integers(0, 200), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
@example(room=0, cuts=[9])
@example(room=3 * CHUNK, cuts=[9])  # for the prompt of one stream
@example(room=12 * CHUNK, cuts=[9, 9])  # for all of one and the prompt of the other
def test_memory_stays_within_its_limit(flow, room, cuts):
    """Room for `room` frames, and two streams that could each fill it."""
    about, memory = utterance(15), Memory()
    limit = state_bytes(flow.config, room) if room else 0
    streams = [start(flow, about, memory=memory, max_cache_bytes=limit) for _ in range(2)]
    have = 0
    for length in cuts:
        have = min(have + length, TOKENS)
        for stream in streams:
            stream.push(about["token"][:, :have])
            assert memory.nbytes <= limit
            tails = state_bytes(flow.config, 0)  # a stream has these even without room
            assert sum(s.nbytes for s in streams) <= memory.nbytes + len(streams) * tails
    del streams, stream
    gc.collect()
    assert memory.nbytes <= limit


def test_nbytes_counts_what_a_stream_holds(flow):
    about = utterance(15)
    stream = start(flow, about, memory=Memory())
    stream.push(about["token"][:, :9])
    assert stream._state
    assert stream.nbytes == stream.bytes_for(stream._state.capacity) + stream.bytes_for(0)  # and a copy for the prompt
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
    about, memory = utterance(15), Memory()
    first, second, other = Work(), Work(), Work()
    run(start(flow, about, memory=memory, max_cache_bytes=1 << 30, work=first), about, [9])
    assert memory.prompts == 1
    run(start(flow, about, memory=memory, max_cache_bytes=1 << 30, work=second), about, [9])
    whole = RATIO * (15 - AHEAD) // CHUNK * CHUNK
    assert first.frames - second.frames == whole
    changed = {**about, "embedding": about["embedding"] + 1}
    run(start(flow, changed, memory=memory, max_cache_bytes=1 << 30, work=other), changed, [9], truth=None)
    assert (other.frames, memory.prompts) == (first.frames, 2)
    memory.clear()
    assert memory.prompts == 0


def test_the_least_recently_used_prompt_is_dropped(flow):
    """There is room for two prompts beside a running stream; a third replaces the one that was not reused."""
    abouts, memory, limit = [utterance(prompt) for prompt in (15, 16, 17)], Memory(), 1 << 30

    def use(which):
        stream = start(flow, abouts[which], memory=memory, max_cache_bytes=limit)
        stream.push(abouts[which]["token"][:, :9])
        held = memory.nbytes
        stream.close()
        return held

    limit = use(0) + 2 * state_bytes(flow.config, 3 * CHUNK)
    for which in (1, 0, 2):
        use(which)
    keys = [start(flow, about).prompt_key(3 * CHUNK) for about in abouts]
    assert [memory.find(key, flow) is None for key in keys] == [False, True, False]


def test_the_key_of_a_prompt_has_everything_it_depends_on(flow):
    about = utterance(15)
    keys = {start(flow, about).prompt_key(24)}
    for name, change in (("prompt_token", 1), ("prompt_feat", 0.5), ("embedding", 0.5), ("noise", 0.5)):
        changed = about[name].copy()
        changed[..., 0] += changed.dtype.type(change)
        keys.add(start(flow, {**about, name: changed}).prompt_key(24))
    keys.add(start(flow, about).prompt_key(16))
    assert len(keys) == 6


def test_other_weights_do_not_find_a_kept_prompt():
    flow = small_flow()
    about, memory, work = utterance(15), Memory(), Work()
    before = run(start(flow, about, memory=memory, max_cache_bytes=1 << 30), about, [])
    flow.input_embedding.weight = flow.input_embedding.weight * 1.5
    found = run(start(flow, about, memory=memory, max_cache_bytes=1 << 30, work=work), about, [], truth=None)
    state = small_state()
    state["input_embedding.weight"] = state["input_embedding.weight"] * np.float32(1.5)
    single, double, further = original(state, about, streaming=True, finalize=True)
    reading = compare(found, single, double, further=further)
    assert reading.status == "PASS", reading.message
    assert not np.allclose(found, before, atol=0.01)


def test_a_prompt_is_kept_for_the_weights_that_computed_it():
    """Even if the weights change before it is kept, at the stream's end."""
    flow = small_flow()
    about, memory, work = utterance(15), Memory(), Work()
    stream = start(flow, about, memory=memory, max_cache_bytes=1 << 30, work=work)
    stream.push(about["token"][:, :9])
    once = work.frames
    flow.input_embedding.weight = flow.input_embedding.weight * 1.5
    stream.close()
    assert memory.prompts == 1
    start(flow, about, memory=memory, max_cache_bytes=1 << 30, work=work).push(about["token"][:, :9])
    assert work.frames == 2 * once


def test_streams_that_take_turns_do_not_mix(flow):
    abouts, memory = [utterance(15), utterance(6), utterance(0)], Memory()
    streams = [start(flow, about, memory=memory, max_cache_bytes=1 << 30) for about in abouts]
    pieces: list[list[np.ndarray]] = [[] for _ in streams]
    for have in (5, 9, 14):
        for stream, about, got in zip(streams, abouts, pieces, strict=True):
            got.append(np.array(stream.push(about["token"][:, :have])))
    for stream, about, got in zip(streams, abouts, pieces, strict=True):
        got.append(np.array(stream.push(about["token"], finalize=True)))
        alone = run(start(flow, about), about, [5, 4, 5])
        np.testing.assert_array_equal(np.concatenate(got, axis=1), alone)


def test_threads_share_the_memory(flow):
    about, memory, wrong = utterance(15), Memory(), []

    def request():
        try:
            run(start(flow, about, memory=memory, max_cache_bytes=1 << 22), about, [7, 7])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=request) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- the driver


def speech(prompt_tokens=10, count=130):
    """Arguments of a request in numpy, `prompt_speech_feat` (1, F, C) on both sides."""
    rng = np.random.default_rng(prompt_tokens)
    return {
        "flow_prompt_speech_token": rng.integers(0, 81, (1, prompt_tokens)).astype(np.int32),
        "prompt_speech_feat": rng.standard_normal((1, 2 * prompt_tokens, 80)).astype(np.float32),
        "flow_embedding": rng.standard_normal((1, 8)).astype(np.float32),
        "source_speech_token": rng.integers(0, 81, (1, count)).astype(np.int32),
    }


def request(model, count=130, **options):
    return ask(model, {name: mx.array(value) for name, value in speech(count=count).items()}, **options)


def ask(model, given, **options):
    given = dict(given)
    source = given.pop("source_speech_token")
    return model.tts(Prompt(**given), source_speech_token=source, **arguments(stream=True, reset_hop=True, **options))


def requested(model, dtype, z, **options):
    """Chunks of the reference from the noise `z` (1, C, n)."""
    tensors = {name: torch.from_numpy(value) for name, value in {**speech(), "noise": z}.items()}
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    noise = tensors.pop("noise")
    with torch.inference_mode():
        return [c["tts_speech"].numpy() for c in ask(model, tensors, noise=noise, **options)]


@pytest.mark.part("model.CosyVoice3Model")
@pytest.mark.float32
@pytest.mark.parametrize("causal_final", [False, True])
def test_each_way_of_streaming_gives_the_chunks_of_the_reference(causal_final):
    (reference, model), double, z = small_models(), small_models()[0].double(), np.array(rand_noise(RATIO * 140))
    expected = requested(reference, torch.float32, z, causal_final=causal_final)
    truth = requested(double, torch.float64, z, causal_final=causal_final)
    others = in_other_orders(lambda: requested(reference, torch.float32, z, causal_final=causal_final))
    assert len(truth) > 2
    for options in (dict(incremental=False), dict(), dict(max_cache_bytes=0), dict()):
        noise = mx.array(swap(z))
        found = [np.array(c["tts_speech"]) for c in request(model, causal_final=causal_final, noise=noise, **options)]
        assert len(found) == len(truth)
        for i, (port, single, oracle) in enumerate(zip(found, expected, truth, strict=True)):
            reading = compare(port, single, oracle, further=(run[i] for run in others))
            assert reading.status == "PASS", reading.message


@pytest.mark.part("model.CosyVoice3Model")
def test_the_driver_frees_an_interrupted_stream():
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
    """As in the original, the last chunk recomputes everything unless `causal_final` is set."""
    _, model = small_models()
    frames = {}
    for name, options in (("stream", {}), ("causal", dict(causal_final=True)), ("again", dict(incremental=False))):
        with watched(model) as calls:
            list(request(model, count=400, **options))
        frames[name] = calls[-1][1].work.frames
    once = RATIO * (10 + 400)
    assert frames["causal"] <= 1.05 * once
    assert frames["stream"] <= 2.05 * once
    assert frames["again"] > 3 * once
