"""The weights files of the official folder, and who reads them."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import NamedTuple

from convert.checkpoint import StateDict, read_state_dict
from convert.official import SPEAKER_FILE, SPEECH_TOKENIZER_FILE
from convert.onnx_graph import OnnxWeights
from convert.onnx_weights import read_speaker, read_speech_tokenizer
from convert.release import LLM_FILES
from port.files.disk import read_json

Weights = StateDict | OnnxWeights


class Part(NamedTuple):
    """One weights file of the official folder."""

    name: str
    file: str
    read: Callable[[Path], Weights]


# In writing order: an open ONNX file occupies memory, so they come first.
PARTS = (
    Part("speech_tokenizer", SPEECH_TOKENIZER_FILE, read_speech_tokenizer),
    Part("speaker", SPEAKER_FILE, read_speaker),
    Part("flow", "flow.pt", read_state_dict),
    Part("hift", "hift.pt", read_state_dict),
    Part("llm", "llm.pt", read_state_dict),
)


def held_as(file: str, names: Container[str]) -> str:
    """A file's name, or that of the same weights as safetensors where `names` has only those."""
    other = str(Path(file).with_suffix(".safetensors"))
    return other if file.endswith(".pt") and file not in names and other in names else file


def official_parts(llm: str = "base", names: Container[str] = ()) -> tuple[Part, ...]:
    """`PARTS` with one of the two language models, under the file names that a folder has."""
    files = {part.name: LLM_FILES[llm] if part.name == "llm" else part.file for part in PARTS}
    return tuple(part._replace(file=held_as(files[part.name], names)) for part in PARTS)


def converted_parts(folder: Path) -> tuple[Part, ...]:
    """The parts that a converted folder was made from, as its config.json says.

    Raises:
        Refused: it cannot be read.
    """
    provenance = read_json(folder / "config.json").get("provenance")
    hashes = provenance.get("sha256") if isinstance(provenance, dict) else None
    names = frozenset(hashes) if isinstance(hashes, dict) else frozenset()
    return official_parts("rl" if held_as(LLM_FILES["rl"], names) in names else "base", names)
