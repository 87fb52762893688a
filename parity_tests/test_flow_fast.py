"""Fast paths of the flow decoder: each alone, none and all within the budget of the suite, and none of them stale."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from parity_tests.cases.flow import CASES, FLOW
from parity_tests.harness.cases import case, normal, valid
from parity_tests.harness.oracle import reference_state
from parity_tests.harness.targets import TARGETS
from port.fast import arithmetic, modulation
from port.fast import attention as fast
from port.fast.paths import ALL_FAST, PLAIN, FastPaths, fast_paths
from port.flow import layers
from port.flow.matching import cosine_schedule

CFM = "flow.matching.CausalConditionalCFM"
# Of the paths, those that the flow decoder has.
ITS = (
    "modulation_tables",
    "fused_qkv",
    "chunked_attention",
    "fast_gelu",
    "fast_mish",
    "fast_softmax",
    "compiled",
)
SETTINGS = {
    "none": PLAIN,
    **{name: replace(PLAIN, **{name: True}) for name in ITS},
}
WITHOUT = {f"all_but_{name}": replace(ALL_FAST, **{name: False}) for name in ITS}
PARTS = (
    "flow.feed_forward.tanh",
    "flow.attention",
    "flow.attention.padded",
    "flow.attention.blind",
    "flow.conv_pos_embed",
    "flow.input_embed",
    "flow.dit.full",
    "flow.dit.all_valid",
    "flow.velocity.separate",
    "flow.cfm.steps.4",
)
WHOLE = ("flow.dit.all_valid", "flow.cfm.steps.4")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("part", PARTS)
def test_parity_of_each_path_alone(parity, part, setting):
    check(parity, part, setting, SETTINGS[setting])


@pytest.mark.parametrize("setting", WITHOUT)
@pytest.mark.parametrize("part", WHOLE)
def test_parity_without_each_path(parity, part, setting):
    check(parity, part, setting, WITHOUT[setting])


def check(parity, part: str, setting: str, paths: FastPaths) -> None:
    (row,) = (case for case in CASES if case.name == part)
    with fast_paths(paths):
        parity.check(replace(row, name=f"{row.name}.{setting}"))


@pytest.mark.parametrize("at_once", [1, 40, 1200], ids=["one query", "a few queries", "two heads"])
@pytest.mark.parametrize("part", ["flow.attention", "flow.attention.chunked", "flow.attention.blind"])
def test_parity_of_attention_in_blocks(parity, part, at_once, monkeypatch):
    """Blocks that end inside a row of heads and inside the queries; at real sizes they follow from the length."""
    monkeypatch.setattr(fast, "SCORES_AT_ONCE", at_once)
    check(parity, part, f"blocks.{at_once}", ALL_FAST)


@pytest.mark.parametrize("part", ["flow.attention", "flow.attention.chunked", "flow.attention.blind"])
def test_parity_of_attention_as_on_a_gpu(parity, part, monkeypatch):
    """Where heads stay views and MLX's own kernel attends."""
    for module in (fast, layers):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    check(parity, part, "gpu", ALL_FAST)


@pytest.mark.parametrize("n", [1, 49, 50, 51, 130])
def test_parity_at_the_official_chunk(parity, n):
    """Fifty frames a chunk, as in the model; lengths that do not end with a chunk."""
    sizes = {**FLOW, "dit": {**FLOW["dit"], "static_chunk_size": 50}}
    mel = dict(mu=normal(1, 12, n), cond=normal(1, 12, n), noise=normal(1, 12, n))
    call = dict(streaming=True, n_timesteps=2)
    parity.check(case(f"flow.cfm.official_chunk.{n}", CFM, sizes, call, mask=valid(n, n), spks=normal(1, 12), **mel))


def test_exp2_and_what_is_made_of_it_at_every_size():
    """From the smallest to the largest argument; 2^0 is 1, nothing overflows, and what is no number stays so."""
    x = np.concatenate([np.linspace(-200, 200, 20001), np.linspace(-1, 1, 2001)]).astype(np.float32)
    found = np.array(arithmetic.exp2(mx.array(x))).astype(np.float64)
    inside = np.abs(x) <= arithmetic.EXP_RANGE
    assert np.abs(found[inside] / np.exp2(x[inside].astype(np.float64)) - 1).max() < 2.5e-7
    assert np.isfinite(found).all()
    assert float(arithmetic.exp2(mx.array(0.0))) == 1.0
    for function in (arithmetic.exp2, arithmetic.gelu_tanh, arithmetic.mish_by_exp2, arithmetic.silu_by_exp2):
        assert np.isnan(float(function(mx.array(np.nan))))
    z = x.astype(np.float64)
    truth = 0.5 * z * (1 + np.tanh(arithmetic.TANH_SCALE * (z + arithmetic.TANH_CUBE * z**3)))
    assert np.abs(np.array(arithmetic.gelu_tanh(mx.array(x))) - truth).max() < 2e-5
    assert np.abs(np.array(arithmetic.gelu_tanh(mx.array(x))) - truth)[np.abs(z) < 8].max() < 1e-6
    truth = z * np.tanh(np.logaddexp(0, z))
    assert np.abs(np.array(arithmetic.mish_by_exp2(mx.array(x))) - truth).max() < 2e-5
    assert np.abs(np.array(arithmetic.mish_by_exp2(mx.array(x))) - truth)[np.abs(z) < 8].max() < 1e-6
    truth = z * np.exp(-np.logaddexp(0, -z))
    assert np.abs(np.array(arithmetic.silu_by_exp2(mx.array(x))) - truth).max() < 2e-5
    assert np.abs(np.array(arithmetic.silu_by_exp2(mx.array(x))) - truth)[np.abs(z) < 8].max() < 1e-6


