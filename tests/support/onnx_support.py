"""Tiny ONNX files of the speech tokenizer and the speaker encoder, and all models that compute what they do."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import onnx
import onnxruntime
import torch

from convert.mapping import convert
from convert.onnx_weights import OnnxWeights, read_speaker, read_speech_tokenizer
from port.config import CosyVoice3Config, SpeakerConfig, SpeechTokenizerConfig
from port.frontend import speaker, speech_tokenizer
from reference.export_onnx import OPSETS, export_speaker, export_speech_tokenizer, live_speaker, live_speech_tokenizer
from reference.frontend.speaker import CAMPPlus
from reference.frontend.speech_tokenizer import S3TokenizerV3

TOKENIZER = SpeechTokenizerConfig(dim=64, heads=4, depth=2)
SPEAKER = SpeakerConfig(
    embed_dim=24, head_channels=8, init_channels=16, growth_rate=8, bottleneck_channels=16, block_layers=(2, 3, 2)
)
# Divides the last segment by its length, as every onnxruntime does where the file excludes padding from the count.
HELD = replace(SPEAKER, divide_by_full_segment=False)
COUNTS = {"speech_tokenizer": 38, "speaker": 122}
READ: dict[str, Callable[[Path], OnnxWeights]] = {"speech_tokenizer": read_speech_tokenizer, "speaker": read_speaker}
CLASSES = {"speech_tokenizer": (S3TokenizerV3, speech_tokenizer.S3TokenizerV3), "speaker": (CAMPPlus, speaker.CAMPPlus)}


def write_files(folder: Path) -> Path:
    """`{part}{opset}.onnx` for both parts and both opsets, and `speaker_held{opset}.onnx`."""
    for opset in OPSETS:
        export_speech_tokenizer(live_speech_tokenizer(TOKENIZER, 0), folder / f"speech_tokenizer{opset}.onnx", opset)
        export_speaker(live_speaker(SPEAKER, 0), folder / f"speaker{opset}.onnx", opset)
        export_speaker(live_speaker(HELD, 0), folder / f"speaker_held{opset}.onnx", opset)
    return folder


def node_of(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    return next(node for node in graph.node if node.name == name)


class Witnesses:
    """The models of one ONNX file: the float32 reference, the oracle, the port, and onnxruntime on the file."""

    def __init__(self, part: str, path: Path) -> None:
        self.part, self.weights = part, READ[part](path)
        theirs, ours = CLASSES[part]
        self.reference = theirs(self.weights.config).eval()
        self.reference.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in self.weights.items()}, strict=True)
        self.oracle = copy.deepcopy(self.reference).double()
        carried = convert(part, self.weights, CosyVoice3Config()).tensors
        self.port = ours(self.weights.config)
        named = [(key.removeprefix(f"{part}."), mx.array(value)) for key, value in carried.items()]
        self.port.load_weights(named, strict=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def onnx(self, *inputs: np.ndarray) -> np.ndarray:
        names = [i.name for i in self.session.get_inputs()]
        return self.session.run(None, dict(zip(names, inputs, strict=True)))[0]
