"""Dtypes inside a half-precision model: sums are float32, products have the dtype of their weights.

A test with loud inputs sees a sum in half precision only if it overflows. Here the dtypes themselves are checked, from
token ids on, in a model as converted here and in one that is half throughout, as others publish them.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from convert.quantize import PARTS, Precision
from parity_tests.speech_support import SMALL, small_models
from port.fast import attention as fast
from port.fast import speed_up
from port.files.storage import DTYPES
from port.flow import layers
from port.flow.matching import CausalConditionalCFM
from port.llm import qwen2
from port.llm.speech_lm import CosyVoice3LM
from port.stream.flow import StreamingFlow
from port.stream.memory import Memory
from port.vocoder.generator import CausalHiFTGenerator

HALVES = ("float16", "bfloat16")
HOW = ("as converted", "every part", "throughout")
FLOAT32 = {mx.float32}
PITCH = {"f0_predictor", "m_source"}  # nobody halves these: a pitch error grows with time
DIT, CFM = "flow.dit.DiT", "flow.matching.CausalConditionalCFM"
# Part, class, method, caller. These add up over many terms or layers: their inputs and results are float32, whatever
# the weights are. A wrong result is the part's fault, a wrong input the caller's.
SUMS = (
    ("llm.qwen2.Qwen2RMSNorm", qwen2.Qwen2RMSNorm, "__call__", "llm.qwen2.Qwen2DecoderLayer"),
    ("llm.qwen2.Qwen2DecoderLayer", qwen2.Qwen2DecoderLayer, "__call__", "llm.qwen2.Qwen2Model"),
    ("llm.qwen2.Qwen2Model", qwen2.Qwen2Model, "__call__", None),  # its input, embeddings, has the dtype of their table
    ("llm.speech_lm.CosyVoice3LM.scores", CosyVoice3LM, "scores", None),
    ("flow.layers.AdaLayerNormZero", layers.AdaLayerNormZero, "modulation", None),
    ("flow.layers.AdaLayerNormZero", layers.AdaLayerNormZero, "__call__", "flow.layers.DiTBlock"),
    ("flow.layers.AdaLayerNormZero_Final", layers.AdaLayerNormZero_Final, "modulation", None),
    ("flow.layers.AdaLayerNormZero_Final", layers.AdaLayerNormZero_Final, "__call__", DIT),
    ("flow.layers.DiTBlock", layers.DiTBlock, "__call__", DIT),
    ("flow.layers.DiTBlock", nn.LayerNorm, "__call__", "flow.layers.DiTBlock"),
    (f"{CFM}.velocity", CausalConditionalCFM, "velocity", CFM),
    (CFM, CausalConditionalCFM, "__call__", None),
    ("stream.flow.StreamingFlow", StreamingFlow, "push", None),
    ("vocoder.generator.CausalHiFTGenerator.inference", CausalHiFTGenerator, "spectrum", None),
    ("vocoder.generator.CausalHiFTGenerator.inference", CausalHiFTGenerator, "inference", None),
)
# Functions that need float32 inputs; on a GPU MLX's attention keeps its scores in float32 by itself.
FUNCTIONS = (
    ("llm.speech_lm.CosyVoice3LM.scores", mx, "logsumexp"),
    ("llm.qwen2.Qwen2RMSNorm", mx.fast, "rms_norm"),
    ("llm.qwen2.Qwen2Attention", mx.fast, "scaled_dot_product_attention"),
    ("flow.layers.Attention", fast, "_softmax_product"),
)
LINEAR = "fast.precision"
PARTS_SEEN = sorted({row[0] for row in (*SUMS, *FUNCTIONS)} | {LINEAR, DIT})
# Arguments outside the sums; linears round them to their own dtype.
LEFT_OUT = {"emb", "t", "mu", "cond", "spks", "given", "halves", "hidden", "token"}


# For the session: tests sorted by their parts go in and out of this file.
@pytest.fixture(scope="session")
def halves():
    """A function that gives the small model in a half dtype, `how` much of it one of `HOW`."""
    made = {}

    def give(dtype, how):
        if (dtype, how) not in made:
            _, model = small_models(forms=())
            if how == "throughout":
                half = DTYPES[Precision(dtype).tag("llm.speech_embedding.weight")][0]
                wanted = lambda name: mx.float32 if PITCH & set(name.split(".")) else half  # noqa: E731
            else:
                precision = Precision(dtype, tuple(PARTS) if how == "every part" else Precision().parts)
                wanted = lambda name: DTYPES[precision.tag(name)][0]  # noqa: E731
            model.load_weights([(k, v.astype(wanted(k))) for k, v in dict(tree_flatten(model.parameters())).items()])
            made[dtype, how] = speed_up(model)
        return made[dtype, how]

    return give


def dtypes(value):
    """The dtypes of all float arrays in a value."""
    found = set()
    tree_map(lambda x: found.add(x.dtype) if isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating) else x,
             value if isinstance(value, tuple | list | dict) else [value])  # fmt: skip
    return found


class Watch:
    """Notes values of a wrong dtype, in order of execution, and the parts that were checked."""

    def __init__(self, patch):
        self.wrong, self.seen = [], set()
        for row in SUMS:
            self._sum(patch, *row)
        for part, place, name in FUNCTIONS:
            if ON_CPU or "ttention" not in part:
                self._function(patch, part, place, name)
        plain = nn.Linear.__call__

        def linear(layer, x):
            if layer.weight.dtype != mx.float32:  # otherwise the input is promoted, without rounding
                self._look(LINEAR, {x.dtype}, {layer.weight.dtype})
            return plain(layer, x)

        patch.setattr(nn.Linear, "__call__", linear)

    def _look(self, part, found, allowed=FLOAT32):
        self.seen.add(part)
        self.wrong += [(part, f"{dtype}, not {' or '.join(map(str, allowed))}") for dtype in found - allowed]

    def _sum(self, patch, part, owner, name, caller):
        original = getattr(owner, name)
        names = original.__code__.co_varnames[1 : original.__code__.co_argcount]

        def call(module, *args, **kwargs):
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if caller:
                self._look(caller, dtypes([v for k, v in given.items() if k not in LEFT_OUT]))
            result = original(module, *args, **kwargs)
            self._look(part, dtypes(result))
            return result

        patch.setattr(owner, name, call)

    def _function(self, patch, part, place, name):
        original = getattr(place, name)

        def call(x, *args, **kwargs):
            self._look(part, dtypes(x))
            return original(x, *args, **kwargs)

        patch.setattr(place, name, call)


ON_CPU = mx.default_device().type == mx.DeviceType.cpu


@pytest.fixture(scope="session")
def watched(halves):
    """A function that gives the `Watch` of one run: token ids to scores, mel and streamed mel, and mel to samples."""
    kept = {}

    def give(dtype, how):
        if (dtype, how) not in kept:
            with pytest.MonkeyPatch.context() as patch:
                kept[dtype, how] = Watch(patch)
                model = halves(dtype, how)
                text = np.array([[5, SMALL.llm.end_of_prompt, 7]], np.int32)
                cache = model.llm.qwen2.make_cache()
                x = model.llm.prepare_input(text, text[:, :2], speech_ids(6))
                for token in speech_ids(3)[0]:
                    model.llm.step(x, cache)
                    x = model.llm.embed_speech(np.array([[token]]))
                model.flow.inference(speech_ids(4), *prompt(), streaming=True)
                StreamingFlow(model.flow, *prompt()).push(speech_ids(4), finalize=True)
                model.vocoder.inference(prompt()[1])
        return kept[dtype, how]

    return give


def speech_ids(count, seed=0):
    return np.random.default_rng(seed).integers(30, 54, (1, count)).astype(np.int32)


def prompt(tokens=28):
    feat = np.random.default_rng(1).standard_normal((1, 2 * tokens, 80)).astype(np.float32)
    return speech_ids(tokens), mx.array(feat), mx.ones((1, SMALL.flow.spk_embed_dim))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("part", [pytest.param(part, marks=pytest.mark.part(part)) for part in PARTS_SEEN])
def test_sums_are_float32_and_products_half(watched, part, dtype, how):
    """Only the first wrong part fails, since later ones may only inherit the dtype."""
    watch = watched(dtype, how)
    assert part in watch.seen or not ON_CPU
    assert not watch.wrong or watch.wrong[0][0] != part, watch.wrong[0][1]


@pytest.mark.part("fast.precision")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", HALVES)
def test_tables_and_caches_have_the_dtype_of_their_weights(halves, dtype, how):
    model = halves(dtype, how)
    text = np.array([[5, SMALL.llm.end_of_prompt, 7]], np.int32)
    cache = model.llm.qwen2.make_cache()
    x = model.llm.prepare_input(text, text[:, :2], speech_ids(6))
    assert dtypes(x) == {model.llm.speech_embedding.weight.dtype}
    assert model.llm.step(x, cache).dtype == mx.float32
    assert dtypes([[c.keys, c.values] for c in cache]) == {model.llm.qwen2.layers[0].self_attn.k_proj.weight.dtype}
    assert dtypes(model.flow.encode(speech_ids(9))) == {model.flow.input_embedding.weight.dtype}
    assert model.vocoder.f0_predictor(prompt()[1]).dtype == mx.float32


@pytest.mark.part("stream.flow.StreamingFlow")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", HALVES)
def test_a_stream_keeps_keys_in_the_dtype_of_their_weights(halves, dtype, how):
    """Its memory is counted with that dtype; the tails of convolutions are float32."""
    flow = halves(dtype, how).flow
    token, feat, embedding = prompt()
    stream = StreamingFlow(flow, token, feat, embedding, memory=Memory())
    for have in (5, 30):
        stream.push(speech_ids(30)[:, :have])
        assert stream._state
        step = stream._state.steps[0]
        keys = fast.key_dtype(flow.decoder.estimator.transformer_blocks[0].attn)
        assert dtypes([[kept.keys, kept.values] for kept in step.kept]) == {keys}
        assert dtypes([tail.frames for tail in step.tails]) == FLOAT32
        tails = 0 if have > 5 else stream.bytes_for(0)  # a copy at the prompt's end, until it is kept for later streams
        assert stream.nbytes == stream.bytes_for(stream._state.capacity) + tails
