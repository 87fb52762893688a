"""Half precision on loud inputs: finite although a plain cast overflows, and as exact as its roundings allow."""

from typing import Any

import numpy as np
import pytest
import torch

from convert.quantize import Precision
from mlx_parity.case import normal
from mlx_parity.compare import BUDGET, agreement
from mlx_parity.sides.truth import Reference, reference_state, run_reference
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import case, valid

pytestmark = pytest.mark.part("fast.precision")

HALVES = ("float16", "bfloat16")


def expected_error(dtype, module):
    """BUDGET times a random walk of roundings: each linear layer rounds its input, its weights and its result."""
    layers = sum(isinstance(layer, torch.nn.Linear) for layer in module.modules())
    return BUDGET * float(torch.finfo(getattr(torch, dtype)).eps) / 2 * np.sqrt(3 * layers)


DIT = dict(dim=64, depth=3, heads=4, dim_head=16)


def loud_dit(factor):
    """A transformer with inputs `factor` times as large as usual."""
    frames = 20
    inputs: dict[str, Any] = {k: normal(1, 80, frames, scale=factor) for k in ("x", "mu", "cond")}
    inputs |= {"spks": normal(1, 80), "mask": valid(frames, frames), "t": np.array([0.4], np.float32)}
    return case("flow.dit.loud", "flow.dit.DiT", DIT, **inputs)


@pytest.mark.parametrize("how", ["inputs", "gates"])
def test_the_transformer_does_not_overflow_where_a_plain_cast_does(how):
    """The residual sum exceeds float16's range, so it is float32, like the sums around it."""
    loud = loud_dit(3e4 if how == "inputs" else 1.0)
    state, inputs = reference_state(loud), loud.draw()
    if how == "gates":
        bias = state["transformer_blocks.0.attn_norm.linear.bias"]
        bias[5 * DIT["dim"] :] += 4e4 / 8  # the gate of the first block's MLP
        state["transformer_blocks.0.ff.ff.2.bias"] += 20
    arguments = (loud.part, loud.config, state, inputs, loud.call)
    truth = run_reference(*arguments, torch.float64)["y"]
    naive = {k: torch.from_numpy(v) for k, v in inputs.items()}
    module = Reference(torch.float16).build(loud.part, loud.config, state)
    with torch.inference_mode():
        cast = module(**{k: v.half() if v.is_floating_point() else v for k, v in naive.items()}).numpy()
    assert not np.isfinite(cast).all(), "the plain cast does not overflow: the test proves nothing"
    for dtype in HALVES:
        ours = OwnPort(Precision(dtype)).run(*arguments)["y"]
        assert np.isfinite(ours).all()
        assert agreement(ours, truth) < expected_error(dtype, module)


def test_the_language_model_does_not_overflow_where_a_plain_cast_does():
    loud = case(
        "llm.loud",
        "llm.qwen2.Qwen2Model",
        dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2),
        inputs_embeds=normal(1, 9, 64, scale=4e4),
    )  # fmt: skip
    state, inputs = reference_state(loud), loud.draw()
    arguments = (loud.part, loud.config, state, inputs, loud.call)
    truth = run_reference(*arguments, torch.float64)["hidden"]
    assert np.abs(inputs["inputs_embeds"]).max() > np.finfo(np.float16).max
    for dtype in HALVES:
        ours = OwnPort(Precision(dtype)).run(*arguments)["hidden"]
        assert np.isfinite(ours).all()
        assert agreement(ours, truth) < expected_error(dtype, loud.part.build("reference", loud.config))
