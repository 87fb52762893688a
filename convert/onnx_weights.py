"""The two official ONNX files as weights: `speech_tokenizer_v3.onnx` and `campplus.onnx`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from convert.mapping import plan
from convert.onnx_graph import Graph, OnnxWeights
from convert.onnx_ops import Attributes
from convert.onnx_proof import prove_speaker, prove_speech_tokenizer
from convert.transforms import Shape
from port.config import SpeakerConfig, SpeechTokenizerConfig, from_dict
from port.files.errors import Refused
from port.frontend.speaker import HEAD_STRIDE, CAMPPlus
from port.frontend.speech_tokenizer import S3TokenizerV3, rotary_tables

C = TypeVar("C", SpeechTokenizerConfig, SpeakerConfig)

FIRST_BLOCK = "blocks.0"
FIRST_LAYER = "xvector.block1.tdnnd1"


def read_speech_tokenizer(path: Path, config: SpeechTokenizerConfig | None = None) -> OnnxWeights:
    """Weights of `speech_tokenizer_v3.onnx`, 198 at full size; rotary tables and norm epsilons are checked.

    Args:
        config: the sizes that the file must have; None accepts any.

    Raises:
        Refused: an unreadable file, external data, a tensor that is missing, unknown or of a wrong shape, a wrong
            constant, or sizes other than `config`.
    """
    graph = Graph(path)
    shapes = graph.shapes()
    _require(path, shapes, "speech tokenizer", "conv1.weight", f"{FIRST_BLOCK}.attn.fsmn_block.weight")
    _require(path, shapes, "speech tokenizer", f"{FIRST_BLOCK}.mlp.0.weight", "quantizer.project_in.weight")
    dim, n_mels = shapes["conv1.weight"][:2]
    found = SpeechTokenizerConfig(
        n_mels=n_mels,
        dim=dim,
        heads=dim // check_rotary_tables(graph, SpeechTokenizerConfig().rope_theta),
        depth=len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        mlp_mult=shapes[f"{FIRST_BLOCK}.mlp.0.weight"][0] // dim,
        fsmn_kernel_size=shapes[f"{FIRST_BLOCK}.attn.fsmn_block.weight"][-1],
        fsq_dim=shapes["quantizer.project_in.weight"][0],
        norm_eps=graph.norm_eps(),
    )
    _check(graph, "speech_tokenizer", shapes, found, config, S3TokenizerV3)
    weights = graph.weights(found)
    prove_speech_tokenizer(graph, weights)
    return weights


def read_speaker(path: Path, config: SpeakerConfig | None = None) -> OnnxWeights:
    """Weights of `campplus.onnx`, 617 at full size, with batch norms folded where the file has them folded.

    Args and Raises as in `read_speech_tokenizer`.
    """
    graph = Graph(path)
    graph.drop_unit_affine("xvector.dense.nonlinear.batchnorm")
    shapes = graph.shapes()
    _require(path, shapes, "speaker encoder", "head.conv1.weight", "xvector.tdnn.linear.weight")
    _require(path, shapes, "speaker encoder", f"{FIRST_LAYER}.linear1.weight", "xvector.dense.linear.weight")
    _require(path, shapes, "speaker encoder", f"{FIRST_LAYER}.cam_layer.linear_local.weight")
    segment_frames, divides = graph.segments()
    layers = Counter(key.split(".")[1] for key in shapes if key.endswith(".cam_layer.linear_local.weight"))
    blocks = [f"block{i + 1}" for i in range(len(layers))]
    head_channels = shapes["head.conv1.weight"][0]
    init_channels, in_channels = shapes["xvector.tdnn.linear.weight"][:2]
    found = SpeakerConfig(
        n_mels=in_channels * HEAD_STRIDE // head_channels,
        embed_dim=shapes["xvector.dense.linear.weight"][0],
        head_channels=head_channels,
        init_channels=init_channels,
        growth_rate=shapes[f"{FIRST_LAYER}.cam_layer.linear_local.weight"][0],
        bottleneck_channels=shapes[f"{FIRST_LAYER}.linear1.weight"][0],
        block_layers=tuple(layers[block] for block in blocks),
        block_dilations=tuple(graph.dilation(f"xvector.{block}.tdnnd1.cam_layer.linear_local") for block in blocks),
        segment_frames=segment_frames,
        divide_by_full_segment=divides,
        norm_eps=graph.norm_eps(),
    )
    _check(graph, "speaker", shapes, found, config, CAMPPlus)
    weights = graph.weights(found)
    prove_speaker(graph, weights)
    return weights


def check_rotary_tables(graph: Graph, theta: float) -> int:
    """Compare the stored cosines and sines with the port's own.

    Returns:
        Their width, which is the head width.

    Raises:
        Refused: not two tables of one shape, or other values.
    """
    tables = sorted(graph.loose_tables().values(), key=lambda table: -abs(float(table.flat[0])))
    if len(tables) != 2 or tables[0].shape != tables[1].shape or tables[0].shape[1] % 2:
        raise graph.error(f"expected two rotary tables of one shape, found {[list(table.shape) for table in tables]}")
    positions, width = tables[0].shape
    # Machines may round the frequency (two operations), the angle and the result differently, by one ulp each.
    angles = np.arange(positions)[:, None] * np.tile(theta ** (-np.arange(0, width, 2) / width), 2)
    allowed = (3 * angles + 1) * np.finfo(np.float32).eps
    for stored, own in zip(tables, rotary_tables(positions, width, theta), strict=True):
        if not (np.abs(stored - np.array(own)) <= allowed).all():
            raise graph.error(f"its rotary tables are not those of theta {theta:g}")
    return width


def _require(path: Path, shapes: dict[str, Shape], what: str, *keys: str) -> None:
    for key in keys:
        if len(shapes.get(key, ())) < 2:
            raise Refused(f"{path}: is not the {what} of CosyVoice 3: no node gives {key}")


def _check(
    graph: Graph, part: str, shapes: dict[str, Shape], found: C, wanted: C | None, build: Callable[[C], nn.Module]
) -> None:
    """Check that the file has the expected sizes, fills every parameter of the port's module once, holds nothing else,
    and has the module's convolutions."""
    for field in fields(found) if wanted is not None else ():
        if getattr(found, field.name) != getattr(wanted, field.name):
            values = f"{getattr(found, field.name)}, expected {getattr(wanted, field.name)}"
            raise graph.error(f"{part}.{field.name} is {values}")
    try:
        model = build(from_dict(type(found), asdict(found), f".{part}"))
        expected = {f"{part}.{name}": array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
        steps = plan(part, shapes)
        given = {step.target or "": step.shape(shapes) for step in steps}
    except (Refused, ValueError, ZeroDivisionError) as error:
        raise graph.error(str(error)) from None
    if missing := sorted(expected.keys() - given.keys()):
        raise graph.error(f"nothing for {missing[0]}; {len(given)} of {len(expected)} weights found")
    if extra := sorted(given.keys() - expected.keys()):
        raise graph.error(f"the model has no place for {extra[0]}")
    for name, shape in expected.items():
        if given[name] != shape:
            raise graph.error(f"{name} has shape {list(given[name] or ())}, expected {list(shape)}")
    layers = dict(tree_flatten(model.leaf_modules(), is_leaf=lambda value: isinstance(value, nn.Module)))
    targets = {step.sources[0]: (step.target or "").removeprefix(f"{part}.").removesuffix(".weight") for step in steps}
    graph.check_convolutions(lambda key: _convolution(layers[targets[key]]))


def _convolution(layer: nn.Conv1d | nn.Conv2d) -> Attributes:
    """A layer's arguments under their ONNX names."""
    one = isinstance(layer, nn.Conv1d)
    names = {"strides": "stride", "pads": "padding", "dilations": "dilation"}
    values = {name: getattr(layer, argument) for name, argument in names.items()}
    lists = {name: list(value) if isinstance(value, tuple) else [value] * (2 - one) for name, value in values.items()}
    return {**lists, "group": getattr(layer, "groups", 1)}
