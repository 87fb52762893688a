"""Every attribute and constant of both ONNX files, changed: refused, or followed as onnxruntime does."""

import copy
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import AttributeProto, helper, numpy_helper

from convert.onnx_graph import module_path
from mlx_parity.compare import compare
from port.files.errors import Refused
from tests.support.onnx_support import CLASSES, OPSETS, READ

pytestmark = pytest.mark.part("convert.onnx")

FRAMES = (57, 203)
NOWHERE = "onnxruntime cannot run this file"
# Refusals name the attribute of these; of others, the comparison of graph and model notices the change.
NAMED = ("Conv", "AveragePool", "BatchNormalization", "LayerNormalization", "Softmax", "Cast")
# The forms that today's onnxruntime computes as the model does.
FORMS = {"speech_tokenizer": "speech_tokenizer", "speaker": "speaker_held"}


def kinds(graph):
    """Index of one node for each place, operator and set of values; the modules of a list are one place."""
    found: dict[tuple[object, ...], int] = {}
    for i, node in enumerate(graph.node):
        place = re.sub("[0-9]+", "#", module_path(node.name)), node.op_type
        values = tuple((a.name, str(helper.get_attribute_value(a))) for a in node.attribute)
        found.setdefault((place, values), i)
    return found


def changed_values(attribute):
    """Other values of one attribute, near the old one."""
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.INT:
        return [value + 1, value - 1]
    if attribute.type == AttributeProto.INTS:
        return [[value[0] + 1, *value[1:]], [*value[:-1], value[-1] + 1]] if value else []
    if attribute.type == AttributeProto.FLOAT:
        return [value * 1.5, value + 0.125]
    if attribute.type == AttributeProto.STRING:
        return ["VALID"]
    array = numpy_helper.to_array(value)
    if array.dtype == np.float32 and array.ndim < 2:
        return [array * np.float32(1.01), array + np.float32(0.125)]
    return [array + 1] if array.dtype.kind == "i" else []


def with_value(attribute, value):
    if isinstance(value, np.ndarray):
        return helper.make_attribute(attribute.name, numpy_helper.from_array(np.asarray(value)))
    return helper.make_attribute(attribute.name, value)


def changes(model, known=()):
    """Changes of one attribute of one node: another value, left out, or unknown. Skips nodes of a kind in `known`."""
    for i in (i for kind, i in kinds(model.graph).items() if kind not in known):
        node = model.graph.node[i]
        for k, attribute in enumerate(node.attribute):
            for value in changed_values(attribute):
                yield i, k, with_value(attribute, value)
            yield i, k, None
        yield i, None, helper.make_attribute("novel", 1)


def change(model, i, k, attribute):
    changed = copy.deepcopy(model)
    attributes = list(changed.graph.node[i].attribute)
    attributes[slice(k, None if k is None else k + 1)] = [] if attribute is None else [attribute]
    if k is None:
        attributes = [*model.graph.node[i].attribute, attribute]
    del changed.graph.node[i].attribute[:]
    changed.graph.node[i].attribute.extend(attributes)
    return changed


