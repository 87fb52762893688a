"""The batched flow decoder: each row equals the original's result for it alone, whatever the other rows hold."""

from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.judge import Row
from mlx_parity.sides.truth import Arrays, against, run_reference, to_torch
from parity_tests.cases.flow import FLOW, FULL_WIDTH
from parity_tests.parts import swap
from parity_tests.stream_support import INFERENCE, RATIO, small_flow, small_state
from port.batched import flow as batched
from port.batched.flow import FlowRow, flow_row, mels
from port.flow.decoder import CausalMaskedDiffWithDiT
from port.noise import rand_noise
from port.request import Prompt

pytestmark = pytest.mark.part("batched.flow")

BATCHED = "batched.flow"
SIZES = ((17, 6), (5, 0), (9, 11))  # tokens and prompt tokens of each utterance


def drawn(vocab_size: int, mels: int, embedding: int) -> list[Arrays]:
    """Utterances for the reference; the noise of each is longer than needed, by a different length."""
    rng = np.random.default_rng(18)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return [
        {
            "token": rng.integers(0, vocab_size, (1, count)).astype(np.int32),
            "prompt_token": rng.integers(0, vocab_size, (1, prompt)).astype(np.int32),
            "prompt_feat": normal(1, RATIO * prompt, mels),
            "embedding": normal(1, embedding),
            "noise": normal(1, mels, RATIO * (count + prompt) + count),
        }
        for count, prompt in SIZES
    ]


SMALL = drawn(61, 12, 24)


def row(flow: CausalMaskedDiffWithDiT, about: Arrays, noise: bool = True) -> FlowRow:
    """One utterance for the port; without `noise` it takes the original's."""
    token, prompt_token, feat, embedding, waves = about.values()
    prompt = Prompt(mx.array(embedding), flow_prompt_speech_token=prompt_token, prompt_speech_feat=mx.array(feat))
    return flow_row(flow, token, prompt, mx.array(swap(waves)) if noise else None)


def same(one: list[mx.array], other: list[mx.array]) -> bool:
    """To the bit."""
    return all(np.array_equal(np.array(a), np.array(b)) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def rows(flow):
    return [row(flow, about) for about in SMALL]


@pytest.mark.parametrize("forms", [(), None], ids=["plain", "fast"])
def test_each_row_is_what_the_original_gives_for_it_alone(parity, forms, request):
    flow, state, found = small_flow(forms), small_state(), []

    def reference(dtype: torch.dtype, about: Arrays) -> np.ndarray:
        return swap(run_reference(INFERENCE, FLOW, state, about, {}, dtype)["feat"])

    for i, mel in enumerate(mels(flow, [row(flow, about) for about in SMALL])):
        reading = against(np.array(mel), partial(reference, about=SMALL[i]))
        name = f"{BATCHED}.{request.node.callspec.id}.{i}"
        found.append(Row(f"{name}.feat", "flow", "isolated", BATCHED, name, reading))
    parity.add(found)


@pytest.mark.float32
def test_the_checkpoint_too(parity):
    models, config, found = parity.models, parity.models.config.flow, []
    spoken = drawn(config.vocab_size, config.output_size, config.spk_embed_dim)

    def reference(dtype: torch.dtype, about: Arrays) -> np.ndarray:
        flow = (models.single if dtype == torch.float32 else models.double).flow
        return swap(flow.inference(**{name: to_torch(value, dtype) for name, value in about.items()}).numpy())

    for i, mel in enumerate(mels(models.port.flow, [row(models.port.flow, about) for about in spoken])):
        reading = against(np.array(mel), partial(reference, about=spoken[i]))
        name = f"walk.{BATCHED}.{i}"
        found.append(Row(f"{name}.feat", "flow", "chained", BATCHED, name, reading))
    parity.add(found)


def test_equal_rows_in_give_equal_rows_out(flow, rows):
    first, middle, last = mels(flow, [rows[1], rows[0], rows[1]])
    assert same([first], [last])
    assert not same([first], [middle[:, : first.shape[1]]])


def test_permuted_rows_give_permuted_mels(flow, rows):
    order = (2, 0, 1)
    found = mels(flow, rows)
    assert same(mels(flow, [rows[i] for i in order]), [found[i] for i in order])


def test_rows_of_one_length_take_no_mask(flow, rows, monkeypatch):
    monkeypatch.setattr(batched, "make_pad_mask", lambda _: pytest.fail("a mask was made"))
    assert same(mels(flow, [rows[0], rows[0]]), mels(flow, [rows[0]]) * 2)


@pytest.mark.parametrize("changed", [0, 1])
def test_a_row_does_not_feel_its_neighbours(flow, rows, changed):
    """Not even one that is NaN."""
    broken = [replace(r, noise=r.noise * np.nan) if i == changed else r for i, r in enumerate(rows)]
    found, again = mels(flow, rows), mels(flow, broken)
    assert np.isnan(np.array(again.pop(changed))).all()
    found.pop(changed)
    assert same(again, found)


def test_nothing_behind_the_end_of_a_row_reaches_it(flow, rows, monkeypatch):
    found, plain = mels(flow, rows), batched.padded

    def filled(arrays):
        lengths = mx.array([array.shape[1] for array in arrays])
        behind = mx.arange(max(array.shape[1] for array in arrays)) >= lengths[:, None]
        return mx.where(behind[..., None], 50.0, plain(arrays))

    monkeypatch.setattr(batched, "padded", filled)
    assert same(mels(flow, rows), found)


def test_without_noise_the_original_s_is_used():
    official = CausalMaskedDiffWithDiT(INFERENCE.read(INFERENCE.config, FULL_WIDTH))
    made = row(official, drawn(61, 80, 24)[0], noise=False)
    np.testing.assert_array_equal(np.array(made.noise), swap(rand_noise(46)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(token=np.full((1, 17), 61)), "speech token 61 is outside"),
        (dict(token=np.zeros((2, 17), np.int32)), "one utterance at a time"),
        (dict(prompt_feat=np.zeros((1, 99, 12), np.float32)), "too few for a prompt of 99"),
        (dict(noise=np.zeros((1, 12, 45), np.float32)), "noise holds 45 frames, the mel needs 46"),
    ],
    ids=["token", "rows", "prompt", "noise"],
)
def test_an_impossible_row_is_refused_before_it_meets_others(flow, changed, message):
    with pytest.raises(ValueError, match=message):
        row(flow, SMALL[0] | changed)
