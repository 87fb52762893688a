"""The vocoder as a stream: however the mel is cut, it gives the samples of the whole, each computed once."""

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_parity.case import normal, uniform
from mlx_parity.compare import Reading, compare
from mlx_parity.judge import Row
from mlx_parity.sides.orders_pytorch import Lazily
from mlx_parity.sides.truth import Runs, against, reference_state, run_reference, truth_of
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import case, voiced_and_unvoiced
from parity_tests.cases.vocoder import GENERATOR, HIFT, SINE
from parity_tests.parts import PARTS, swap
from parity_tests.walks import walks
from port.fast.convolution import PaddedConv1d, ProductConv1d
from port.noise import MAX_SAMPLES
from port.stream.state import State
from port.stream.vocoder import StreamingVocoder
from port.vocoder.source import SineGen2

pytestmark = pytest.mark.part("stream.vocoder.StreamingVocoder")

STREAM = "stream.vocoder.StreamingVocoder"
HELD_BACK, HOP = 8, 480
INFERENCE = PARTS[f"{GENERATOR}.inference"]


@pytest.fixture(scope="module")
def generator():
    return OwnPort().build(INFERENCE, HIFT, reference_state(case("vocoder.stream", INFERENCE.path, HIFT)))


@cache
def truth(frames: int) -> dict[str, Any]:
    """Inputs of an utterance in the port's layout, and the results of the reference's runs."""
    drawn = case(
        "vocoder.stream",
        INFERENCE.path,
        HIFT,
        dict(finalize=True),
        speech_feat=normal(1, 80, frames),
        sine_waves=uniform(1, frames * HOP, 9),
    )
    given = truth_of(drawn)
    mel, noise = swap(given.inputs["speech_feat"]), given.inputs["sine_waves"]
    runs = given.single["wav"], given.double["wav"], Lazily(lambda: [run["wav"] for run in given.further])
    return {"mel": mel, "noise": noise, "runs": runs}


def judge(found: np.ndarray, runs: Runs) -> Reading:
    single, double, further = runs
    return compare(found, single, double, further=further)