@pytest.mark.parametrize(
    "function",
    [arithmetic.exp2, arithmetic.gelu_tanh, arithmetic.mish_by_exp2, arithmetic.silu_by_exp2],
    ids=lambda function: function.__name__,
)
def test_compiled_is_bitwise_the_same(function):
    x = mx.array(np.random.default_rng(0).standard_normal((3, 50, 64)).astype(np.float32))
    with fast_paths(compiled=True):
        one = np.array(arithmetic.fused(function, x))
    with fast_paths(compiled=False):
        other = np.array(arithmetic.fused(function, x))
    np.testing.assert_array_equal(one, other)


@pytest.fixture
def cfm(parity):
    drawn = case("flow.built.fast", CFM, FLOW)
    return parity.adapter.build(TARGETS[CFM], FLOW, reference_state(drawn))


def request(seed: int, n: int = 23) -> dict[str, mx.array | None]:
    rng = np.random.default_rng(seed)
    mu, cond, noise = (mx.array(rng.standard_normal((1, n, 12)).astype(np.float32)) for _ in range(3))
    spks = mx.array(rng.standard_normal((1, 12)).astype(np.float32))
    return dict(mu=mu, mask=None, spks=spks, cond=cond, noise=noise)


def close(one: mx.array, other: mx.array) -> bool:
    return np.abs(np.array(one - other)).max() < 2e-5 * np.abs(np.array(other)).max()


@pytest.mark.float32
@pytest.mark.parametrize("guidance", ["batched", "separate"])
def test_a_second_request_sees_nothing_of_the_first(cfm, guidance):
    """What is kept between steps belongs to one request, one length and one number of steps."""
    for seed, n, steps in ((0, 23, 3), (1, 23, 3), (1, 17, 3), (2, 17, 2), (0, 23, 3)):
        found = cfm(**request(seed, n), n_timesteps=steps, streaming=True, guidance=guidance)
        with fast_paths(PLAIN):
            assert close(found, cfm(**request(seed, n), n_timesteps=steps, streaming=True, guidance=guidance))


@pytest.mark.float32
@pytest.mark.parametrize(
    "name",
    [
        "estimator.time_embed.linear_1.bias",
        "estimator.transformer_blocks.1.attn_norm.linear.weight",
        "estimator.norm_out.linear.bias",
        "estimator.transformer_blocks.0.attn.to_q.weight",
        "estimator.transformer_blocks.0.attn.to_k.weight",
        "estimator.transformer_blocks.1.attn.to_v.bias",
        "estimator.input_embed.proj.weight",
    ],
)
def test_a_weight_that_changes_later_is_seen(cfm, name):
    before = cfm(**request(0), n_timesteps=2)
    old = dict(tree_flatten(cfm.parameters()))[name]
    cfm.load_weights([(name, old * 1.5 + 0.1)], strict=False)
    after = cfm(**request(0), n_timesteps=2)
    with fast_paths(PLAIN):
        assert close(after, cfm(**request(0), n_timesteps=2))
    assert not close(after, before)


def test_joined_weights_are_views_and_survive_saving(cfm, tmp_path):
    """Joining holds nothing twice, and the parameters stay what they were, by name and value."""
    before = {k: np.array(v) for k, v in tree_flatten(cfm.parameters())}
    held = mx.get_active_memory()
    mx.eval(cfm(**request(0), n_timesteps=1))
    attention = cfm.estimator.transformer_blocks[0].attn
    joined = attention.to_q.weight.nbytes * 3
    assert mx.get_active_memory() - held < 2 * joined + 200_000  # the tables and the request; not every block again
    cfm.save_weights(str(tmp_path / "cfm.safetensors"))
    for name, value in mx.load(str(tmp_path / "cfm.safetensors")).items():
        np.testing.assert_array_equal(np.array(value), before[name])


