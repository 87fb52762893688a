"""The conversion at the official depth, against a list of tensors that is independent of convert/mapping.py.

Each of the 1766 tensors has its own values and must arrive in its place: shapes alone would not show swapped layers.
"""

import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from convert.audit import port_shapes, prove
from convert.conversion import convert_folder
from convert.hub import find_source
from convert.mapping import PORT_ROOT, plan
from convert.parts import PARTS as FILES
from port.config import CosyVoice3Config
from port.files import weights
from port.files.errors import Refused
from reference import synthesize
from reference.export_onnx import live_speaker, live_speech_tokenizer
from reference.frontend.speaker import CAMPPlus
from reference.frontend.speech_tokenizer import S3TokenizerV3
from tests.support import official_tensors

pytestmark = pytest.mark.part("convert", late=1)

PARTS = pytest.mark.parametrize("part", official_tensors.PARTS)
OFFICIAL = CosyVoice3Config()
ROTARY = "decoder.estimator.rotary_embed.inv_freq"  # its length is checked with its values, when they are read


def deep_config():
    """The widths of the embedded checkpoint, the depth of the official one."""
    tiny = synthesize.tiny_config()
    return replace(
        tiny,
        llm=replace(tiny.llm, qwen2=replace(tiny.llm.qwen2, num_hidden_layers=OFFICIAL.llm.qwen2.num_hidden_layers)),
        flow=replace(tiny.flow, dit=replace(tiny.flow.dit, depth=OFFICIAL.flow.dit.depth)),
        speech_tokenizer=replace(tiny.speech_tokenizer, depth=OFFICIAL.speech_tokenizer.depth),
        speaker=replace(tiny.speaker, block_layers=OFFICIAL.speaker.block_layers),
    )


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Source folder, and the port's parameters after its conversion."""
    scratch, config = tmp_path_factory.mktemp("deep"), deep_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthesize.SIZES, "deep", lambda: config)
        synthesize.synthesize(scratch / "source", "deep", seed=9)
    convert_folder(find_source(str(scratch / "source")), scratch / "out")
    model = weights.load(scratch / "out")
    assert model.config == config
    return scratch / "source", {name: np.array(value) for name, value in dict(tree_flatten(model.parameters())).items()}