def stream(vocoder: StreamingVocoder, mel: np.ndarray, cuts: list[int]) -> np.ndarray:
    """Push pieces of the lengths in `cuts`, then the rest; the number of samples is checked after each."""
    pieces, start = [], 0
    for length in cuts:
        pieces.append(vocoder.push(mx.array(mel[:, start : start + length])))
        start = min(start + length, mel.shape[1])
        assert sum(piece.shape[1] for piece in pieces) == HOP * max(0, start - HELD_BACK)
    pieces.append(vocoder.push(mx.array(mel[:, start:]), finalize=True))
    return np.concatenate([np.array(piece) for piece in pieces], axis=1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(frames=st.sampled_from((1, 3, 7, 8, 9, 12, 26)), cuts=st.lists(st.integers(0, 11), max_size=9))
@example(frames=26, cuts=[1] * 26)
@example(frames=26, cuts=[26])
@example(frames=1, cuts=[1])
@example(frames=9, cuts=[8, 1])
def test_any_cut_gives_the_samples_of_the_whole(generator, frames, cuts):
    about = truth(frames)
    found = stream(StreamingVocoder(generator, mx.array(about["noise"])), about["mel"], cuts)
    reading = judge(found, about["runs"])
    assert reading.status == "PASS", reading.message


@pytest.mark.parametrize("frames", [3, 26])
def test_the_plain_layers_stream_too(frames):
    about = truth(frames)
    plain = OwnPort(forms=()).build(INFERENCE, HIFT, reference_state(case("vocoder.stream", INFERENCE.path, HIFT)))
    found = stream(StreamingVocoder(plain, mx.array(about["noise"])), about["mel"], [2, 9, 0, 1, 7])
    reading = judge(found, about["runs"])
    assert reading.status == "PASS", reading.message


def test_a_stream_clips_like_the_whole():
    """This utterance reaches the lowered limit. Clipping is the last step, so the truth is clipped afterwards."""
    about, config = truth(12), dict(HIFT, audio_limit=0.02)
    loud = OwnPort().build(INFERENCE, config, reference_state(case("vocoder.stream", INFERENCE.path, config)))
    found = stream(StreamingVocoder(loud, mx.array(about["noise"])), about["mel"], [9, 1])
    single, double, further = about["runs"]
    clipped = Lazily(lambda: [run.clip(-0.02, 0.02) for run in further])
    reading = judge(found, (single.clip(-0.02, 0.02), double.clip(-0.02, 0.02), clipped))
    assert reading.status == "PASS", reading.message
    assert 0 < (np.abs(found) >= np.float32(0.02)).mean() < 1


@pytest.mark.parametrize("cuts", [[], [1] * 24, [10, 1, 5]], ids=["one", "singly", "uneven"])
def test_the_checkpoint_streams(parity, cuts):
    """The inputs of the walk `walk.vocoder.end`, in pieces."""
    models, plan = parity.models, walks(parity.models.config)["walk.vocoder.end"]
    mel, noise = plan.inputs["speech_feat"], plan.inputs["sine_waves"]

    def reference(dtype):
        model = models.single if dtype == torch.float32 else models.double
        wav, _ = model.vocoder.inference(torch.from_numpy(mel).to(dtype), True, torch.from_numpy(noise).to(dtype))
        return wav.numpy()

    found = stream(StreamingVocoder(models.port.vocoder, mx.array(noise)), swap(mel), cuts)
    name = f"walk.vocoder.stream.{len(cuts)}"
    parity.add([Row(f"{name}.wav", "vocoder", "chained", STREAM, name, against(found, reference))])


def test_the_phase_of_a_stream_is_that_of_the_whole():
    """Bit for bit: the running sum continues in float64."""
    f0 = voiced_and_unvoiced(1, 300)(np.random.default_rng(0))[:, ::HOP, 0]
    noise, sines, state = mx.zeros((1, 300 * HOP, 9)), SineGen2(**SINE), State()
    whole, _ = sines(mx.array(f0), noise)
    pieces = [sines(mx.array(f0[:, i : i + 7]), noise, state)[0] for i in range(0, 300, 7)]
    np.testing.assert_array_equal(np.array(mx.concatenate(pieces, axis=1)), np.array(whole))


def test_without_given_noise_the_originals_is_used(generator):
    mel, state = truth(12)["mel"], reference_state(case("vocoder.stream", INFERENCE.path, HIFT))
    inputs, call = {"speech_feat": swap(mel)}, dict(finalize=True)
    found = stream(StreamingVocoder(generator), mel, [4, 5])
    reading = against(found, lambda dtype: run_reference(INFERENCE, HIFT, state, inputs, call, dtype)["wav"])
    assert reading.status == "PASS", reading.message


def test_streams_do_not_mix(generator):
    about = truth(12)
    mel, noise = mx.array(about["mel"]), mx.array(about["noise"])
    first, second = StreamingVocoder(generator, noise), StreamingVocoder(generator, noise)
    mixed = []
    for start in range(0, 12, 3):
        mixed.append(first.push(mel[:, start : start + 3], finalize=start == 9))
        second.push(mel[:, 11 - start : 12 - start] * 2)
    np.testing.assert_array_equal(
        np.array(mx.concatenate(mixed, axis=1)), stream(StreamingVocoder(generator, noise), about["mel"], [3, 3, 3])
    )


def test_the_state_does_not_grow(generator):
    about = truth(26)
    vocoder, held = StreamingVocoder(generator, mx.array(about["noise"])), []
    for start in range(25):
        vocoder.push(mx.array(about["mel"][:, start : start + 1]))
        held.append(vocoder.nbytes)
    assert held[0] > 0
    assert len(set(held[HELD_BACK:])) == 1, held
    assert held[-1] < 40_000


def test_nothing_is_computed_twice(generator, monkeypatch):
    """The convolutions' output frames add up to the same number for single frames and for one piece."""
    about, counted = truth(12), []
    for kind in (nn.Conv1d, ProductConv1d, PaddedConv1d):

        def counting(conv, x, original=kind.__call__):
            y = original(conv, x)
            counted.append(y.shape[1])
            return y

        monkeypatch.setattr(kind, "__call__", counting)
    totals = []
    for cuts in ([], [1] * 12):
        counted.clear()
        stream(StreamingVocoder(generator, mx.array(about["noise"])), about["mel"], cuts)
        totals.append(sum(counted))
    assert totals[0] == totals[1] > 0


def test_an_ended_stream_refuses_frames(generator):
    vocoder = StreamingVocoder(generator)
    vocoder.push(mx.zeros((1, 2, 80)), finalize=True)
    for finalize in (False, True):
        with pytest.raises(ValueError, match="the stream is over"):
            vocoder.push(mx.zeros((1, 1, 80)), finalize)


def test_another_shape_than_a_mel_is_refused(generator):
    vocoder = StreamingVocoder(generator)
    for shape in ((1, 80, 4), (2, 4, 80), (4, 80)):
        with pytest.raises(ValueError, match=r"takes \(1, n, 80\)"):
            vocoder.push(mx.zeros(shape))
    with pytest.raises(ValueError, match="without a mel frame"):
        vocoder.push(mx.zeros((1, 0, 80)), finalize=True)
    assert vocoder.push(mx.zeros((1, 3, 80)), finalize=True).shape == (1, 3 * HOP)


def test_too_short_noise_is_refused_and_leaves_the_stream_usable(generator):
    about = truth(9)
    vocoder = StreamingVocoder(generator, mx.array(about["noise"]))
    with pytest.raises(ValueError, match=f"has {9 * HOP} samples, the mel needs {10 * HOP}"):
        vocoder.push(mx.zeros((1, 10, 80)), finalize=True)
    whole = stream(StreamingVocoder(generator, mx.array(about["noise"])), about["mel"], [])
    np.testing.assert_array_equal(stream(vocoder, about["mel"], []), whole)


def test_a_stream_cannot_outlast_the_originals_noise(generator):
    vocoder = StreamingVocoder(generator)
    with pytest.raises(ValueError, match="fixed noise"):
        vocoder.push(mx.zeros((1, MAX_SAMPLES // HOP + 1, 80)), finalize=True)