@pytest.mark.parametrize("mixed", [False, True], ids=["all quantized", "keys alone quantized"])
def test_quantized_layers_join_too(mixed):
    rng = np.random.default_rng(0)
    layers = [nn.Linear(64, 64) for _ in range(3)]
    x = mx.array(rng.standard_normal((2, 5, 64)).astype(np.float32))
    layers = [nn.QuantizedLinear.from_linear(layer) if i == 1 or not mixed else layer for i, layer in enumerate(layers)]
    apart = [np.array(layer(x)) for layer in layers]
    joined = fast.FusedLinear()(x, layers)
    for one, other in zip(joined, apart, strict=True):
        np.testing.assert_allclose(np.array(one), other, rtol=0, atol=1e-5)


def test_tables_hold_the_times_that_the_steps_ask_for(cfm, monkeypatch):
    """The schedule's times are made before the first step, in one product, and no step makes another."""
    made = []
    tabulate = modulation.tabulate
    monkeypatch.setattr(modulation, "tabulate", lambda dit, times: made.append(list(times)) or tabulate(dit, times))
    for _ in range(2):
        cfm(**request(0))
    asked = [t for _, t in cfm.solve_euler(request(0)["noise"], cosine_schedule(10), **conditions(request(0)))]
    assert made == [[float(t) for t in asked[:-1]]]
    for steps in range(11, 16):
        cfm(**request(0, 2), n_timesteps=steps)
    assert len(cfm.estimator.modulation_tables._kept[1]) <= modulation.MAX_TIMES


def conditions(drawn: dict) -> dict:
    return {name: value for name, value in drawn.items() if name != "noise"}


@pytest.mark.float32
@pytest.mark.parametrize(
    ("path", "where", "name"),
    [
        ("modulation_tables", modulation, "tabulate"),
        ("fused_qkv", fast, "_join"),
        ("fast_softmax", fast, "_attention_by_exp2"),
        ("fast_gelu", arithmetic, "_exp2_coefficients"),
        ("fast_mish", arithmetic, "mish_by_exp2"),
        ("compiled", arithmetic, "_compiled"),
    ],
)
def test_a_path_is_taken_when_it_is_on_and_only_then(cfm, monkeypatch, path, where, name):
    if path in ("fast_softmax", "fast_gelu", "fast_mish") and not (arithmetic.on_cpu() and fast._has_compiler()):
        pytest.skip("a path of CPUs that compile")
    if path == "compiled" and not arithmetic.compiles_exactly():
        pytest.skip("this MLX rounds the constants of what it compiles")

    def taken(*_: object) -> None:
        raise RuntimeError("taken")

    monkeypatch.setattr(where, name, taken)
    with fast_paths(replace(PLAIN, **{path: True})), pytest.raises(RuntimeError, match="taken"):
        cfm(**request(0), n_timesteps=1)
    with fast_paths(PLAIN):
        cfm(**request(0), n_timesteps=1)


def test_nothing_is_compiled_where_that_rounds_constants(cfm, monkeypatch):
    """As MLX does before 0.32.3."""
    before = np.array(cfm(**request(0), n_timesteps=1))
    monkeypatch.setattr(arithmetic, "compiles_exactly", lambda: False)
    monkeypatch.setattr(arithmetic, "_compiled", lambda *_: pytest.fail("compiled"))
    with fast_paths(compiled=True):
        found = np.array(cfm(**request(0), n_timesteps=1))
    np.testing.assert_array_equal(found, before)


def test_every_frame_valid_needs_no_mask(cfm):
    dit = cfm.estimator
    for mask in (None, mx.ones((2, 23), dtype=mx.bool_)):
        assert dit.attention_mask(mask, 23, streaming=False) is None
        assert dit.attention_mask(mask, 8, streaming=True) is None
        assert dit.attention_mask(mask, 23, streaming=True) == fast.Chunks(8)
        with fast_paths(chunked_attention=False):
            assert dit.attention_mask(mask, 23, streaming=True).shape == (1, 1, 23, 23)


@pytest.mark.parametrize("guidance", ["batched", "separate"])
@pytest.mark.parametrize("paths", [PLAIN, ALL_FAST], ids=["plain", "fast"])
def test_a_baked_decoder_gives_the_same_without_the_weights(cfm, guidance, paths):
    def mel(**more):
        with fast_paths(paths):
            return np.array(cfm(**request(3), guidance=guidance, streaming=True, **more))

    with fast_paths(replace(paths, modulation_tables=True)):
        expected = np.array(cfm(**request(3), guidance=guidance, streaming=True))
    dit = cfm.estimator
    parts = (dit.time_embed, *(norm.linear for norm in modulation.norms(dit)))
    freed = sum(value.nbytes for part in parts for _, value in tree_flatten(part.parameters()))
    del parts
    held = mx.get_active_memory()
    cfm.bake()
    # The tables are small beside the weights even here; a reference left anywhere would keep the weights in memory.
    assert held - mx.get_active_memory() > 0.9 * freed
    np.testing.assert_array_equal(mel(), expected)
    with pytest.raises(ValueError, match="not among the timesteps that were baked"):
        mel(n_timesteps=4)
