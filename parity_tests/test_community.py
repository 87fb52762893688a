"""Other people's conversions: the layout of mlx-community, written here from the converted checkpoint, is read back."""

import json
import re
from dataclasses import asdict
from types import MappingProxyType

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from convert import run
from parity_tests.convert_support import put
from parity_tests.speech_support import write_voice
from port import community, weights
from port.config import SpeakerConfig, SpeechTokenizerConfig
from port.cosyvoice3 import CosyVoice3
from port.frontend.speaker import CAMPPlus
from port.frontend.speech_tokenizer import S3TokenizerV3
from port.frontend.tokenizer import CosyVoice3Tokenizer
from port.storage import WeightsError
from reference.synthesize import synthesize

PITCH = "vocoder.f0_predictor.condnet."
SAID = "You are a helpful assistant.<|endofprompt|>Good morning."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("community")
    synthesize(scratch / "source", "tiny", seed=6)
    rows = [{"checkpoint": "stand-in", "status": "PASS"}]
    run.convert_folder(run.find_source(str(scratch / "source")), scratch / "own", lambda *_: rows)
    return scratch / "own"


@pytest.fixture(scope="module")
def own(folder):
    return weights.load(folder)


def spelled(name):
    """A parameter of the port as mlx-audio-plus spells it; its rules, not the loader's table."""
    part, _, rest = name.partition(".")
    if part == "llm":
        return rest.replace("qwen2.", "qwen2.model.") if rest.startswith("qwen2.") else name
    if part == "flow":
        name = name.replace("time_embed.linear_1", "time_embed.time_mlp_0")
        name = name.replace("time_embed.linear_2", "time_embed.time_mlp_2")
        name = name.replace("ff.linear_1", "ff.ff_0_0").replace("ff.linear_2", "ff.ff_2")
        return name.replace("attn.to_out.", "attn.to_out_0.")
    if part == "vocoder":
        rest = re.sub(r"condnet\.(\d)", lambda m: f"condnet_{2 * int(m[1])}", rest)
        convolution = r"^(conv_pre|conv_post|ups|source_downs|.*\.convs\d|.*condnet_)"
        return "hifigan." + (re.sub(r"\.(weight|bias)$", r".conv.\1", rest) if re.match(convolution, rest) else rest)
    if part == "speaker":
        rest = rest.removeprefix("xvector.").replace(".layers.", ".")
        rest = re.sub(r"block(\d)\.tdnnd(\d+)", lambda m: f"blocks.{int(m[1]) - 1}.layers.{int(m[2]) - 1}", rest)
        rest = re.sub(r"transit(\d)", lambda m: f"transits.{int(m[1]) - 1}", rest)
        return f"campplus.{rest}".replace(".batchnorm.", ".0.")
    rest = rest.replace("quantizer.project_in", "quantizer.fsq_codebook.project_down")
    return rest if rest.startswith("quantizer") else f"encoder.{rest}"


def unfolded(tensors, seed=0):
    """Batch norms taken out of the convolutions of the speaker encoder, with statistics of any kind."""
    rng, found = np.random.default_rng(seed), dict(tensors)
    last = max(name for name in tensors if re.search(r"transits\.\d\.linear\.weight", name))
    for name in list(tensors):
        norm = None
        if re.search(r"campplus\.head\.(.*\.)?conv\d\.weight", name):
            norm = re.sub(r"conv(\d)\.weight", r"bn\1", name)
        elif re.search(r"shortcut\.0\.weight", name):
            norm = name.replace("shortcut.0.weight", "shortcut.1")
        elif name == "campplus.tdnn.linear.weight":
            norm = "campplus.tdnn.nonlinear.0"
        elif re.search(r"layers\.\d+\.linear1\.weight", name) and name.startswith("campplus.blocks"):
            norm = name.replace("linear1.weight", "nonlinear2.0")
        elif name == last:
            norm = "campplus.out_nonlinear.0"
        if norm is None:
            continue
        width = tensors[name].shape[0]
        gamma, mean = rng.uniform(0.5, 2, width), rng.standard_normal(width)
        variance = rng.uniform(0.2, 3, width)
        scale = gamma / np.sqrt(variance + 1e-5)
        bias = name.replace(".weight", ".bias")
        weight = np.array(tensors[name], np.float64) / scale.reshape(-1, *[1] * (tensors[name].ndim - 1))
        vectors = {"weight": gamma, "bias": np.array(found.pop(bias)) + mean * scale}
        vectors |= {"running_mean": mean, "running_var": variance}
        found[name] = mx.array(weight.astype(np.float32))
        found |= {f"{norm}.{kind}": mx.array(v.astype(np.float32)) for kind, v in vectors.items()}
    return found


def rounded(own):
    """The parameters, of the pitch predictor's weights the first summand alone."""
    found = dict(tree_flatten(own.parameters()))
    return {name: value[0] if PITCH in name and value.ndim == 4 else value for name, value in found.items()}


