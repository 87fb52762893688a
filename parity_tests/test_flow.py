"""The flow decoder: properties that no single case can show."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parity.case import Case, normal, tokens
from mlx_parity.judge import failures, judge
from mlx_parity.sides.truth import reference_state
from parity_tests.cases import case, chunked, valid
from parity_tests.cases.flow import FLOW
from parity_tests.parts import PARTS

CFM = "flow.matching.CausalConditionalCFM"
DECODER = "flow.decoder.CausalMaskedDiffWithDiT.inference"
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def passes(parity, case: Case) -> None:
    assert not (broken := failures(judge(case, parity.adapter))), broken


@pytest.mark.part("flow.masks.make_pad_mask")
@QUICK
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4), room=st.integers(0, 5))
def test_pad_mask_of_any_lengths(parity, lengths, room):
    call = {"max_len": max(lengths) + room} if room else {}
    passes(parity, case("flow.masks.drawn", "flow.masks.make_pad_mask", None, call, lengths=np.array(lengths)))


@pytest.mark.part("flow.masks.subsequent_chunk_mask")
@QUICK
@given(n=st.integers(1, 120), chunk=st.integers(1, 60))
def test_chunk_mask_at_every_edge(parity, n, chunk):
    drawn = case("flow.masks.drawn", "flow.masks.subsequent_chunk_mask", None, dict(size=n, chunk_size=chunk))
    passes(parity, drawn)


@pytest.mark.part("flow.layers.Attention")
@pytest.mark.float32
@QUICK
@given(n=st.sampled_from((1, 2, 7, 8, 9, 15, 16, 17, 24)), padded=st.integers(0, 6), streaming=st.booleans())
def test_attention_of_any_length_and_padding(parity, n, padded, streaming):
    lengths = (n, max(1, n - padded))
    mask = chunked(n, 8 if streaming else n, *lengths)
    drawn = case(
        f"flow.attention.drawn.{n}.{padded}",
        "flow.layers.Attention",
        dict(dim=48, heads=3, dim_head=16),
        x=normal(2, n, 48),
        mask=mask,
    )
    passes(parity, drawn)


@pytest.mark.part("flow.matching.CausalConditionalCFM")
@pytest.mark.float32
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    n=st.sampled_from((2, 3, 7, 8, 9, 16, 17)),
    streaming=st.booleans(),
    guidance=st.sampled_from(("batched", "separate")),
)
def test_flow_matching_of_any_length(parity, n, streaming, guidance):
    drawn = case(
        f"flow.cfm.drawn.{n}",
        CFM,
        FLOW,
        dict(streaming=streaming, guidance=guidance, n_timesteps=3),
        mu=normal(1, 12, n),
        mask=valid(n, n),
        spks=normal(1, 12),
        cond=normal(1, 12, n),
        noise=normal(1, 12, n),
    )
    passes(parity, drawn)


@pytest.mark.part("flow.decoder.CausalMaskedDiffWithDiT.inference")
@pytest.mark.float32
@settings(max_examples=12, deadline=None, derandomize=True)
@given(new=st.integers(4, 14), prompt=st.integers(0, 6), streaming=st.booleans(), finalize=st.booleans())
def test_decoder_of_any_length(parity, new, prompt, streaming, finalize):
    drawn = case(
        f"flow.decoder.drawn.{new}.{prompt}",
        DECODER,
        FLOW,
        dict(streaming=streaming, finalize=finalize),
        token=tokens(1, new, high=61),
        prompt_token=tokens(1, prompt, high=61),
        prompt_feat=normal(1, 2 * prompt, 12),
        embedding=normal(1, 24),
        noise=normal(1, 12, 2 * (new + prompt)),
    )
    passes(parity, drawn)


def build(parity, part: str, config: Any) -> Any:
    drawn = case(f"flow.built.{part}", part, config)
    return parity.adapter.build(PARTS[part], config, reference_state(drawn))


@pytest.mark.part("flow.decoder.CausalMaskedDiffWithDiT.inference")
def test_equal_rows_in_give_equal_rows_out(parity):
    """Guidance needs it: MLX's fused rope once treated the rows of a batch differently."""
    dit = build(parity, "flow.dit.DiT", FLOW["dit"])
    rng = np.random.default_rng(3)
    x, mu, cond = (
        mx.array(np.repeat(rng.standard_normal((1, 23, 12)), 2, axis=0).astype(np.float32)) for _ in range(3)
    )
    spks = mx.array(np.repeat(rng.standard_normal((1, 12)), 2, axis=0).astype(np.float32))
    for streaming in (False, True):
        y = np.array(dit(x, None, mu, 0.4, spks, cond, streaming))
        assert np.array_equal(y[0], y[1])


@pytest.mark.part("flow.matching.CausalConditionalCFM.velocity")
def test_guidance_mixes_the_conditional_and_the_unconditional_half(parity):
    """One batch of two halves equals two calls; the unconditional half has zeros for features, speaker and prompt."""
    cfm = build(parity, CFM, FLOW)
    rng = np.random.default_rng(4)
    x, mu, cond = (mx.array(rng.standard_normal((1, 23, 12)).astype(np.float32)) for _ in range(3))
    spks = mx.array(rng.standard_normal((1, 12)).astype(np.float32))
    mask = mx.ones((1, 23), dtype=mx.bool_)
    batched = [np.array(v) for v in cfm.velocity(x, 0.4, mu, mask, spks, cond, True, "batched")]
    apart = [np.array(v) for v in cfm.velocity(x, 0.4, mu, mask, spks, cond, True, "separate")]
    for one, other in zip(batched, apart, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())
    zeros = [mx.zeros_like(v) for v in (mu, spks, cond)]
    alone = np.array(cfm.estimator(x, mask, zeros[0], 0.4, zeros[1], zeros[2], True))
    np.testing.assert_array_equal(apart[2], alone)


@pytest.mark.part("flow.dit.DiT")
def test_a_streamed_prefix_equals_the_longer_stream(parity):
    """Incremental streaming needs it: whole chunks do not depend on later frames."""
    dit = build(parity, "flow.dit.DiT", FLOW["dit"])
    rng = np.random.default_rng(5)
    x, mu, cond = (mx.array(rng.standard_normal((1, 32, 12)).astype(np.float32)) for _ in range(3))
    spks = mx.array(rng.standard_normal((1, 12)).astype(np.float32))
    whole = np.array(dit(x, None, mu, 0.4, spks, cond, True))
    for n in (8, 16, 24):
        part = np.array(dit(x[:, :n], None, mu[:, :n], 0.4, spks, cond[:, :n], True))
        assert np.abs(part - whole[:, :n]).max() < 1e-5 * np.abs(whole).max()


@pytest.mark.part("flow.decoder.CausalMaskedDiffWithDiT.inference")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(token=mx.full((1, 5), 61)), "61"),
        (dict(token=mx.zeros((2, 5), mx.int32)), "one utterance"),
        (dict(noise=mx.zeros((1, 3, 12))), "noise"),
        (dict(guidance="both"), "guidance"),
    ],
    ids=["token outside the table", "two rows", "short noise", "guidance"],
)
def test_an_impossible_request_is_one_clear_error(parity, change, message):
    decoder = build(parity, DECODER, FLOW)
    request = dict(
        token=mx.zeros((1, 5), mx.int32),
        prompt_token=mx.zeros((1, 0), mx.int32),
        prompt_feat=mx.zeros((1, 0, 12)),
        embedding=mx.ones((1, 24)),
        noise=mx.zeros((1, 10, 12)),
    )
    with pytest.raises(ValueError, match=message):
        decoder.inference(**{**request, **change})
