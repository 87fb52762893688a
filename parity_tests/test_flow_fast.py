"""Fast forms of the flow decoder are within the budget: each alone, none, and all but one."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_parity.case import normal
from mlx_parity.judge import judge
from mlx_parity.sides.truth import reference_state
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import case, valid
from parity_tests.cases.flow import CASES, FLOW
from parity_tests.parts import PARTS
from port.fast import FORMS, arithmetic, chosen, modulation, replaced, speed_up
from port.fast import attention as fast
from port.flow.layers import Attention
from port.flow.matching import cosine_schedule

pytestmark = pytest.mark.part("fast.attention")

CFM = "flow.matching.CausalConditionalCFM"
# What each form puts into the flow decoder.
CLASSES = {
    "tables": {"TimeTable", "VectorTable", "RotaryTables"},
    "attention": {"FastAttention", "ChunkedDiT"},
    "joined": {"FastAttention", "ChunkedDiT"},
    "blocks": {"FastAttention", "ChunkedDiT"},
    "activations": {"Activation"},
    "products": {"ProductConv1d"},
}
SETTINGS = {"none": (), **{name: (name,) for name in CLASSES}}
WITHOUT = {f"all_but_{name}": tuple(set(CLASSES) - {name}) for name in CLASSES}
SOME = (
    "flow.feed_forward.tanh",
    "flow.attention",
    "flow.attention.padded",
    "flow.attention.blind",
    "flow.conv_pos_embed",
    "flow.input_embed",
    "flow.dit.full",
    "flow.dit.all_valid",
    "flow.velocity.separate",
    "flow.cfm.full",
    "flow.cfm.steps.4",
)
WHOLE = ("flow.dit.all_valid", "flow.cfm.full")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("part", SOME)
def test_parity_of_each_form_alone(parity, part, setting):
    check(parity, part, setting, SETTINGS[setting])


@pytest.mark.parametrize("setting", WITHOUT)
@pytest.mark.parametrize("part", WHOLE)
def test_parity_without_each_form(parity, part, setting):
    check(parity, part, setting, WITHOUT[setting])


def check(parity, part: str, setting: str, forms: tuple[str, ...] | None) -> None:
    (row,) = (case for case in CASES if case.name == part)
    adapter = OwnPort(parity.adapter.precision, chosen() if forms is None else forms)
    parity.add(judge(replace(row, name=f"{row.name}.{setting}"), adapter))


@pytest.mark.parametrize("at_once", [1, 40, 1200], ids=["one query", "a few queries", "two heads"])
@pytest.mark.parametrize("part", ["flow.attention", "flow.attention.chunked", "flow.attention.blind"])
def test_parity_of_attention_in_blocks(parity, part, at_once, monkeypatch):
    """Blocks that end inside a row of heads and inside the queries, as they do at real lengths."""
    monkeypatch.setattr(fast, "SCORES_AT_ONCE", at_once)
    check(parity, part, f"blocks.{at_once}", ("blocks",))


@pytest.mark.parametrize("part", ["flow.attention", "flow.attention.chunked", "flow.attention.blind"])
def test_parity_of_attention_as_on_a_gpu(parity, part, monkeypatch):
    """There the heads stay views and MLX's own kernel attends."""
    monkeypatch.setattr(fast, "on_cpu", lambda: False)
    check(parity, part, "gpu", ("attention",))


@pytest.mark.parametrize("n", [1, 49, 50, 51, 130])
def test_parity_at_the_official_chunk(parity, n):
    """Chunks of fifty frames, as in the model, and lengths that end inside a chunk."""
    sizes = {**FLOW, "dit": {**FLOW["dit"], "static_chunk_size": 50}}
    mel: dict[str, Any] = dict(mu=normal(1, 12, n), cond=normal(1, 12, n), noise=normal(1, 12, n))
    call = dict(streaming=True, n_timesteps=2)
    parity.check(case(f"flow.cfm.official_chunk.{n}", CFM, sizes, call, mask=valid(n, n), spks=normal(1, 12), **mel))


