"""The table of a conversion: what each tensor becomes, and the proof by counts that none is lost."""

import numpy as np
import pytest
import torch

from convert.audit import port_shapes, prove
from convert.checkpoint import StateDict
from convert.mapping import convert, plan
from port.config import CosyVoice3Config
from port.files.errors import Refused
from reference.synthesize import RULES, build
from tests.support.convert_support import CONFIG

pytestmark = pytest.mark.part("convert")


def test_subset_under_a_prefix():
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    key = "decoder.estimator.transformer_blocks.7.attn.to_out.0.weight"
    done = convert("flow", {key: weight}, CONFIG)
    assert done.used == {key: "flow.decoder.estimator.transformer_blocks.7.attn.to_out.weight"}
    np.testing.assert_array_equal(done.tensors[done.used[key]], weight)


def test_modules_that_no_file_holds():
    keys = {"dwconv.weight": (6, 1, 7), "dwconv.bias": (6,), "norm.weight": (6,), "grn.gamma": (1, 1, 12)}
    tensors = {key: np.random.default_rng(0).standard_normal(shape).astype(np.float32) for key, shape in keys.items()}
    done = convert("unit", tensors, CONFIG).tensors
    assert done["unit.dwconv.weight"].shape == (6, 7, 1)
    assert set(done) == {f"unit.{key}" for key in keys}


def test_weight_norm_is_folded_in_float32():
    rng = np.random.default_rng(1)
    gain = rng.standard_normal((8, 1, 1)).astype(np.float32)
    direction = rng.standard_normal((8, 5, 3)).astype(np.float32)
    names = ("conv_pre.parametrizations.weight.original0", "conv_pre.parametrizations.weight.original1")
    weight = convert("hift", dict(zip(names, (gain, direction), strict=True)), CONFIG).tensors[
        "vocoder.conv_pre.weight"
    ]
    exact = (
        gain
        * direction.astype(np.float64)
        / np.linalg.norm(direction.reshape(8, -1).astype(np.float64), axis=1)[:, None, None]
    )
    assert weight.dtype == np.float32
    np.testing.assert_array_max_ulp(weight, exact.transpose(0, 2, 1).astype(np.float32), maxulp=4)
    direction[3] = 0
    with pytest.raises(Refused, match="all zeros"):
        convert("hift", dict(zip(names, (gain, direction), strict=True)), CONFIG)


def test_the_weight_norm_of_the_pitch_is_folded_in_float64():
    rng = np.random.default_rng(1)
    gain = rng.standard_normal((8, 1, 1)).astype(np.float32)
    direction = rng.standard_normal((8, 5, 3)).astype(np.float32)
    source = "f0_predictor.condnet.2.parametrizations.weight.original"
    done = convert("hift", {f"{source}0": gain, f"{source}1": direction}, CONFIG)
    (weight,) = done.tensors.values()
    assert weight.dtype == np.float32
    wide = torch.from_numpy(direction).double()
    exact = torch._weight_norm(wide, torch.from_numpy(gain).double(), 0).numpy().transpose(0, 2, 1)
    np.testing.assert_array_equal(weight[0], exact.astype(np.float32))
    np.testing.assert_allclose(weight.astype(np.float64).sum(axis=0), exact, rtol=2e-14, atol=0)


def test_parameter_filled_twice():
    with pytest.raises(Refused, match=r"vocoder\.conv_pre\.weight is filled twice"):
        plan("hift", ["conv_pre.weight", "conv_pre.weight_g", "conv_pre.weight_v"])


def test_unknown_part():
    with pytest.raises(Refused, match="unknown part 'vocos'"):
        plan("vocos", ["x"])


def shapes_of(config):
    return {part: {k: tuple(v.shape) for k, v in build(part, config).state_dict().items()} for part in RULES}


@pytest.mark.parametrize(("config", "sources", "parameters"), [(CONFIG, 407, 323), (CosyVoice3Config(), 951, 867)])
def test_audit_counts(config, sources, parameters):
    shapes = shapes_of(config)
    audit = prove(shapes, {part: plan(part, held) for part, held in shapes.items()}, port_shapes(config, shapes))
    assert (audit.sources, audit.parameters, len(audit.dropped)) == (sources, parameters, 2)
    # Two tensors make one weight in each of the 82 weight-normed convolutions.
    assert audit.consumed == parameters + 82
    assert sum(audit.transforms.values()) == parameters + 2
    kinds = audit.to_dict()["transforms"]
    assert kinds["weight norm folded, input channels last"] == 77
    assert kinds["weight norm folded in float64 to two summands, input channels last"] == 5
    assert "none left over" in audit.verdict


def test_audit_names_what_is_wrong():
    shapes = shapes_of(CONFIG)
    plans = {part: plan(part, held) for part, held in shapes.items()}
    parameters = port_shapes(CONFIG, shapes)
    with pytest.raises(Refused, match="is consumed 0 times"):
        prove(shapes, plans | {"flow": plans["flow"][1:]}, parameters)
    with pytest.raises(Refused, match="is consumed 2 times"):
        prove(shapes, plans | {"flow": [*plans["flow"], plans["flow"][-1]]}, parameters)
    with pytest.raises(Refused, match="extra is not filled"):
        prove(shapes, plans, parameters | {"flow.extra": (1,)})


def folded(state):
    module = build("hift", CONFIG).to_empty(device="cpu")
    module.load_state_dict(state)
    plain = {k: v for k, v in state.items() if ".parametrizations." not in k}
    for name, child in module.named_modules():
        if hasattr(child, "parametrizations"):
            plain[f"{name}.weight"] = child.weight.detach()
    return plain


def test_folded_weights_are_accepted(official):
    state = torch.load(official / "hift.pt", weights_only=True)
    normed = convert("hift", StateDict(dict(state)), CONFIG).tensors
    plain = convert("hift", StateDict(folded(state)), CONFIG).tensors
    assert normed.keys() == plain.keys()
    # Torch folds with its own order of summation: both are roundings of the same weight.
    for name, value in normed.items():
        if name.startswith("vocoder.f0_predictor.condnet") and name.endswith("weight"):
            assert not plain[name][1].any()  # nothing is known beyond the float32 in the file
            value, plain[name] = value[0], plain[name][0]
        np.testing.assert_array_max_ulp(value, plain[name], maxulp=8)
