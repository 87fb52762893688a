"""References and class paths in the official yaml, followed as data."""

from __future__ import annotations

import re
from typing import Any

from convert.checkpoint import Tagged
from port.config import ConfigError

# What each place of the yaml must build.
CLASSES = {
    "llm": "cosyvoice.llm.llm.CosyVoice3LM",
    "llm.llm": "cosyvoice.llm.llm.Qwen2Encoder",
    "llm.sampling": "cosyvoice.utils.common.ras_sampling",
    "flow": "cosyvoice.flow.flow.CausalMaskedDiffWithDiT",
    "flow.pre_lookahead_layer": "cosyvoice.transformer.upsample_encoder.PreLookaheadLayer",
    "flow.decoder": "cosyvoice.flow.flow_matching.CausalConditionalCFM",
    "flow.decoder.cfm_params": "omegaconf.DictConfig",
    "flow.decoder.estimator": "cosyvoice.flow.DiT.dit.DiT",
    "hift": "cosyvoice.hifigan.generator.CausalHiFTGenerator",
    "hift.f0_predictor": "cosyvoice.hifigan.f0_predictor.CausalConvRNNF0Predictor",
    "feat_extractor": "matcha.utils.audio.mel_spectrogram",
    "get_tokenizer": "cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer",
}


def resolve(document: dict[str, Any], value: Any, where: str) -> Any:
    """Follow references and check class paths.

    Args:
        document: the whole file, which references name.
        value: the part to resolve.
        where: its place, as in `CLASSES`.

    Returns:
        The same structure of plain values.

    Raises:
        ConfigError: a class that does not belong there, or a reference to nothing.
    """
    if isinstance(value, Tagged) and value.kind == "ref":
        return _reference(document, value.target, where)
    wanted = CLASSES.get(where)
    found = value.target if isinstance(value, Tagged) else None
    if found != wanted:
        raise ConfigError(f"{where}: class {found!r} is not known, expected {wanted or 'plain values'}")
    if isinstance(value, Tagged):
        value = {} if value.value is None else value.value
    if isinstance(value, dict):
        return {key: resolve(document, item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(document, item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def _reference(document: dict[str, Any], text: str, where: str) -> Any:
    names = re.findall(r"<(\w+)>", text)
    if not re.fullmatch(r"\s*<\w+>(\s*\*\s*<\w+>)*\s*", text):
        raise ConfigError(f"{where}: reference {text!r:.60} is not a name or a product of names")
    product: Any = None
    for name in names:
        value = document.get(name)
        if not isinstance(value, int | float | str):
            raise ConfigError(f"{where}: reference <{name}> names no plain value of this file")
        if len(names) > 1 and isinstance(value, str):
            raise ConfigError(f"{where}: reference <{name}> is not a number")
        product = value if product is None else product * value
    return product
