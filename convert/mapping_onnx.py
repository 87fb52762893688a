"""Rows of the one table (`convert.mapping`) for the two ONNX files, as plain data.

`convert.onnx_graph` names the weights: source keys are the names of the PyTorch modules behind the graph, in
PyTorch's layouts. Patterns are written as in `convert.mapping`; `conv` moves the input channels to the end.
"""

from __future__ import annotations

from typing import Literal

OnnxRow = tuple[str, str, str, Literal["identity", "conv"]]  # part, source pattern, target, transform

_BLOCK, _TOKENIZER = "blocks.#", "speech_tokenizer"
_LAYER, _SPEAKER = "xvector.block#.tdnnd#", "speaker"

ONNX_ROWS: tuple[OnnxRow, ...] = (
    # speech_tokenizer_v3.onnx
    ("speech_tokenizer", "(conv1|conv2).weight", f"{_TOKENIZER}.$1.weight", "conv"),
    ("speech_tokenizer", "(conv1|conv2).bias", f"{_TOKENIZER}.$1.bias", "identity"),
    (
        "speech_tokenizer",
        f"{_BLOCK}.(attn_ln|mlp_ln).(weight|bias)",
        f"{_TOKENIZER}.blocks.$1.$2.$3",
        "identity",
    ),
    (
        "speech_tokenizer",
        f"{_BLOCK}.attn.(query|value|out).(weight|bias)",
        f"{_TOKENIZER}.blocks.$1.attn.$2.$3",
        "identity",
    ),
    ("speech_tokenizer", f"{_BLOCK}.attn.key.weight", f"{_TOKENIZER}.blocks.$1.attn.key.weight", "identity"),
    ("speech_tokenizer", f"{_BLOCK}.attn.fsmn_block.weight", f"{_TOKENIZER}.blocks.$1.attn.fsmn_block.weight", "conv"),
    # The activation has index 1 in the original's nn.Sequential, and in MLX's.
    ("speech_tokenizer", f"{_BLOCK}.mlp.(0|2).(weight|bias)", f"{_TOKENIZER}.blocks.$1.mlp.layers.$2.$3", "identity"),
    ("speech_tokenizer", "quantizer.project_in.(weight|bias)", f"{_TOKENIZER}.quantizer.project_in.$1", "identity"),
    # campplus.onnx
    ("speaker", "head.(conv1|conv2).weight", f"{_SPEAKER}.head.$1.weight", "conv"),
    ("speaker", "head.(conv1|conv2).bias", f"{_SPEAKER}.head.$1.bias", "identity"),
    ("speaker", "head.(layer1|layer2).#.(conv1|conv2).weight", f"{_SPEAKER}.head.$1.layers.$2.$3.weight", "conv"),
    ("speaker", "head.(layer1|layer2).#.(conv1|conv2).bias", f"{_SPEAKER}.head.$1.layers.$2.$3.bias", "identity"),
    (
        "speaker",
        "head.(layer1|layer2).#.shortcut.#.weight",
        f"{_SPEAKER}.head.$1.layers.$2.shortcut.layers.$3.weight",
        "conv",
    ),
    (
        "speaker",
        "head.(layer1|layer2).#.shortcut.#.bias",
        f"{_SPEAKER}.head.$1.layers.$2.shortcut.layers.$3.bias",
        "identity",
    ),
    ("speaker", "xvector.(tdnn|transit[0-9]+|dense).linear.weight", f"{_SPEAKER}.xvector.$1.linear.weight", "conv"),
    ("speaker", "xvector.(tdnn|transit[0-9]+).linear.bias", f"{_SPEAKER}.xvector.$1.linear.bias", "identity"),
    (
        "speaker",
        f"{_LAYER}.nonlinear1.batchnorm.(weight|bias|running_mean|running_var)",
        f"{_SPEAKER}.xvector.block$1.tdnnd$2.nonlinear1.batchnorm.$3",
        "identity",
    ),
    ("speaker", f"{_LAYER}.linear1.weight", f"{_SPEAKER}.xvector.block$1.tdnnd$2.linear1.weight", "conv"),
    ("speaker", f"{_LAYER}.linear1.bias", f"{_SPEAKER}.xvector.block$1.tdnnd$2.linear1.bias", "identity"),
    (
        "speaker",
        f"{_LAYER}.cam_layer.(linear_local|linear1|linear2).weight",
        f"{_SPEAKER}.xvector.block$1.tdnnd$2.cam_layer.$3.weight",
        "conv",
    ),
    (
        "speaker",
        f"{_LAYER}.cam_layer.(linear1|linear2).bias",
        f"{_SPEAKER}.xvector.block$1.tdnnd$2.cam_layer.$3.bias",
        "identity",
    ),
    (
        "speaker",
        "xvector.transit#.nonlinear.batchnorm.(weight|bias|running_mean|running_var)",
        f"{_SPEAKER}.xvector.transit$1.nonlinear.batchnorm.$2",
        "identity",
    ),
    (
        "speaker",
        "xvector.dense.nonlinear.batchnorm.(running_mean|running_var)",
        f"{_SPEAKER}.xvector.dense.nonlinear.batchnorm.$1",
        "identity",
    ),
)
