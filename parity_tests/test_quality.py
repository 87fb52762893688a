"""Reduced precision: the quality of each variant of the checkpoint is within its limits, and a fault exceeds them."""

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_map

from convert.quantize import Precision, precision_of
from mlx_parity.compare import BUDGET
from parity_tests.models import prepare_models
from parity_tests.quality import METRICS, bound, measure
from parity_tests.rounding import round_reference

pytestmark = pytest.mark.part("convert.quantize")

VARIANTS = {
    "float16": Precision("float16"),
    "bfloat16": Precision("bfloat16"),
    "8-bit": Precision(bits={"llm": 8}, group_size=32),
    "4-bit": Precision(bits={"llm": 4}, group_size=32),
    "bfloat16 and 4-bit and 8-bit": Precision("bfloat16", bits={"llm": 4, "flow": 8}, group_size=32),
}


@pytest.fixture(scope="module")
def variant(parity, tmp_path_factory):
    """A function that converts the run's checkpoint to another precision."""
    made = {}

    def models(name):
        if name not in made:
            scratch = tmp_path_factory.mktemp("variant")
            made[name] = prepare_models(parity.models.source, None, scratch, 0, VARIANTS[name])
        return made[name]

    return models


def keep(parity, label, rows):
    parity.keep("quality", [{"variant": label, **row.to_dict()} for row in rows])
    assert rows, "nothing was measured"
    assert [f"{row.metric}: {row}" for row in rows if row.status != "PASS"] == []


def test_quality_of_this_run(parity):
    """The run's own folder, if its precision is reduced, is within its limits."""
    if not parity.precision.stages:
        pytest.skip("the converted folder is float32 and judged by the ratio")
    keep(parity, parity.precision.label, measure(parity.models))


@pytest.mark.parametrize("name", VARIANTS)
def test_quality_of_a_variant(parity, variant, name):
    if parity.precision.stages:
        pytest.skip("this run judges one reduced folder")
    models = variant(name)
    assert precision_of(models.folder).label == name
    keep(parity, name, measure(models))


@pytest.mark.meta
@pytest.mark.parametrize("stage", ["llm", "flow"])
def test_a_fault_of_the_port_exceeds_a_limit(variant, stage):
    """One layer of one stage is too loud, by more than the precision explains."""
    models = variant("bfloat16")
    llm, flow = models.port.llm.qwen2.layers[1].mlp.down_proj, models.port.flow.decoder.estimator.proj_out
    layer, factor = (llm, 1.5) if stage == "llm" else (flow, 1.05)
    original = layer.parameters()
    layer.update(tree_map(lambda a: a * mx.array(factor, a.dtype), original))
    try:
        rows = measure(models)
    finally:
        layer.update(original)
    failed = {row.stage for row in rows if row.status == "FAIL"}
    assert stage in failed
    assert failed <= {"llm": {"llm"}, "flow": {"flow", "whole"}}[stage]


@pytest.mark.meta
def test_an_infinite_weight_fails_as_valid_json(variant):
    models = variant("float16")
    layer = models.port.llm.qwen2.layers[0].mlp.down_proj
    original = layer.weight
    layer.weight = mx.where(mx.arange(original.shape[1]) == 0, mx.array(mx.inf, original.dtype), original)
    try:
        rows = measure(models)
    finally:
        layer.weight = original
    kl = next(row for row in rows if row.metric == "logits KL")
    assert kl.status == "FAIL"
    assert kl.to_dict()["value"] is None
    json.dumps([row.to_dict() for row in rows], allow_nan=False)


@pytest.mark.meta
def test_limits_of_each_kind_of_metric():
    """BUDGET times the error of rounding, or the original's variation between seeds if that is stricter."""
    assert bound("error", 0.1, 9.0, 64) == pytest.approx(BUDGET * 0.1)
    assert bound("error", 0.1, 0.2, 64) == 0.2
    assert bound("divergence", 0.1, 9.0, 64) == pytest.approx(BUDGET**2 * 0.1)
    assert bound("snr", 60.0, 3.0, 64) == pytest.approx(60 - 20 * np.log10(BUDGET))
    assert bound("snr", 5.0, 3.0, 64) == 3.0
    assert bound("share", 0.95, 0.2, 64) == pytest.approx(1 - BUDGET * 0.05)
    assert bound("share", 1.0, 0.2, 64) == pytest.approx(1 - BUDGET / 64)
    assert bound("share", 0.3, 0.2, 64) == pytest.approx(0.2 - 2 * 0.05)
    assert {kind for _, _, kind in METRICS.values()} == {"error", "divergence", "snr", "share"}


@pytest.mark.meta
def test_the_rounded_reference_has_the_folders_weights(variant):
    """Converted and loaded by the port, or rounded in the reference: the weights are equal."""
    models = variant("bfloat16 and 4-bit and 8-bit")
    rounded = round_reference(models.single, models.folder, models.config, ("llm",))
    gate = "llm.llm.model.model.layers.1.mlp.gate_proj.weight"
    weight, exact = (model.get_parameter(gate) for model in (rounded, models.single))
    port = models.port.llm.qwen2.layers[1].mlp.gate_proj
    mine = mx.dequantize(port.weight, port.scales, port.biases, port.group_size, port.bits)
    assert np.array_equal(weight.detach().numpy(), np.array(mine.astype(mx.float32)))
    assert not torch.equal(weight, exact)