def test_exp2_and_the_activations_at_arguments_of_any_size():
    """2^0 is exactly 1, nothing overflows, and NaN stays NaN."""
    x = np.concatenate([np.linspace(-200, 200, 20001), np.linspace(-1, 1, 2001)]).astype(np.float32)
    found = np.array(arithmetic.exp2(mx.array(x))).astype(np.float64)
    inside = np.abs(x) <= arithmetic.EXP_RANGE
    assert np.abs(found[inside] / np.exp2(x[inside].astype(np.float64)) - 1).max() < 2.5e-7
    assert np.isfinite(found).all()
    assert float(arithmetic.exp2(mx.array(0.0))) == 1.0
    for function in (arithmetic.exp2, arithmetic.gelu_tanh, arithmetic.mish, arithmetic.silu):
        assert np.isnan(float(function(mx.array(np.nan))))
    z = x.astype(np.float64)
    truth = 0.5 * z * (1 + np.tanh(arithmetic.TANH_SCALE * (z + arithmetic.TANH_CUBE * z**3)))
    assert np.abs(np.array(arithmetic.gelu_tanh(mx.array(x))) - truth).max() < 2e-5
    assert np.abs(np.array(arithmetic.gelu_tanh(mx.array(x))) - truth)[np.abs(z) < 8].max() < 1e-6
    truth = z * np.tanh(np.logaddexp(0, z))
    assert np.abs(np.array(arithmetic.mish(mx.array(x))) - truth).max() < 2e-5
    assert np.abs(np.array(arithmetic.mish(mx.array(x))) - truth)[np.abs(z) < 8].max() < 1e-6
    truth = z * np.exp(-np.logaddexp(0, -z))
    assert np.abs(np.array(arithmetic.silu(mx.array(x))) - truth).max() < 2e-5
    assert np.abs(np.array(arithmetic.silu(mx.array(x))) - truth)[np.abs(z) < 8].max() < 1e-6


@pytest.mark.parametrize(
    "function",
    [arithmetic.exp2, arithmetic.gelu_tanh, arithmetic.mish, arithmetic.silu],
    ids=lambda function: function.__name__,
)
def test_a_compiled_activation_gives_the_same_bits(function):
    x = mx.array(np.random.default_rng(0).standard_normal((3, 50, 64)).astype(np.float32))
    np.testing.assert_array_equal(np.array(arithmetic.fused(function)(x)), np.array(function(x)))


def test_nothing_is_compiled_if_mlx_rounds_constants(monkeypatch):
    """As MLX does before 0.32.3."""
    monkeypatch.setattr(arithmetic, "compiles_exactly", lambda: False)
    assert arithmetic.fused(arithmetic.exp2) is arithmetic.exp2


def built(forms=()):
    drawn = case("flow.built.fast", CFM, FLOW)
    return OwnPort(forms=forms).build(PARTS[CFM], FLOW, reference_state(drawn))


def request(seed: int, n: int = 23) -> dict[str, mx.array | None]:
    rng = np.random.default_rng(seed)
    mu, cond, noise = (mx.array(rng.standard_normal((1, n, 12)).astype(np.float32)) for _ in range(3))
    spks = mx.array(rng.standard_normal((1, 12)).astype(np.float32))
    return dict(mu=mu, mask=None, spks=spks, cond=cond, noise=noise)


def bytes_of(module: nn.Module) -> int:
    return sum(array.nbytes for array in dict(tree_flatten(module.parameters())).values())


def close(one: mx.array, other: mx.array) -> bool:
    return np.abs(np.array(one - other)).max() < 2e-5 * np.abs(np.array(other)).max()


@pytest.mark.float32
@pytest.mark.parametrize("guidance", ["batched", "separate"])
def test_a_second_request_sees_nothing_of_the_first(guidance):
    """Requests of other lengths and numbers of steps; the tables lack the times of other numbers of steps."""
    plain, cfm = built(), built(chosen())
    for seed, n, steps in ((0, 23, 10), (1, 23, 3), (1, 17, 3), (2, 17, 2), (0, 23, 10)):
        call = dict(n_timesteps=steps, streaming=True, guidance=guidance)
        assert close(cfm(**request(seed, n), **call), plain(**request(seed, n), **call))


@pytest.mark.parametrize("form", CLASSES)
def test_a_requested_form_is_put_in_place(form):
    assert set(replaced(built((form,)))) == CLASSES[form]
    assert not replaced(built())


def test_the_chosen_forms_are_put_in_place_by_default():
    assert set(chosen()) <= set(FORMS)
    expected = set().union(*(CLASSES.get(name, set()) for name in chosen()))
    if "cores" in chosen():  # it replaces a form; the linear layers here are too small for it
        expected = {name.replace("Product", "Divided") for name in expected}
    assert set(replaced(speed_up(built()))) == expected


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"fast form 'fastest' is unknown; the forms are own_dtype"):
        built(("fastest",))


