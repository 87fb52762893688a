"""The weights files of the official folder, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from convert.checkpoint import StateDict, read_state_dict
from convert.official import SPEAKER_FILE, SPEECH_TOKENIZER_FILE
from convert.onnx_graph import OnnxWeights
from convert.onnx_weights import read_speaker, read_speech_tokenizer

Weights = StateDict | OnnxWeights


class Part(NamedTuple):
    """One weights file of the official folder."""

    name: str
    file: str
    read: Callable[[Path], Weights]


# In the order of writing: ONNX files are in memory while they are open, so they go first.
PARTS = (
    Part("speech_tokenizer", SPEECH_TOKENIZER_FILE, read_speech_tokenizer),
    Part("speaker", SPEAKER_FILE, read_speaker),
    Part("flow", "flow.pt", read_state_dict),
    Part("hift", "hift.pt", read_state_dict),
    Part("llm", "llm.pt", read_state_dict),
)