def source_tensors(folder, part):
    """Tensors that were written to the file, without the converter's readers."""
    config = deep_config()
    if part == "speech_tokenizer":
        state = live_speech_tokenizer(config.speech_tokenizer, 9).state_dict()
    elif part == "speaker":
        state = live_speaker(config.speaker, 9).state_dict()
    else:
        state = torch.load(folder / f"{part}.pt", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


@PARTS
def test_every_tensor_arrives_in_its_place(deep, part):
    source, parameters = deep
    tensors, expected = source_tensors(source, part), official_tensors.entries(part)
    assert {name for entry in expected for name in entry.names} == tensors.keys()
    placed = {entry.target: entry for entry in expected if entry.target}
    assert placed.keys() == {name for name in parameters if name.startswith(f"{PORT_ROOT[part]}.")}
    for name, entry in placed.items():
        value, found = entry.value(tensors), parameters[name]
        if entry.layout == "gain64":
            np.testing.assert_allclose(found.astype(np.float64).sum(axis=0), value, rtol=0, atol=1e-13, err_msg=name)
        elif entry.layout == "gain":
            np.testing.assert_array_max_ulp(found, value.astype(np.float32), maxulp=8)
        elif part == "speaker":  # the exporter folds the norms again: two roundings of the gain, two of the product
            limit = 8 * 2**-24 * max(1.0, np.abs(value).max())
            np.testing.assert_allclose(found, value, rtol=0, atol=limit, err_msg=name)
        else:
            np.testing.assert_array_equal(found, value.astype(np.float32), err_msg=name)


@PARTS
def test_the_list_is_what_the_reference_has(part):
    if part in synthesize.RULES:
        module = synthesize.build(part, OFFICIAL)
    else:
        with torch.device("meta"):
            build = S3TokenizerV3 if part == "speech_tokenizer" else CAMPPlus
            module = build(getattr(OFFICIAL, part))
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == official_tensors.shapes(part)


def test_the_list_is_what_the_port_has():
    expected = [entry for part in official_tensors.PARTS for entry in official_tensors.entries(part)]
    assert port_shapes(OFFICIAL) == {entry.target: entry.shape() for entry in expected if entry.target}
    counts = {part: len(official_tensors.shapes(part)) for part in official_tensors.PARTS}
    assert counts == {"llm": 293, "flow": 330, "hift": 328, "speech_tokenizer": 198, "speaker": 617}
    numbers = {part: sum(map(math.prod, official_tensors.shapes(part).values())) for part in official_tensors.PARTS}
    assert numbers["flow"] == 332_257_120 and numbers["hift"] == 20_779_887
    assert numbers["speech_tokenizer"] == 242_009_608
    assert numbers["llm"] - 151936 * 896 == 506_148_480  # the tied head is stored once


@PARTS
def test_the_plan_is_the_list(part):
    expected = {entry.names: entry.target for entry in official_tensors.entries(part)}
    assert {step.sources: step.target for step in plan(part, official_tensors.shapes(part))} == expected


# ---- files of official size with a wrong tensor


@pytest.fixture(scope="module")
def audit():
    """Plans and proves one file's shapes, at the official sizes."""
    parameters = port_shapes(OFFICIAL)

    def run(part, shapes):
        own = {name: shape for name, shape in parameters.items() if name.startswith(f"{PORT_ROOT[part]}.")}
        return prove({part: shapes}, {part: plan(part, shapes)}, own)

    return run


def one_of_each_kind(part):
    """A tensor of each kind, from a layer drawn at random."""
    kinds: dict[str, list[str]] = {}
    for entry in official_tensors.entries(part):
        for name in entry.names:
            kind = re.sub(r"\d+", "#", name)
            kinds.setdefault(kind, []).append(name)
    return [random.Random(kind).choice(names) for kind, names in kinds.items()]


@PARTS
def test_a_tensor_that_is_missing(audit, part):
    whole = official_tensors.shapes(part)
    assert audit(part, whole).sources == len(whole)
    for name in one_of_each_kind(part):
        with pytest.raises(Refused) as refusal:
            audit(part, {key: shape for key, shape in whole.items() if key != name})
        assert "missing" in str(refusal.value) or "not filled" in str(refusal.value) or name in str(refusal.value), name


@PARTS
def test_a_tensor_of_another_shape(audit, part):
    whole = official_tensors.shapes(part)
    for name in one_of_each_kind(part):
        shape = whole[name]
        others = [(*shape[:i], size + 1, *shape[i + 1 :]) for i, size in enumerate(shape)]
        others = [(*shape, 1), shape[:-1], *others] if name != ROTARY else [(*shape, 1), ()]
        if len(set(shape)) > 1:
            others.append(shape[::-1])
        for other in others:
            with pytest.raises(Refused) as refusal:
                audit(part, whole | {name: other})
            assert name in str(refusal.value)


@PARTS
def test_a_tensor_that_the_model_does_not_know(audit, part):
    whole = official_tensors.shapes(part)
    for name in one_of_each_kind(part):
        pieces = name.split(".")
        strangers = [f"{name}x", f"x{name}", f"{name}.weight", ".".join([*pieces[:-1], "extra", pieces[-1]])]
        # One more layer in each stack that contains the tensor.
        strangers += [".".join([*pieces[:i], "77", *pieces[i + 1 :]]) for i, p in enumerate(pieces) if p.isdigit()]
        for stranger in strangers:
            with pytest.raises(Refused) as refusal:
                audit(part, whole | {stranger: whole[name]})
            assert stranger in str(refusal.value)


def test_every_file_is_in_the_list():
    assert {file.name for file in FILES} == set(official_tensors.PARTS)
