"""What is made once and kept is shared by the threads of a server: each finds what it asked for, evaluated."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from port.flow import fast
from port.flow.layers import CausalConvPositionEmbedding
from port.flow.matching import cosine_schedule
from port.flow.modulation import MAX_TIMES, ModulationTables, step_times
from port.ops import conv_backend
from port.vocoder.convolution import CausalConv1d, CausalConv1dUpsample
from port.vocoder.f0 import CausalConvRNNF0Predictor


def normal(*shape):
    return mx.array(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(12, 12) for _ in range(3)]
        self.fused = fast.FusedLinear()

    def __call__(self, x):
        return mx.concatenate(self.fused(x, self.layers), axis=-1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CausalConv1d(12, 8, 5),
        lambda: CausalConv1dUpsample(12, 8, 7, 3),
        lambda: CausalConvRNNF0Predictor(1, 12, 8),
        lambda: CausalConvPositionEmbedding(12, 5, 3),
        Joined,
    ],
    ids=["convolution", "upsampling", "pitch", "position", "joined"],
)
def test_what_one_thread_keeps_another_can_use(build):
    """The first call leaves its result alone, as a lazy array that nobody asks for; only what it keeps goes on."""
    module, x = build(), normal(1, 20, 12)
    mx.eval(module.parameters())

    def call():
        with conv_backend("matmul"):
            return module(x)

    def fresh():
        value = build()
        value.load_weights(kept)
        with conv_backend("matmul"):
            return np.array(value(x))

    kept = [(name, mx.array(np.array(value))) for name, value in tree_flatten(module.parameters())]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: call() is None).result()
    np.testing.assert_array_equal(np.array(call()), fresh())


def during(monkeypatch, owner, name, act):
    """Let another thread act within the first call of a function, when its caller has set about keeping the result."""
    original, done = getattr(owner, name), []

    def patched(*arguments):
        result = original(*arguments)
        if not done:
            done.append(True)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(act).result()
        return result

    monkeypatch.setattr(owner, name, patched)


def test_rotary_tables_of_the_own_length(flow, monkeypatch):
    dit = flow.decoder.estimator
    dit._rope = None
    during(monkeypatch, mx, "eval", lambda: dit._rotary(7))
    assert dit._rotary(9)[0].shape[1] == 9


def test_modulations_of_the_own_times(flow, monkeypatch):
    """Two numbers of steps at once, more than are kept together."""
    dit = flow.decoder.estimator
    one, other = (step_times(cosine_schedule(n)) for n in (10, MAX_TIMES))
    during(monkeypatch, ModulationTables, "add", lambda: dit.modulation_tables(dit, other))
    found = dit.modulation_tables(dit, one)
    assert found[0][0].shape[0] == len(one)
    expected = dit.norm_out.modulation(dit.time_embed(np.array(one, np.float32)))
    np.testing.assert_array_equal(np.array(found[-1][0]), np.array(expected[0]))
