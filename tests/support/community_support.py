"""Folders as mlx-audio-plus writes them, made from a model of the port."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from port.files import community
from port.frontend.tokenizer import CosyVoice3Tokenizer
from port.model import CosyVoice3Model
from tests.support.parsed_json import put

PITCH = "vocoder.f0_predictor.condnet."


def spelled(name: str) -> str:
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


def unfolded(tensors: Mapping[str, mx.array], seed: int = 0) -> dict[str, mx.array]:
    """Take batch norms with random statistics out of the convolutions of the speaker encoder."""
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


def rounded(own: CosyVoice3Model) -> dict[str, mx.array]:
    """The parameters, but only the first summand of the pitch predictor's weights."""
    found = dict(tree_flatten(own.parameters()))
    return {name: value[0] if PITCH in name and value.ndim == 4 else value for name, value in found.items()}


def write(
    folder: Path,
    own: CosyVoice3Model,
    source: Path,
    dtype: mx.Dtype = mx.float32,
    bits: int | None = None,
    tokenizer: bool = True,
    change: Callable[[dict[str, mx.array]], object] = lambda tensors: None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    hearing: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write both repositories, one inside the other; `settings` and `hearing` change their config.json."""
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
