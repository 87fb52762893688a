"""Dtypes along a half-precision model, from token ids on: sums are float32, products are in the dtype of their weights.

A loud input shows a sum that left float32 only where it overflows, and none where it starts from embeddings that the
test gives in float32. Here the dtypes themselves are looked at, of a model as converted and of one that is half
throughout, as others publish them.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from convert.quantize import PARTS, Precision
from parity_tests.speech_support import SMALL, small_models
from port.flow import fast, layers
from port.flow.incremental import StreamingFlow
from port.flow.matching import CausalConditionalCFM
from port.llm import qwen2
from port.llm.speech_lm import CosyVoice3LM
from port.storage import DTYPES
from port.vocoder.generator import CausalHiFTGenerator

HALVES = ("float16", "bfloat16")
HOW = ("as converted", "every part", "throughout")
FLOAT32 = {mx.float32}
# What adds up over many terms or layers: all that these get and give is float32, whatever the weights are.
SUMS = (
    (qwen2.Qwen2DecoderLayer, "__call__"),
    (qwen2.Qwen2RMSNorm, "__call__"),
    (qwen2.Qwen2Model, None),  # gives, not gets: its embeddings have the table's dtype
    (CosyVoice3LM, "scores"),
    (layers.DiTBlock, "__call__"),
    (layers.AdaLayerNormZero, "__call__"),
    (layers.AdaLayerNormZero, "modulation"),
    (layers.AdaLayerNormZero_Final, "__call__"),
    (layers.AdaLayerNormZero_Final, "modulation"),
    (nn.LayerNorm, "__call__"),
    (CausalConditionalCFM, "velocity"),
    (CausalConditionalCFM, "__call__"),
    (StreamingFlow, "_velocity"),
    (StreamingFlow, "push"),
    (CausalHiFTGenerator, "spectrum"),
    (CausalHiFTGenerator, "inference"),
)
PITCH = {"f0_predictor", "m_source"}  # which nobody halves: its error grows with time
# Arguments that are no part of a sum: linears round them to their own dtype.
LEFT_OUT = {"emb", "t", "mu", "cond", "spks", "given", "halves", "hidden", "token"}


@pytest.fixture(scope="module")
def halves():
    """The small model in half precision, by dtype and how much of it is."""
    made = {}

    def give(dtype, how):
        if (dtype, how) not in made:
            _, model = small_models()
            if how == "throughout":
                half = DTYPES[Precision(dtype).tag("llm.speech_embedding.weight")][0]
                wanted = lambda name: mx.float32 if PITCH & set(name.split(".")) else half  # noqa: E731
            else:
                precision = Precision(dtype, tuple(PARTS) if how == "every part" else Precision().parts)
                wanted = lambda name: DTYPES[precision.tag(name)][0]  # noqa: E731
            model.load_weights([(k, v.astype(wanted(k))) for k, v in tree_flatten(model.parameters())])
            made[dtype, how] = model
        return made[dtype, how]

    return give


def dtypes(value):
    """Of all float arrays in a value."""
    found = set()
    tree_map(lambda x: found.add(x.dtype) if isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating) else x,
             value if isinstance(value, tuple | list | dict) else [value])  # fmt: skip
    return found


@pytest.fixture
def watched(monkeypatch):
    """Where a sum is not float32, and how often each was looked at; linears that would promote their weights."""
    wrong, seen = set(), {}

    def watch(owner, name, label):
        original = getattr(owner, name)
        names = original.__code__.co_varnames[1 : original.__code__.co_argcount]

        def call(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            ins = set() if label.endswith("Qwen2Model") else dtypes([v for k, v in given.items() if k not in LEFT_OUT])
            wrong.update(f"{label}: {d}" for d in (ins | dtypes(result)) - FLOAT32)
            seen[label] = seen.get(label, 0) + 1
            return result

        monkeypatch.setattr(owner, name, call)

    for owner, name in SUMS:
        watch(owner, name or "__call__", f"{owner.__name__}.{name}" if name else owner.__name__)

    def linear(self, x):
        if x.dtype != self.weight.dtype:
            wrong.add(f"Linear of {self.weight.dtype} weights: {x.dtype}")
        seen["Linear"] = seen.get("Linear", 0) + 1
        return plain(self, x)

    plain = nn.Linear.__call__
    monkeypatch.setattr(nn.Linear, "__call__", linear)
    for place, name in ((mx, "logsumexp"), (mx.fast, "rms_norm"), (mx.fast, "scaled_dot_product_attention")):
        watch_function(monkeypatch, place, name, wrong, seen)
    watch_function(monkeypatch, fast, "attention", wrong, seen)
    return wrong, seen


def watch_function(monkeypatch, place, name, wrong, seen):
    """On a CPU, where MLX would round scores to the dtype of the queries."""
    original = getattr(place, name)

    def call(x, *args, **kwargs):
        wrong.update(f"{name}: {d}" for d in dtypes(x) - FLOAT32)
        seen[name] = seen.get(name, 0) + 1
        return original(x, *args, **kwargs)

    monkeypatch.setattr(place, name, call)
    if place is fast:
        monkeypatch.setattr(layers, name, call)


def speech_ids(count, seed=0):
    return np.random.default_rng(seed).integers(30, 54, (1, count)).astype(np.int32)


def prompt(tokens=28):
    feat = np.random.default_rng(1).standard_normal((1, 2 * tokens, 80)).astype(np.float32)
    return speech_ids(tokens), mx.array(feat), mx.ones((1, SMALL.flow.spk_embed_dim))


CPU = pytest.mark.skipif(mx.default_device().type != mx.DeviceType.cpu, reason="a GPU keeps scores float32 by itself")


@CPU
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", HALVES)
def test_sums_of_the_language_model(halves, watched, dtype, how):
    """From token ids to scores, through the prompt and three steps behind the cache."""
    llm, (wrong, seen) = halves(dtype, how).llm, watched
    text = np.array([[5, SMALL.llm.end_of_prompt, 7]], np.int32)
    cache = llm.qwen2.make_cache()
    x = llm.prepare_input(text, text[:, :2], speech_ids(6))
    assert dtypes(x) == {llm.speech_embedding.weight.dtype}
    for token in speech_ids(3)[0]:
        assert llm.step(x, cache).dtype == mx.float32
        x = llm.embed_speech(np.array([[token]]))
    held = llm.qwen2.layers[0].self_attn.k_proj.weight.dtype
    assert dtypes([[c.keys, c.values] for c in cache]) == {held}
    assert not wrong, sorted(wrong)
    assert {"Qwen2DecoderLayer.__call__", "Qwen2RMSNorm.__call__", "Qwen2Model", "CosyVoice3LM.scores", "Linear",
            "logsumexp", "scaled_dot_product_attention"} <= seen.keys()  # fmt: skip


@CPU
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", HALVES)
def test_sums_of_the_flow_decoder(halves, watched, dtype, how):
    """From token ids to mel, all at once."""
    flow, (wrong, seen) = halves(dtype, how).flow, watched
    assert dtypes(flow.encode(speech_ids(9))) == {flow.input_embedding.weight.dtype}
    flow.inference(speech_ids(4), *prompt(), streaming=True)
    assert not wrong, sorted(wrong)
    assert {"DiTBlock.__call__", "AdaLayerNormZero.__call__", "AdaLayerNormZero.modulation", "LayerNorm.__call__",
            "AdaLayerNormZero_Final.__call__", "CausalConditionalCFM.velocity", "attention"} <= seen.keys()  # fmt: skip


@CPU
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", HALVES)
def test_a_stream_sums_in_float32_and_keeps_half(halves, watched, dtype, how):
    """Its keys and values have the dtype of the weights that make them, which is what its memory is counted by."""
    flow, (wrong, seen) = halves(dtype, how).flow, watched
    stream = StreamingFlow(flow, *prompt())
    for have in (5, 30, 54):
        stream.push(speech_ids(54)[:, :have])
        step = stream._state.steps[0]
        assert dtypes([step.keys, step.values]) == {flow.decoder.estimator.transformer_blocks[0].attn.to_k.weight.dtype}
        assert dtypes(step.tails) == FLOAT32
        tails = 0 if have > 5 else stream.bytes_for(0)  # the prompt's end, until it is left to later streams
        assert stream.nbytes == stream.bytes_for(stream._state.capacity) + tails
    assert not wrong, sorted(wrong)
    assert {"StreamingFlow._velocity", "LayerNorm.__call__"} <= seen.keys()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", HALVES)
def test_sums_of_the_vocoder(halves, watched, dtype, how):
    """The pitch is float64 within and float32 given, the phases are the host's, spectrum and samples float32."""
    vocoder, (wrong, seen) = halves(dtype, how).vocoder, watched
    mel = prompt()[1]
    f0 = vocoder.f0_predictor(mel)
    assert f0.dtype == mx.float32
    wav, s = vocoder.inference(mel)
    assert dtypes([wav, s]) == FLOAT32
    assert not wrong, sorted(wrong)
    assert "CausalHiFTGenerator.spectrum" in seen


@pytest.mark.parametrize("dtype", HALVES)
def test_layers_run_in_the_dtype_of_their_weights(halves, dtype):
    """Every linear and embedding of the model by itself, on a float32 input: nothing is promoted."""
    from port.precision import layer_dtype, run

    model, looked = halves(dtype, "as converted"), 0
    for part in (model.llm, model.flow):
        for _, layer in part.named_modules():
            if type(layer) is nn.Linear:
                y = run(layer, mx.zeros((1, layer.weight.shape[1])))
                assert y.dtype == layer_dtype(layer) == layer.weight.dtype
                looked += y.dtype != mx.float32
    assert looked > 10