def same_as_onnxruntime(part, path):
    """Compare the reference, filled with what the converter read, with onnxruntime; '' if equal, else what differs."""
    weights = READ[part](path)
    single = CLASSES[part][0](weights.config).eval()
    single.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.items()}, strict=True)
    double = copy.deepcopy(single).double()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        for frames in FRAMES:
            generator = np.random.default_rng(frames + 1)
            if part == "speaker":
                x = generator.standard_normal((1, frames, 80)).astype(np.float32)
                with torch.inference_mode():
                    r32, r64 = (
                        m(torch.from_numpy(x).to(d)).numpy()
                        for m, d in ((single, torch.float32), (double, torch.float64))
                    )
                reading = compare(session.run(None, {names[0]: x})[0], r32, r64)
            else:
                x = generator.standard_normal((1, 128, frames)).astype(np.float32)
                length = np.array([frames], np.int32)
                with torch.inference_mode():
                    tokens = single(torch.from_numpy(x), torch.from_numpy(length))[0].numpy()
                found = session.run(None, dict(zip(names, (x, length), strict=True)))[0].reshape(tokens.shape)
                reading = compare(found.astype(np.int32), tokens.copy(), tokens.copy())
            if reading.status != "PASS":
                return reading.message
    except Exception:  # onnxruntime's own
        return NOWHERE
    return ""


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("part", FORMS)
def test_each_change_is_refused_or_followed(onnx_files, tmp_path, part, opset):
    model = onnx.load(onnx_files / f"{FORMS[part]}{opset}.onnx")
    known = kinds(onnx.load(onnx_files / f"{FORMS[part]}{OPSETS[0]}.onnx").graph) if opset != OPSETS[0] else ()
    path, wrong, refused, followed, nowhere = tmp_path / "changed.onnx", [], 0, 0, 0
    for i, k, attribute in changes(model, known):
        node = model.graph.node[i]
        name = "novel" if k is None else node.attribute[k].name
        about = f"{node.name} ({node.op_type}): {name} -> {str(attribute)[:200]!r}"
        path.write_bytes(change(model, i, k, attribute).SerializeToString())
        try:
            problem = same_as_onnxruntime(part, path)
            followed, nowhere = followed + (problem != NOWHERE), nowhere + (problem == NOWHERE)
        except Refused as error:
            line, problem, refused = str(error), "", refused + 1
            if "\n" in line or len(line) > 600 or not line.startswith(f"{path}: "):
                problem = f"not one line: {line}"
            named = name == "novel" or (node.op_type in NAMED and name != "epsilon")
            if not problem and named and node.op_type not in line:
                problem = f"does not name the kind of node: {line}"
        if problem and problem != NOWHERE:
            wrong.append(f"{about}: {problem}")
    assert not wrong, f"{len(wrong)} of {refused + followed}:\n" + "\n".join(wrong[:40])
    assert known or (refused > 100 and followed > 0)
    assert nowhere < 10, "files that onnxruntime itself cannot run show nothing"


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("part", FORMS)
def test_another_operator_or_order_is_refused(onnx_files, tmp_path, part, opset):
    """Operators replaced by others with the same inputs, and inputs exchanged."""
    model = onnx.load(onnx_files / f"{FORMS[part]}{opset}.onnx")
    others = {"Relu": "Sigmoid", "Sigmoid": "Tanh", "Tanh": "Sigmoid", "Sqrt": "Exp", "Erf": "Tanh", "Round": "Floor"}
    others |= {"Add": "Mul", "Mul": "Add", "Sub": "Add", "Less": "Greater", "Not": "Identity", "Neg": "Identity"}
    path, kept = tmp_path / "changed.onnx", []
    for i in kinds(model.graph).values():
        node = model.graph.node[i]
        if node.op_type in others:
            changed = copy.deepcopy(model)
            changed.graph.node[i].op_type = others[node.op_type]
            kept.append((f"{node.name} as {others[node.op_type]}", changed))
        if node.op_type in ("Sub", "Div", "MatMul", "Concat", "Pow") and len(node.input) > 1:
            changed = copy.deepcopy(model)
            changed.graph.node[i].input[0], changed.graph.node[i].input[1] = node.input[1], node.input[0]
            kept.append((f"{node.name} with its inputs exchanged", changed))
    accepted = []
    for name, changed in kept:
        path.write_bytes(changed.SerializeToString())
        try:
            if problem := same_as_onnxruntime(part, path):
                accepted.append(f"{name}: {problem}")
        except Refused as error:
            assert "\n" not in str(error)
    assert not accepted
    assert len(kept) > 10


def test_a_changed_constant_is_noticed_in_what_the_graph_computes(onnx_files, tmp_path):
    model = onnx.load(onnx_files / "speech_tokenizer14.onnx")
    node = next(node for node in model.graph.node if node.name == "/blocks.1/mlp/mlp.1/Constant")
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(1.5, np.float32)))
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    with pytest.raises(Refused, match=r"the graph and the model compute different things: what is rounded"):
        READ["speech_tokenizer"](path)


def test_an_operator_of_another_domain_is_logged(onnx_files, tmp_path, caplog):
    model = onnx.load(onnx_files / "speaker14.onnx")
    next(node for node in model.graph.node if node.op_type == "Sigmoid").domain = "com.example"
    onnx.save(model, tmp_path / "changed.onnx")
    READ["speaker"](tmp_path / "changed.onnx")
    (line,) = caplog.messages
    assert "not compared with the model: it has operator Sigmoid of com.example" in line
