"""Resolve references and class paths of the official yaml as data; nothing is imported."""

from __future__ import annotations

import ast
import operator
import re
from typing import Any

from convert.checkpoint import Tagged
from port.files.errors import Refused

# The class that each place of the yaml must name.
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

# The arithmetic of HyperPyYAML, without powers.
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
MAX_TEXT = 200  # longest reference, in characters
LARGEST = 1 << 62
MAX_REFERENCES = 8  # longest chain of references


def resolve(document: dict[str, Any], value: Any, where: str) -> Any:
    """Follow references and check class paths.

    Args:
        document: the whole file, which references name.
        value: the part to resolve.
        where: its place, as in `CLASSES`.

    Returns:
        The same structure with plain values.

    Raises:
        Refused: a wrong class, or a reference without a target.
    """
    if isinstance(value, Tagged) and value.kind == "ref":
        return _reference(document, value.target, where)
    wanted = CLASSES.get(where)
    found = value.target if isinstance(value, Tagged) else None
    if found != wanted:
        raise Refused(f"{where}: class {found!r:.120} is not known, expected {wanted or 'plain values'}")
    if isinstance(value, Tagged):
        value = {} if value.value is None else value.value
    if isinstance(value, dict):
        return {key: resolve(document, item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(document, item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def _reference(document: dict[str, Any], text: str, where: str, followed: int = 0) -> Any:
    """Resolve `<name>`, a formula of numbers and names, or a text with names in it."""
    if len(text) > MAX_TEXT or followed > MAX_REFERENCES:
        raise Refused(f"{where}: reference {text!r:.60} is too long, or refers to itself")
    values = {name: _named(document, name, where, followed) for name in re.findall(r"<(\w+)>", text)}
    if single := re.fullmatch(r"\s*<(\w+)>\s*", text):
        return values[single[1]]
    words = [name for name, value in values.items() if isinstance(value, str)]
    if words and "*" in text:
        raise Refused(f"{where}: reference <{words[0]}> is not a number")
    filled = re.sub(r"<(\w+)>", lambda match: str(values[match[1]]), text)
    if words:
        return filled[:MAX_TEXT]
    try:
        number = _computed(ast.parse(filled.strip(), mode="eval").body if values else None)
        if abs(number) >= LARGEST:
            raise ValueError
        return number
    except (ValueError, TypeError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
        raise Refused(f"{where}: reference {text!r:.60} is not a name or a product of names and numbers") from None


def _named(document: dict[str, Any], name: str, where: str, followed: int) -> int | float | str:
    value = document.get(name)
    if isinstance(value, Tagged) and value.kind == "ref":
        return _reference(document, value.target, where, followed + 1)
    if not isinstance(value, int | float | str):
        raise Refused(f"{where}: reference <{name}> names no plain value of this file")
    return value


def _computed(node: ast.expr | None) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_computed(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_computed(node.left), _computed(node.right))
    raise ValueError
