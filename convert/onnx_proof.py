"""Prove that an ONNX graph computes the same as the model that receives its weights.

We find weights by the names of nodes and only assume the rest of the graph: its order, axes and constants. So we run
the graph on two short inputs (`convert.onnx_run`) and compare it with the reference, both in float64. What remains is
the rounding of the constants that the file stores in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from convert.onnx_functions import as_tensor
from convert.onnx_graph import Graph, OnnxWeights
from convert.onnx_ops import NodeError, odd_one, read_attributes
from convert.onnx_run import UnknownOpError, run
from port.config import SpeakerConfig, SpeechTokenizerConfig
from reference.frontend.speaker import CAMPPlus
from reference.frontend.speech_tokenizer import MAX_POSITIONS, S3TokenizerV3, rotary_tables

logger = logging.getLogger(__name__)
LIMIT = 1e-5  # relative rms; rounded constants cause 5e-9, the smallest effective change of an attribute 1e-4
TIE = 1e-4  # this close to a rounding boundary, either digit is right
SPEAKER_FRAMES = (203, 57)  # 203 leave 102 after the stride: a segment and 2 frames
TOKENIZER_FRAMES = ((57, 57), (22, 22), (57, 41))  # with the length: the last one has padding, like a row of a batch


def prove_speaker(graph: Graph, weights: OnnxWeights) -> None:
    """Compare embeddings.

    Raises:
        Refused: the graph computes something different; the message names the likely node.
    """
    config: SpeakerConfig = weights.config
    for frames in SPEAKER_FRAMES:
        x = _noise(frames, 1, frames, config.n_mels)
        with _reference(partial(CAMPPlus, config), weights) as model:
            wanted = model(x)
        results = _computed(graph, [x])
        if results is None:
            return
        _require_equal(graph, f"the embedding of {frames} frames", results[0], wanted)


def prove_speech_tokenizer(graph: Graph, weights: OnnxWeights) -> None:
    """Compare the values before rounding to digits, and the tokens.

    Raises:
        Refused: as `prove_speaker`.
    """
    config: SpeechTokenizerConfig = weights.config
    for frames, valid in TOKENIZER_FRAMES:
        mel, length = _noise(frames, 1, config.n_mels, frames), torch.tensor([valid])
        with _reference(partial(S3TokenizerV3, config), weights) as model:
            tables = rotary_tables(MAX_POSITIONS, config.dim // config.heads, config.rope_theta)
            model.cos, model.sin = (table.double() for table in tables)
            wanted, _ = cast(Callable[..., tuple[Tensor, Tensor]], model.activations)(mel, length)
            tokens, lengths = model(mel, length)
        results = _computed(graph, [mel, length], "Round")
        if results is None:
            return
        (found, rounded), what = results, f"the tokens of {valid} of {frames} frames"
        if found.numel() != tokens.numel():
            raise _another(graph, f"{what} are {found.numel()}, expected {tokens.numel()}")
        kept = slice(int(lengths))  # the results for padding are never read
        wanted, tokens, found = wanted[:, kept], tokens[:, kept], found.reshape(tokens.shape)[:, kept]
        if rounded is not None:
            _require_equal(graph, f"what is rounded to {what}", rounded[:, kept], wanted)
        sure = ((wanted.abs() - 0.5).abs() > TIE).all(dim=-1)
        if not torch.equal(found[sure].to(tokens), tokens[sure]):
            raise _another(graph, f"{what} differ")


def _computed(graph: Graph, inputs: list[Tensor], before: str = "") -> tuple[Tensor, Tensor | None] | None:
    """The graph's first output, and the input of its one node `before`; None if an operator is not supported here."""
    own = [value for value in graph.file.graph.input if value.name not in graph.initializers]
    if len(own) != len(inputs) or not graph.file.graph.output:
        raise graph.error(f"the graph has {len(own)} inputs, expected {len(inputs)}")
    given: dict[str, Tensor] = {}
    for value, x in zip(own, inputs, strict=True):
        kind = value.type.tensor_type.elem_type
        whole: dict[int, torch.dtype] = {onnx.TensorProto.INT32: torch.int32, onnx.TensorProto.INT64: torch.int64}
        given[value.name] = x if x.is_floating_point() else x.to(whole.get(kind, torch.int32))
    output, between = graph.file.graph.output[0].name, []

    def stored(name: str) -> Tensor | None:
        return as_tensor(graph.value(name)) if name in graph.stored else None

    found: Tensor | None = None
    try:
        for node, values, results in run(
            graph.nodes, lambda node: read_attributes(node, graph.opset), stored, given, [output]
        ):
            if node.op_type == before:
                between.append(values[0])
            if output in node.output:
                found = results[list(node.output).index(output)]
    except UnknownOpError as error:
        logger.warning("%s: not compared with the model: it has %s", graph.path, error)
        return None
    except NodeError as error:
        raise graph.error(str(error)) from None
    if found is None:
        raise graph.error(f"no node gives the output {output!a}")
    return found, between[0] if len(between) == 1 else None


def _require_equal(graph: Graph, what: str, found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape:
        raise _another(graph, f"{what} has shape {list(found.shape)}, expected {list(wanted.shape)}")
    error = float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
    if not error <= LIMIT:
        raise _another(graph, f"{what} differs by {error:.1e}")


def _another(graph: Graph, what: str) -> Exception:
    reason = odd_one(graph.file) or "an edge, an axis or a constant differs from the official files"
    return graph.error(f"the graph and the model compute different things: {what}; {reason}")


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@contextmanager
def _reference(build: Any, weights: Mapping[str, np.ndarray]) -> Iterator[nn.Module]:
    """The model in float64. Only the running layer's weights are in memory: all of them would take 2 GB."""
    with torch.device("meta"):
        model = build().eval()

    def fill(name: str, module: nn.Module, _: Any) -> None:
        for key, empty in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if empty.is_meta:
                value = torch.from_numpy(weights[f"{name}.{key}"].astype(np.float64))
                setattr(module, key, nn.Parameter(value, False) if key in module._parameters else value)

    def drop(module: nn.Module, *_: Any) -> None:
        module.to("meta")

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(partial(fill, name))
            module.register_forward_hook(drop)
    with torch.inference_mode():
        yield model