def write(
    folder,
    own,
    source,
    dtype=mx.float32,
    bits=None,
    tokenizer=True,
    change=lambda tensors: None,
    settings=MappingProxyType({}),
    hearing=MappingProxyType({}),
):
    """The two repositories, one inside the other; `settings` and `hearing` change their config.json."""
    tensors = unfolded({spelled(name): value for name, value in rounded(own).items()})
    tensors["flow.decoder.estimator.rotary_embed.inv_freq"] = mx.zeros(8)
    tensors = {name: value.astype(dtype) for name, value in tensors.items()}
    config, quantization = own.config, {}
    if bits:
        for name in [n for n in tensors if re.search(r"qwen2\.model\.layers\..*proj\.weight", n)]:
            layer = name.removesuffix(".weight")
            packed = mx.quantize(tensors[name], 32, bits)
            tensors |= dict(zip((name, f"{layer}.scales", f"{layer}.biases"), packed, strict=True))
        quantization = {"bits": bits, "group_size": 32, "quantized_components": ["qwen2.model.layers"]}
    heard = {name: tensors.pop(name) for name in list(tensors) if name.startswith(("encoder.", "quantizer."))}
    change(tensors)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    if tokenizer:
        (folder / community.TOKENIZER_FOLDER).mkdir()
        mx.save_safetensors(str(folder / community.TOKENIZER_FOLDER / "model.safetensors"), heard, {"format": "mlx"})
        hears = {"model_type": "s3_tokenizer_v3", "n_mels": 128, "n_audio_ctx": 1500, "n_codebook_size": 6561}
        hears |= {"n_audio_state": config.speech_tokenizer.dim, "n_audio_head": config.speech_tokenizer.heads}
        hears |= {"n_audio_layer": config.speech_tokenizer.depth}
        path = folder / community.TOKENIZER_FOLDER / "config.json"
        path.write_text(json.dumps(put(hears, hearing)))
    llm = asdict(config.llm.qwen2) | {"speech_token_size": config.llm.speech_token_size, "llm_input_size": 64}
    llm |= {"extended_vocab_size": config.llm.num_special_tokens, "end_of_prompt": config.llm.end_of_prompt}
    flow = {k: v for k, v in asdict(config.flow).items() if k not in ("cfm",)}
    content = {"model_type": "cosyvoice3", "sample_rate": 24000, "dtype": "float16", "llm": llm, "flow": flow}
    content |= {"hifigan": asdict(config.vocoder) | {"causal": True}}
    content |= {"quantization": quantization} if bits else {}
    (folder / "config.json").write_text(json.dumps(put(content, settings)))
    CosyVoice3Tokenizer.from_folder(source).save(folder)
    return folder


def test_every_tensor_finds_its_place(own, folder, tmp_path):
    made = write(tmp_path / "fp32", own, folder)
    assert community.recognises(made)
    assert not community.recognises(folder)
    model, inventory = community.load(made)
    expected, found = rounded(own), rounded(model)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert mx.allclose(found[name], value, rtol=2e-6, atol=2e-6).item(), name
    assert not any(conv.weight[1].any().item() for conv in model.vocoder.f0_predictor.condnet)
    assert inventory.dropped == ("flow.decoder.estimator.rotary_embed.inv_freq",)
    assert inventory.lacking == ()
    stored = mx.load(str(made / "model.safetensors")).keys()
    stored |= mx.load(str(made / community.TOKENIZER_FOLDER / "model.safetensors")).keys()
    assert inventory.used.keys() | set(inventory.dropped) == stored
    assert len(set(inventory.used.values())) == len(inventory.used)


def test_every_part_gives_what_ours_gives(own, folder, tmp_path):
    """Numbers that no shape shows, heads among them, are the same: what each part says is."""
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
    "settings",
    [{"flow.dit.heads": 2, "flow.dit.dim_head": 32}, {"flow.dit.heads": 8, "flow.dit.dim_head": 8}],
)
def test_the_frequencies_show_the_width_of_a_head(own, folder, tmp_path, settings):
    with pytest.raises(WeightsError, match="inv_freq is not of heads of"):
        community.load(write(tmp_path / "made", own, folder, settings=settings))


def test_the_speaker_encoder_of_the_official_depth_has_815_arrays(tmp_path):
    """As many as the repositories hold under `campplus.`."""
    names = {spelled(f"speaker.{name}"): value for name, value in tree_flatten(CAMPPlus(SpeakerConfig()).parameters())}
    assert len(unfolded(names)) == 815


@pytest.mark.parametrize("bits", [None, 8, 4], ids=["fp16", "8bit", "4bit"])
def test_published_precisions(own, folder, tmp_path, caplog, bits):
    made = write(tmp_path / "made", own, folder, mx.float16, bits, tokenizer=False)
    model, inventory = community.load(made)
    absent = S3TokenizerV3(SpeechTokenizerConfig()).parameters()
    assert set(inventory.lacking) == {f"speech_tokenizer.{name}" for name, _ in tree_flatten(absent)}
    (line,) = caplog.messages
    assert "no speech tokenizer" in line
    count = len(inventory.used) + 1
    assert f"{count} tensors: {count - 1} used, 1 dropped, {len(inventory.lacking)} parameters without one" in line
    assert "\n" not in line
    layer, stored = model.llm.qwen2.layers[0].mlp.gate_proj, mx.load(str(made / "model.safetensors"))
    assert isinstance(layer, nn.QuantizedLinear) == bool(bits)
    for kind in ("weight", "scales", "biases") if bits else ("weight",):
        assert mx.array_equal(layer[kind], stored[f"qwen2.model.layers.0.mlp.gate_proj.{kind}"])
    tokens = np.array([[5, own.config.llm.end_of_prompt, 9]], np.int32)
    assert mx.isfinite(model.llm.step(model.llm.embed_text(tokens), model.llm.qwen2.make_cache())).all().item()


def test_a_folder_without_the_speech_tokenizer_says_so_when_it_must_hear(own, folder, tmp_path):
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
    with pytest.raises(WeightsError, match=said) as refusal:
        community.load(write(tmp_path / "made", own, folder, change=change))
    assert "\n" not in str(refusal.value)
