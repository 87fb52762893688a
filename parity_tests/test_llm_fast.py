"""Weights of the language model laid out for decoding: the same numbers in another order in memory."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from parity_tests.cases.llm import LM
from parity_tests.parts import PARTS
from port.fast import layout, speed_up

pytestmark = pytest.mark.part("fast.layout")


def by_row(array: Any) -> bool:
    """Whether each row is contiguous in memory."""
    return memoryview(array).c_contiguous


@pytest.mark.parametrize("outputs", [5, 128, 300])
def test_a_layout_changes_no_number(outputs):
    weight = np.random.default_rng(0).standard_normal((outputs, 7)).astype(np.float32)
    found = layout.by_channel(mx.array(weight))
    np.testing.assert_array_equal(np.array(found), weight)
    assert by_row(found.T) and not by_row(found)


def test_tall_weights_of_float32_and_they_alone():
    model = PARTS["llm.speech_lm.CosyVoice3LM.scores"].build("port", LM)
    first, last = (layer.mlp for layer in model.qwen2.layers)
    first.up_proj.weight = first.up_proj.weight.astype(mx.float16)
    kept = [first.up_proj.weight, first.down_proj.weight, model.speech_embedding.weight]
    speed_up(model, ["columns"])
    for layer in (first.gate_proj, last.up_proj, model.llm_decoder):
        assert by_row(layer.weight.T)
    now = first.up_proj.weight, first.down_proj.weight, model.speech_embedding.weight
    assert all(one is other for one, other in zip(now, kept, strict=True))
