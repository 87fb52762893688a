"""`compare_models`: names the module that is wrong, on models that nobody described to it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

import mlx_parity
from mlx_parity import compare_models, mlx_module, torch_module
from mlx_parity.sides.pytorch import TorchSide
from tests.judge.toys import MlxToy, TorchToy, alive, ids, toys

pytestmark = pytest.mark.meta

README = (Path(mlx_parity.__file__).parent / "README.md").read_text("utf-8")
EXAMPLE = next(text for text in re.findall(r"```python\n(.*?)```", README, re.S) if "qwen2" in text)


@pytest.fixture
def pair():
    return toys()


def compared(pair, inputs=None, channels_last=("conv",), **more):
    """What `compare_models` says of the toys."""
    theirs, ours = pair
    return compare_models(theirs, ours, ids() if inputs is None else inputs, channels_last=channels_last, **more)


def test_equal_models_pass_and_every_module_has_a_row(pair):
    result = compared(pair)
    assert result.passed and result.first is None, result
    modules = {row.module for row in result.rows}
    assert modules == {name or "(model)" for name, _ in pair[0].named_modules()} - {"act"}
    assert {row.output for row in result.rows if row.module == "(model)"} == {"0", "1.0", "1.1"}
    assert 0.1 < result.worst <= 4


def test_what_one_side_has_alone_is_listed_and_judged_inside_the_module_around_it(pair):
    result = compared(pair)
    assert result.unmatched == {"torch": ["act"], "mlx": ["attention.rope"], "results": []}
    assert "only in mlx" in str(result) and "attention.rope" in str(result)


@pytest.mark.parametrize("name", ["embed", "norm", "rms", "attention.qkv", "attention.out", "first", "conv", "gate"])
def test_the_module_with_a_wrong_weight_is_named_first(pair, name):
    module = dict(pair[1].named_modules())[name]
    module.weight = module.weight * 1.001
    result = compared(pair)
    assert not result.passed
    assert result.first == name


def test_a_failure_says_whether_the_module_is_wrong_or_its_inputs(pair):
    pair[1].attention.rope.traditional = True
    result = compared(pair)
    where = {row.module: row.where for row in result.rows if row.reading.status == "FAIL"}
    assert result.first == "attention"
    assert (where["attention"], where["attention.out"], where["first"]) == ("here", "inputs", "inputs")
    assert where["(model)"] == "inside"
    assert "wrong here" in str(result) and "inherited" in str(result)


def test_the_worst_call_of_a_module_stands_for_all(pair):
    def wrong(self, x, past=0):
        return usual(self, x, past) * (1.001 if past else 1.0)

    usual = type(pair[1].attention).__call__
    type(pair[1].attention).__call__ = wrong
    try:
        result = compared(pair)
    finally:
        type(pair[1].attention).__call__ = usual
    (row,) = (row for row in result.rows if row.module == "attention")
    assert (result.first, row.reading.status, row.call) == ("attention", "FAIL", 1)


@pytest.mark.parametrize("called", ["torch", "mlx"])
def test_a_module_that_one_side_does_not_call_is_an_error(pair, called):
    side = (TorchToy, MlxToy)[called == "torch"]
    method = "forward" if side is TorchToy else "__call__"
    usual = side.__dict__[method]

    def without(self, tokens):
        hidden = self.embed(tokens)
        return self.norm(hidden)

    setattr(side, method, without)
    try:
        result = compared(pair)
    finally:
        setattr(side, method, usual)
    rows = {row.module: row.reading for row in result.rows}
    assert rows["gate"].status == "ERROR"
    assert ("PyTorch" if called == "torch" else "MLX") in rows["gate"].message


@pytest.mark.parametrize("side", [TorchToy, MlxToy], ids=["torch", "mlx"])
def test_a_call_that_one_side_makes_oftener_is_an_error(pair, side, monkeypatch):
    method = "forward" if side is TorchToy else "__call__"
    usual = side.__dict__[method]

    def oftener(self, tokens):
        self.norm(self.embed(tokens))
        return usual(self, tokens)

    monkeypatch.setattr(side, method, oftener)
    (row,) = (row for row in compared(pair).rows if row.module == "norm")
    assert row.reading.status == "ERROR" and "call 1 was made by the" in row.reading.message


def test_further_results_of_one_side_are_listed(pair, monkeypatch):
    usual = MlxToy.__call__
    monkeypatch.setattr(MlxToy, "__call__", lambda self, tokens: {"hidden": usual(self, tokens)["hidden"]})
    result = compared(pair)
    assert result.unmatched["results"] == ["(model) (3 in PyTorch, 1 in MLX)"] and "extra ones" in str(result)


def test_names_that_are_spelled_otherwise():
    encoder = torch.nn.ModuleDict({"layer": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    theirs: Any = alive(torch_module(lambda self, x: self.encoder["layer"][0](x), encoder=encoder))
    ours: Any = mlx_module(lambda self, x: self.layers[0](x), layers=[nn.Linear(4, 4)])
    x = np.ones((2, 4), np.float32)
    ours.layers[0].update({k: mx.array(v.numpy()) for k, v in theirs.encoder["layer"][0].state_dict().items()})
    assert [row.module for row in compare_models(theirs, ours, x).rows] == ["(model)"]
    for names in ({"encoder.layer": "layers"}, lambda name: name.replace("encoder.layer", "layers")):
        result = compare_models(theirs, ours, x, names=names)
        assert [row.module for row in result.rows] == ["encoder.layer.0", "(model)"] and result.passed


def test_channels_elsewhere_are_told_with_what_to_do(pair):
    result = compared(pair, channels_last=())
    (row,) = (row for row in result.rows if row.module == "conv")
    assert row.reading.status == "ERROR" and "channels_last" in row.reading.message


@pytest.mark.parametrize("given", [ids(), (ids(),), {"ids": ids()}], ids=["array", "tuple", "dictionary"])
def test_inputs_in_each_form(pair, given):
    assert compared(pair, given).passed


def test_inputs_of_mlx_may_differ(pair):
    assert compared(pair, {"ids": ids()}, mlx_inputs=ids()).passed


def test_results_in_a_dataclass_are_read_in_order():
    @dataclass
    class Output:
        loss: object
        logits: object

    class Theirs(torch.nn.Linear):
        def forward(self, x):
            return Output(None, super().forward(x))

    theirs, ours, x = alive(Theirs(4, 4)), nn.Linear(4, 4), np.ones((2, 4), np.float32)
    ours.update({k: mx.array(v.numpy()) for k, v in theirs.state_dict().items()})
    assert compare_models(theirs, ours, x).passed


def test_a_model_that_raises_is_an_error_row(pair):
    del pair[1].gate
    result = compared(pair)
    assert not result.passed and result.first == "(model)"
    assert "AttributeError" in result.rows[0].reading.message


def test_nothing_compared_is_no_pass():
    assert not mlx_parity.Comparison([]).passed
    assert "nothing was compared" in str(mlx_parity.Comparison([]))


def test_weights_of_lower_precision_are_refused(pair):
    pair[1].set_dtype(mx.bfloat16)
    with pytest.raises(ValueError, match="MLX model has bfloat16 weights"):
        compared(pair, channels_last=())
    with pytest.raises(ValueError, match="PyTorch model has float16 weights"):
        compare_models(pair[0].half(), MlxToy(), ids())


def test_the_truth_is_float64_where_the_model_casts_to_float32():
    class Casts(torch.nn.Module):
        def forward(self, x):
            positions = torch.arange(x.shape[-1], dtype=torch.float32)
            return torch.softmax(x, -1, dtype=torch.float32) + (x.float() * positions.to(torch.float32)).sin()

    x = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    (call,) = TorchSide(Casts()).record_double(((x,), {}), np.asarray)
    wide = torch.from_numpy(x).double()
    truth = torch.softmax(wide, -1) + (wide * torch.arange(40).double()).sin()
    assert call.results[""].dtype == np.float64
    np.testing.assert_allclose(call.results[""], truth.numpy(), rtol=0, atol=1e-15)


class Windowed(torch.nn.Module):
    """Keeps tensors that are neither parameters nor buffers: one from the start, one from its first run."""

    def __init__(self):
        super().__init__()
        self.window, self.made = torch.hann_window(8), None

    def forward(self, x):
        if self.made is None:
            self.made = self.window * 2
        return torch.stft(x, 8, 2, 8, self.made, return_complex=True).abs()


def test_plain_tensors_of_a_module_are_float64_in_the_truth():
    model, x = Windowed(), np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    for ran in (False, True):
        side = TorchSide(model)
        assert side.record(((x,), {}), lambda array: array)[-1].results[""].dtype == np.float32
        assert side.record_double(((x,), {}), lambda array: array)[-1].results[""].dtype == np.float64
        assert ran or model.made is None, "judging it leaves something behind"
        model(torch.from_numpy(x))


def test_what_both_sides_leave_empty_is_no_row_and_no_error(pair, monkeypatch):
    calls = {kind: kind.forward if kind is TorchToy else kind.__call__ for kind in (TorchToy, MlxToy)}
    monkeypatch.setattr(TorchToy, "forward", lambda self, x: (calls[TorchToy](self, x), torch.zeros(0, 4)))
    monkeypatch.setattr(MlxToy, "__call__", lambda self, x: (calls[MlxToy](self, x), mx.zeros((0, 4))))
    assert compared(pair).passed
    monkeypatch.setattr(MlxToy, "__call__", lambda self, x: (calls[MlxToy](self, x), mx.zeros((1, 4))))
    result = compared(pair)
    assert [row.reading.status for row in result.rows if row.module == "(model)"][-1] == "ERROR"


def test_what_is_compiled_is_looked_into():
    theirs: Any = alive(torch_module(lambda self, x: self.inner(x) * 2, inner=torch.nn.Linear(4, 4)))
    ours = mlx_module(lambda self, x: mx.compile(lambda y: self.inner(y) * 2)(x), inner=nn.Linear(4, 4))
    ours.inner.update({k: mx.array(v.numpy()) for k, v in theirs.inner.state_dict().items()})
    result = compare_models(theirs, ours, np.ones((2, 4), np.float32))
    assert result.passed and {row.module for row in result.rows} == {"inner", "(model)"}


def test_both_models_are_left_as_they_were(pair):
    theirs, ours = pair
    theirs.train()
    ours.train()
    before = {kind: kind.__dict__.get("__call__") for kind in {type(m) for m in ours.modules()}}
    compared(pair)
    assert theirs.training and theirs.norm.training and ours.training and ours.norm.training
    assert {kind: kind.__dict__.get("__call__") for kind in before} == before
    assert not theirs._forward_hooks and not theirs.norm._forward_pre_hooks


def test_a_folder_to_hand_on(pair, tmp_path):
    pair[1].first.weight = pair[1].first.weight * 1.001
    result = compared(pair)
    folder = result.save(tmp_path / "out")
    summary = (folder / "summary.md").read_text("utf-8")
    content = json.loads((folder / "report.json").read_text("utf-8"))
    assert len(summary.splitlines()) <= 60 and "| first (Linear) | FAIL |" in summary
    assert (content["verdict"], content["first"], len(content["rows"])) == ("FAIL", "first", len(result.rows))


def test_names_from_a_model_cannot_break_the_summary():
    reading = mlx_parity.Reading("ERROR", "a | b\n<script>\x1b[31m")
    text = mlx_parity.Comparison([mlx_parity.ModuleRow("x|y\n#", "K", "", reading)]).summary()
    assert "<script>" not in text and "\x1b" not in text and "x\\|y" in text


def test_the_example_of_the_readme_passes(capsys):
    assert len(EXAMPLE.strip().splitlines()) <= 20
    exec(EXAMPLE, {})
    assert "PASS: 41 outputs of 41 modules" in capsys.readouterr().out


def test_the_example_with_a_fault_names_the_attention_of_the_first_layer(capsys):
    planted = "mlx_model.model.layers[0].self_attn.rope.traditional = True"
    assert planted in README
    values: dict[str, Any] = {}
    exec(EXAMPLE.replace("\nresult =", f"\n{planted}\nresult ="), values)
    assert values["result"].first == "model.layers.0.self_attn"
    assert capsys.readouterr().out.splitlines()[-1] in README
