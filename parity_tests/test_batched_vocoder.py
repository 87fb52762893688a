"""The batched vocoder: each row equals the original's result for it alone, whatever the other rows hold."""

from collections.abc import Collection, Sequence
from functools import cache, partial

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.judge import Row
from mlx_parity.sides.truth import Arrays, against, reference_state, run_reference, to_torch
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import case
from parity_tests.cases.vocoder import GENERATOR, HIFT
from parity_tests.parts import PARTS, swap
from port.batched import vocoder as batched
from port.batched.vocoder import waves
from port.vocoder.generator import CausalHiFTGenerator

pytestmark = pytest.mark.part("batched.vocoder")

BATCHED = "batched.vocoder"
INFERENCE = PARTS[f"{GENERATOR}.inference"]
FRAMES, HOP = (14, 3, 9), 480


@cache
def state() -> Arrays:
    return reference_state(case("vocoder.batched", INFERENCE.path, HIFT))


@cache
def drawn() -> list[Arrays]:
    """Utterances for the reference; the noise of each is longer than needed, by a different length."""
    rng = np.random.default_rng(18)
    return [
        {
            "speech_feat": rng.standard_normal((1, 80, n)).astype(np.float32),
            "sine_waves": rng.uniform(0, 1, (1, n * HOP + 10 * n, 9)).astype(np.float32),
        }
        for n in FRAMES
    ]


@cache
def given() -> tuple[list[mx.array], list[mx.array]]:
    """Mels and noise of these utterances for the port."""
    return [mx.array(swap(u["speech_feat"])) for u in drawn()], [mx.array(u["sine_waves"]) for u in drawn()]


def built(forms: Collection[str] | None = None, **changed: float) -> CausalHiFTGenerator:
    return OwnPort(forms=forms).build(INFERENCE, HIFT | changed, state())


def same(one: Sequence[mx.array], other: Sequence[mx.array]) -> bool:
    """To the bit."""
    return all(np.array_equal(np.array(a), np.array(b)) for a, b in zip(one, other, strict=True))


def reference(dtype: torch.dtype, utterance: Arrays) -> np.ndarray:
    return run_reference(INFERENCE, HIFT, state(), utterance, {}, dtype)["wav"]


@pytest.fixture(scope="module")
def generator():
    return built()


@pytest.mark.parametrize("forms", [(), None, ("polyphase", "padded")], ids=["plain", "fast", "as_on_metal"])
def test_each_row_is_what_the_original_gives_for_it_alone(parity, forms, request):
    found = []
    for i, wav in enumerate(waves(built(forms), *given())):
        reading = against(np.array(wav), partial(reference, utterance=drawn()[i]))
        name = f"{BATCHED}.{request.node.callspec.id}.{i}"
        found.append(Row(f"{name}.wav", "vocoder", "isolated", BATCHED, name, reading))
    parity.add(found)


def test_the_checkpoint_too(parity):
    models, found = parity.models, []

    def reference(dtype: torch.dtype, utterance: Arrays) -> np.ndarray:
        vocoder = (models.single if dtype == torch.float32 else models.double).vocoder
        return vocoder.inference(**{name: to_torch(value, dtype) for name, value in utterance.items()})[0].numpy()

    for i, wav in enumerate(waves(models.port.vocoder, *given())):
        reading = against(np.array(wav), partial(reference, utterance=drawn()[i]))
        name = f"walk.{BATCHED}.{i}"
        found.append(Row(f"{name}.wav", "vocoder", "chained", BATCHED, name, reading))
    parity.add(found)


def test_equal_rows_in_give_equal_rows_out(generator):
    first, middle, last = waves(generator, *([of[1], of[0], of[1]] for of in given()))
    assert same([first], [last])
    assert not same([first], [middle[:, : first.shape[1]]])


def test_permuted_rows_give_permuted_samples(generator):
    order, found = (2, 0, 1), waves(generator, *given())
    assert same(waves(generator, *([of[i] for i in order] for of in given())), [found[i] for i in order])


@pytest.mark.parametrize("changed", [0, 1])
def test_a_row_does_not_feel_its_neighbours(generator, changed):
    """Not even one that is NaN."""
    mels, noise = given()
    found = waves(generator, mels, noise)
    again = waves(generator, [mel * np.nan if i == changed else mel for i, mel in enumerate(mels)], noise)
    assert np.isnan(np.array(again.pop(changed))).any()
    found.pop(changed)
    assert same(again, found)


def test_nothing_behind_the_end_of_an_excitation_reaches_a_row(generator, monkeypatch):
    """Past the end of a mel zeros are read, as for one row; past the end of the excitation's spectrum nothing is."""
    found, plain = waves(generator, *given()), batched.padded

    def filled(arrays):
        if arrays[0].shape[2] == generator.config.in_channels:
            return plain(arrays)
        lengths = mx.array([array.shape[1] for array in arrays])
        behind = mx.arange(max(array.shape[1] for array in arrays)) >= lengths[:, None]
        return mx.where(behind[..., None], np.nan, plain(arrays))

    monkeypatch.setattr(batched, "padded", filled)
    assert same(waves(generator, *given()), found)


def test_rows_are_limited_as_the_whole():
    """With a limit that these mels exceed: limiting is the last step, so it only clips the samples."""
    free, loud = (waves(built(audio_limit=at), *given()) for at in (1e3, 0.02))
    assert same(loud, [mx.clip(wav, -0.02, 0.02) for wav in free])
    assert all(0 < (np.abs(np.array(wav)) >= np.float32(0.02)).mean() < 1 for wav in loud)


def test_without_noise_the_original_s_is_used(generator):
    mels, noise = given()
    found = waves(generator, mels[1:], [None, noise[2]])
    alone = {"speech_feat": drawn()[1]["speech_feat"]}
    reading = against(np.array(found[0]), partial(reference, utterance=alone))
    assert reading.status == "PASS", reading.message
    assert same(waves(generator, mels[1:])[:1], found[:1])


def test_noise_that_ends_too_soon_is_refused(generator):
    mels, noise = given()
    short = [noise[0], noise[1][:, : 3 * HOP - 1], noise[2]]
    with pytest.raises(ValueError, match=f"has {3 * HOP - 1} samples, the mel needs {3 * HOP}"):
        waves(generator, mels, short)