def test_putting_forms_in_place_twice_changes_nothing():
    cfm = built(chosen())
    before = np.array(cfm(**request(0)))
    again = speed_up(cfm)
    assert again is cfm
    np.testing.assert_array_equal(np.array(cfm(**request(0))), before)


def test_fast_forms_do_not_hold_weights_twice():
    """Except tables. Without MLX's cache: an array may reuse a buffer that is larger than itself."""
    usual = mx.set_cache_limit(0)
    try:
        cfm = built()
        held, weights = mx.get_active_memory(), bytes_of(cfm)
        speed_up(cfm, [name for name in chosen() if name != "tables"])
        assert bytes_of(cfm) == weights
        assert mx.get_active_memory() - held < 0.02 * weights
    finally:
        mx.set_cache_limit(usual)


@pytest.mark.parametrize("mixed", [False, True], ids=["all quantized", "keys alone quantized"])
def test_quantized_projections_are_joined_if_all_are(mixed):
    plain, x = Attention(64, 2, 32), mx.array(np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32))
    for name in fast.PROJECTIONS:
        if name == "to_k" or not mixed:
            plain[name] = nn.QuantizedLinear.from_linear(plain[name])
    apart = np.array(plain(x))
    joined = speed_up(plain, ["joined"])
    assert ("to_qkv" in joined) is not mixed
    np.testing.assert_allclose(np.array(joined(x)), apart, rtol=0, atol=1e-5)


def test_tables_hold_the_times_of_the_steps(monkeypatch):
    """A step computes no linear layer of a norm."""
    cfm = built(("tables",))
    for norm in modulation.norms(cfm.estimator):
        monkeypatch.setattr(norm.linear, "linear", lambda _: pytest.fail("computed in a step"))
    mx.eval(cfm(**request(0)))
    asked = [t for _, t in cfm.solve_euler(request(0)["noise"], cosine_schedule(10), **conditions(request(0)))]
    assert np.array(cfm.estimator.time_embed.times).tolist() == [float(t) for t in asked[:-1]]


def conditions(drawn: dict) -> dict:
    return {name: value for name, value in drawn.items() if name != "noise"}


def test_no_mask_is_built_if_every_frame_is_valid():
    plain, dit = built().estimator, built(("attention",)).estimator
    for mask in (None, mx.ones((2, 23), dtype=mx.bool_)):
        assert dit.attention_mask(mask, 23, streaming=False) is None
        assert dit.attention_mask(mask, 8, streaming=True) is None
        assert dit.attention_mask(mask, 23, streaming=True) == fast.Chunks(8)
        assert plain.attention_mask(mask, 23, streaming=True).shape == (1, 1, 23, 23)
    assert dit.attention_mask(mx.arange(23)[None] < 9, 23, streaming=True).shape == (1, 1, 23, 23)


def test_rotary_tables_equal_the_plain_angles_at_any_position():
    plain, tables = built().estimator.rotary_embed, built(("tables",)).estimator.rotary_embed
    for length, offset in ((5, 0), (3, modulation.POSITIONS - 3), (6, modulation.POSITIONS - 3), (6, 14_996)):
        for one, other in zip(tables.tables(length, offset), plain.tables(length, offset), strict=True):
            np.testing.assert_array_equal(np.array(one), np.array(other))


@pytest.mark.parametrize("guidance", ["batched", "separate"])
@pytest.mark.parametrize("forms", [(), None], ids=["plain", "fast"])
def test_a_baked_decoder_gives_the_same_and_frees_the_weights(guidance, forms):
    cfm = built(("tables",))

    def mel(**more):
        return np.array(cfm(**request(3), guidance=guidance, streaming=True, **more))

    expected = mel()
    cfm = built()
    dit = cfm.estimator
    parts = (dit.time_embed, *(norm.linear for norm in modulation.norms(dit)))
    weights = [weakref.ref(array) for part in parts for array in dict(tree_flatten(part.parameters())).values()]
    del parts
    modulation.bake(cfm)
    gc.collect()
    assert weights and not [value for value in weights if value() is not None]
    np.testing.assert_array_equal(mel(), expected)
    cfm = speed_up(cfm, forms)
    assert close(mx.array(mel()), mx.array(expected))
    with pytest.raises(ValueError, match="not among the timesteps that were baked"):
        mel(n_timesteps=4)
