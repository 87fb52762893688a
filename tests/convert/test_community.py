"""Folders in the layout of mlx-community, written here from our own conversion, load like it."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from convert.conversion import convert_folder
from convert.hub import find_source
from parity_tests.speech_support import write_voice
from port.config import SpeakerConfig, SpeechTokenizerConfig, read_settings
from port.cosyvoice3 import CosyVoice3
from port.files import community, weights
from port.files.errors import Refused
from port.frontend.speaker import CAMPPlus
from port.frontend.speech_tokenizer import S3TokenizerV3
from reference.synthesize import synthesize
from tests.support.community_support import rounded, spelled, unfolded, write
from tests.support.convert_support import arrays_of

pytestmark = pytest.mark.part("files.community")

SAID = "You are a helpful assistant.<|endofprompt|>Good morning."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("community")
    synthesize(scratch / "source", "tiny", seed=6)
    convert_folder(find_source(str(scratch / "source")), scratch / "own")
    return scratch / "own"


@pytest.fixture(scope="module")
def own(folder):
    return weights.load(folder)


def test_every_tensor_finds_its_place(own, folder, tmp_path):
    made = write(tmp_path / "fp32", own, folder)
    assert community.recognises(read_settings(made))
    assert not community.recognises(read_settings(folder))
    model, inventory = community.load(made)
    expected, found = rounded(own), rounded(model)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert mx.allclose(found[name], value, rtol=2e-6, atol=2e-6).item(), name
    assert not any(conv.weight[1].any().item() for conv in model.vocoder.f0_predictor.condnet)
    assert inventory.dropped == ("flow.decoder.estimator.rotary_embed.inv_freq",)
    assert inventory.lacking == ()
    stored = arrays_of(made).keys() | arrays_of(made / community.TOKENIZER_FOLDER).keys()
    assert inventory.used.keys() | set(inventory.dropped) == stored
    assert len(set(inventory.used.values())) == len(inventory.used)


def test_every_part_gives_what_ours_gives(own, folder, tmp_path):
    """Outputs agree, so settings that no shape shows, such as the number of heads, were read correctly."""
    model, _ = community.load(write(tmp_path / "made", own, folder))
    rng = np.random.default_rng(0)
    mel, spread = (mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((1, 203, 128), (1, 192)))
    text, token = rng.integers(0, 300, (1, 24)).astype(np.int32), rng.integers(0, 6561, (1, 12)).astype(np.int32)
    for result in (
        lambda m: m.speech_tokenizer.activations(mel, mx.array([203]))[0],
        lambda m: m.speaker(mel[:, :, :80]),
        lambda m: m.llm.step(m.llm.embed_text(text), m.llm.qwen2.make_cache()),
        lambda m: m.flow.inference(token, token[:, :0], mx.zeros((1, 0, 80)), spread),
    ):
        assert mx.allclose(result(model), result(own), rtol=1e-3, atol=1e-3).item()


@pytest.mark.parametrize(
    "settings", [{"flow.dit.heads": 2, "flow.dit.dim_head": 32}, {"flow.dit.heads": 8, "flow.dit.dim_head": 8}]
)
def test_the_frequencies_show_the_width_of_a_head(own, folder, tmp_path, settings):
    with pytest.raises(Refused, match="inv_freq is not of heads of"):
        community.load(write(tmp_path / "made", own, folder, settings=settings))


def test_the_speaker_encoder_of_the_official_depth_has_815_arrays(tmp_path):
    """As many as the published repositories have under `campplus.`."""
    parameters = dict(tree_flatten(CAMPPlus(SpeakerConfig()).parameters()))
    names = {spelled(f"speaker.{name}"): value for name, value in parameters.items()}
    assert len(unfolded(names)) == 815


@pytest.mark.parametrize("bits", [None, 8, 4], ids=["fp16", "8bit", "4bit"])
def test_published_precisions(own, folder, tmp_path, caplog, bits):
    made = write(tmp_path / "made", own, folder, mx.float16, bits, tokenizer=False)
    model, inventory = community.load(made)
    absent = dict(tree_flatten(S3TokenizerV3(SpeechTokenizerConfig()).parameters()))
    assert set(inventory.lacking) == {f"speech_tokenizer.{name}" for name in absent}
    (line,) = caplog.messages
    assert "no speech tokenizer" in line
    count = len(inventory.used) + 1
    assert f"{count} tensors: {count - 1} used, 1 dropped, {len(inventory.lacking)} parameters without one" in line
    assert "\n" not in line
    layer, stored = model.llm.qwen2.layers[0].mlp.gate_proj, arrays_of(made)
    assert isinstance(layer, nn.QuantizedLinear) == bool(bits)
    for kind in ("weight", "scales", "biases") if bits else ("weight",):
        assert mx.array_equal(layer[kind], stored[f"qwen2.model.layers.0.mlp.gate_proj.{kind}"])
    tokens = np.array([[5, own.config.llm.end_of_prompt, 9]], np.int32)
    assert mx.isfinite(model.llm.step(model.llm.embed_text(tokens), model.llm.qwen2.make_cache())).all().item()


def test_a_folder_without_the_speech_tokenizer_says_so_when_it_gets_a_recording(own, folder, tmp_path):
    made = write(tmp_path / "made", own, folder, tokenizer=False)
    voice = CosyVoice3.from_pretrained(made)
    wav = write_voice(tmp_path / "prompt.wav", 1.1, 16000)
    with pytest.raises(ValueError, match="no speech tokenizer, so no recording can be heard; put the files of"):
        list(voice.inference_zero_shot("Hello.", SAID, wav))


def test_a_whole_folder_speaks(own, folder, tmp_path):
    voice = CosyVoice3.from_pretrained(write(tmp_path / "made", own, folder, mx.float16))
    source, prompt = (write_voice(tmp_path / f"{s}.wav", s, 16000) for s in (1.3, 1.1))
    (speech,) = voice.inference_vc(source, prompt)
    assert np.isfinite(np.array(speech["tts_speech"])).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({"qwen2.lm_head.weight": mx.zeros(2)}), "unknown tensor 'qwen2.lm_head.weight'"),
        (lambda t: t.update({"flow.extra": mx.zeros(2)}), "unknown tensor 'flow.extra'"),
        (lambda t: t.pop("hifigan.conv_pre.conv.bias"), "tensor 'vocoder.conv_pre.bias' is missing"),
        (lambda t: t.pop("campplus.head.bn1.running_var"), "head.bn1.running_var is missing"),
        (lambda t: t.pop("campplus.tdnn.linear.weight"), "tdnn.linear.weight is missing"),
        (lambda t: t.update({"llm.llm_decoder.weight": mx.zeros((3, 64))}), r"has shape \[3, 64\]"),
    ],
)
def test_folders_that_are_damaged(own, folder, tmp_path, change, said):
    with pytest.raises(Refused, match=said) as refusal:
        community.load(write(tmp_path / "made", own, folder, change=change))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "change",
    [
        {"hifigan": {}, "llm": 5},
        {"llm": []},
        {"llm": "x"},
        {"flow": True},
        {"flow": {"dit": [1]}},
        {"hifigan": 0.5},
        {"llm": {"hidden_size": "64"}},
        {"llm": {"extended_vocab_size": {}}},
        {"quantization": 4},
        {"quantization": [4]},
        {"quantization": {"group_size": 0, "bits": 4}},
    ],
)
def test_broken_configurations(own, folder, tmp_path, change):
    made = write(tmp_path / "made", own, folder)
    content = json.loads((made / "config.json").read_text())
    content = {k: v | change[k] if isinstance(change.get(k), dict) and change[k] else v for k, v in content.items()}
    (made / "config.json").write_text(json.dumps(change | {k: v for k, v in content.items() if k not in change}))
    with pytest.raises(Refused) as refusal:
        community.load(made)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name",
    [
        "campplus.head.conv1.weight",
        "campplus.head.bn1.weight",
        "campplus.head.bn1.running_var",
        "campplus.tdnn.linear.weight",
        "campplus.tdnn.nonlinear.0.bias",
        "campplus.blocks.0.layers.0.cam_layer.linear_local.weight",
        "campplus.out_nonlinear.0.running_mean",
        "hifigan.f0_predictor.condnet_0.conv.weight",
        "encoder.conv2.weight",
        "llm.speech_embedding.weight",
    ],
)
@pytest.mark.parametrize("value", [mx.array(1.0), mx.zeros((0,)), mx.ones((2, 2)), mx.ones((1, 1, 1, 1, 1))])
def test_tensors_of_a_wrong_shape(own, folder, tmp_path, name, value):
    made = write(tmp_path / "made", own, folder, tokenizer=False)
    tensors = arrays_of(made)
    assert name in tensors or name.startswith("encoder.")
    mx.save_safetensors(str(made / "model.safetensors"), tensors | {name: value}, {"format": "mlx"})
    with pytest.raises(Refused) as refusal:
        community.load(made)
    assert "\n" not in str(refusal.value)


def test_a_block_number_of_5000_digits(own, folder, tmp_path):
    name = f"campplus.blocks.{'9' * 5000}.layers.0.cam_layer.linear_local.weight"
    made = write(tmp_path / "made", own, folder, change=lambda tensors: tensors.update({name: mx.ones(2)}))
    with pytest.raises(Refused) as refusal:
        community.load(made)
    assert len(str(refusal.value)) < 1000
