"""Weights of linear layers laid out as a product reads them: the same numbers in another order in memory."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from parity_tests.cases.llm import LM
from parity_tests.parts import PARTS
from port.config import CFMConfig, DiTConfig, FlowConfig
from port.fast import layout, speed_up
from port.flow.matching import CausalConditionalCFM

pytestmark = pytest.mark.part("fast.layout")
DIT = DiTConfig(dim=16, depth=1, heads=1, dim_head=16, mel_dim=2, mu_dim=2, spk_dim=2, out_channels=2)


def by_row(array: Any) -> bool:
    """Whether each row is contiguous in memory."""
    return memoryview(array).c_contiguous


@pytest.mark.parametrize("outputs", [5, 128, 300])
def test_a_layout_changes_no_number(outputs):
    weight = np.random.default_rng(0).standard_normal((outputs, 7)).astype(np.float32)
    found = layout.by_channel(mx.array(weight))
    np.testing.assert_array_equal(np.array(found), weight)
    assert by_row(found.T) and not by_row(found)


def test_tall_weights_of_float32_and_they_alone(monkeypatch):
    monkeypatch.setattr(layout, "adds_whole_products", lambda device: True)
    model = PARTS["llm.speech_lm.CosyVoice3LM.scores"].build("port", LM)
    first, last = (layer.mlp for layer in model.qwen2.layers)
    first.up_proj.weight = first.up_proj.weight.astype(mx.float16)
    kept = [first.up_proj.weight, first.down_proj.weight, model.speech_embedding.weight]
    speed_up(model, ["columns"])
    for layer in (first.gate_proj, last.up_proj, model.llm_decoder):
        assert by_row(layer.weight.T)
    now = first.up_proj.weight, first.down_proj.weight, model.speech_embedding.weight
    assert all(one is other for one, other in zip(now, kept, strict=True))


def test_all_weights_where_the_blas_adds_terms_one_by_one(monkeypatch):
    monkeypatch.setattr(layout, "adds_whole_products", lambda device: False)
    model = speed_up(CausalConditionalCFM(FlowConfig(dit=DIT, cfm=CFMConfig())), ["tables", "columns"])
    linears = {path: layer for path, layer in model.named_modules() if type(layer) is nn.Linear}
    unused = {path for path in linears if "time_embed" in path or "norm" in path}  # tables stand for them
    assert unused and len(unused) < len(linears)
    for path, layer in linears.items():
        assert by_row(layer.weight.T) == (path not in unused), path
