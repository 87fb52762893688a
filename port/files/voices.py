"""Saved voices: one safetensors file a voice, in the folder `voices` of a model's folder.

L text tokens, P prompt tokens, F prompt frames, C mel bins, E width of the speaker embedding

The original pickles all voices into one file (`spk2info.pt`), which runs code when read. Here a file holds the tensors
of one prompt; its metadata has the transcript, the licence, and the sizes of the model that made it. Both packages use
it, so nothing here depends on a framework.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..config import CosyVoice3Config
from ..request import Prompt
from .disk import beside, require_regular
from .errors import Refused, brief, printable

VOICES = "voices"  # folder in a model's folder
SUFFIX = ".safetensors"
FORMAT, VERSION = "cosyvoice3-voice", "1"
MAX_NAME_BYTES = 200  # leaves room for temporary names within a file system's 255 bytes
MAX_NOTE = 10_000  # characters of the text and of the licence
MAX_BYTES = 64 << 20  # of a file; 30 s of prompt take 0.5 MB
# Not allowed in a name: separators, names reserved by Windows, a dot or blank that hides a file or gets lost.
UNSAFE = re.compile(r'[<>:"/\\|?*]|^[ .-]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
# Of `Prompt`, with shapes (1, L), (1, P), (1, P), (1, F, C), (1, E).
FIELDS = {
    "prompt_text": np.int32,
    "llm_prompt_speech_token": np.int32,
    "flow_prompt_speech_token": np.int32,
    "prompt_speech_feat": np.float32,
    "flow_embedding": np.float32,
}
EMBEDDING = "flow_embedding"  # `inference_sft` needs nothing else


@dataclass(frozen=True)
class Voice(Prompt):
    """A prompt saved under a name, with the arrays of either package, or numpy's when read from a file.

    Attributes:
        text: of the prompt, as a person wrote it.
        licence: note on what the recording may be used for.
    """

    text: str = ""
    licence: str = ""


def check_name(name: object) -> str:
    """The normalised name, if it is valid as a file name on every system.

    Raises:
        Refused: empty, too long, or not valid on some system.
    """
    if not isinstance(name, str) or not name.isprintable() or UNSAFE.search(name) or not name:
        raise Refused(
            f'voice name {name!r:.60} must be printable and safe as a file name: none of <>:"/\\|?*, no dot, dash or '
            "blank in front, no dot or blank at the end, no name of a Windows device"
        )
    name = unicodedata.normalize("NFC", name)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise Refused(f"voice name {name!r:.60} has more than {MAX_NAME_BYTES} bytes")
    return name


def voice_files(folder: str | Path) -> dict[str, Path]:
    """The file of each voice in a model's folder, by name; no file is read.

    Raises:
        Refused: a file has an invalid name.
    """
    found = {}
    for path in sorted((Path(folder) / VOICES).glob(f"[!.]*{SUFFIX}")):  # temporary files begin with a dot
        try:
            found[check_name(path.name.removesuffix(SUFFIX))] = path
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
    return found


def voice_file(folder: str | Path, name: str) -> Path:
    """The file of one voice.

    Raises:
        Refused: there is none; the message lists the known names.
    """
    files = voice_files(folder)
    if name not in files:
        raise Refused(f"voice {name!r:.80} is not known; known voices: {', '.join(files) or 'none'}")
    return files[name]


def load_voices(folder: str | Path, config: CosyVoice3Config) -> dict[str, Voice]:
    """Every voice in a model's folder, by name.

    Args:
        folder: where `save_voice` wrote; without a subfolder of voices there are none.
        config: the model that will use them.

    Raises:
        Refused: see `voice_files` and `read_voice`.
    """
    return {name: read_voice(path, config) for name, path in voice_files(folder).items()}


def read_voice(path: str | Path, config: CosyVoice3Config) -> Voice:
    """Read one file.

    Args:
        path: as written by `write_voice`.
        config: the model that will use it.

    Returns:
        A voice with all of `FIELDS`, or with the embedding alone.

    Raises:
        Refused: not a voice, damaged, another version of the format, or made by a model of other sizes.
    """
    path = Path(path)
    try:
        require_regular(path)
        if path.stat().st_size > MAX_BYTES:
            raise Refused(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no voice is")
        with safe_open(path, "np") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if name in FIELDS}  # noqa: SIM118
            unknown = sorted(set(file.keys()) - FIELDS.keys())
    except Refused:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path}: not readable as a voice ({printable(error, 160)})") from None
    if said.get("format") != FORMAT:
        raise Refused(f"{path}: not a voice, its format is {said.get('format')!r:.40} and not {FORMAT!r}")
    if said.get("version") != VERSION:
        raise Refused(f"{path}: has version {said.get('version')!r:.20} of the format, known is {VERSION}")
    voice = Voice(**{EMBEDDING: None, **tensors}, text=said.get("text", ""), licence=said.get("licence", ""))
    problem = f"unknown tensor {unknown[0]!r:.80}" if unknown else _other_model(said.get("sizes", ""), config)
    if problem := problem or _problem(voice, config):
        raise Refused(f"{path}: {problem}")
    return voice


def save_voice(folder: str | Path, name: str, voice: Voice, config: CosyVoice3Config) -> Path:
    """Save a voice in a model's folder, replacing one of that name; returns its file.

    Raises:
        Refused: a name that `check_name` refuses, or that differs from another voice's only in case; see `write_voice`.
    """
    name = check_name(name)
    for other in voice_files(folder):
        if other != name and other.casefold() == name.casefold():
            raise Refused(f"voice name {name!r:.60}: many file systems treat it as {other!r:.60}, which exists")
    path = Path(folder) / VOICES / f"{name}{SUFFIX}"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise Refused(f"{path.parent}: cannot be made ({error.strerror})") from None
    return write_voice(path, voice, config)


def write_voice(path: str | Path, voice: Voice, config: CosyVoice3Config) -> Path:
    """Write one file: a temporary one first, then renamed.

    Args:
        voice: with the arrays of either package, or numpy's.
        config: the model that made it.

    Raises:
        Refused: the file cannot be written, or this model could not use the voice.
    """
    path = Path(path)
    tensors: dict[str, Any] = {
        field: np.ascontiguousarray(array, FIELDS[field]) for field, array in voice.given().items()
    }
    if problem := _problem(replace(voice, **tensors), config):
        raise Refused(problem)
    said = {"format": FORMAT, "version": VERSION, "text": voice.text, "licence": voice.licence}
    said["sizes"] = json.dumps(_sizes(config))
    try:
        with beside(path) as file:
            save_file(tensors, file, said)
    except (OSError, SafetensorError) as error:
        raise Refused(f"{path}: cannot be written ({printable(error, 160)})") from None
    return path


def remove_voice(folder: str | Path, name: str) -> Path:
    """Remove a voice, even if its file is damaged; returns the path of the file.

    Raises:
        Refused: it does not exist, or cannot be removed.
    """
    path = voice_file(folder, name)
    try:
        path.unlink()
    except OSError as error:
        raise Refused(f"{path}: cannot be removed ({error.strerror})") from None
    return path


def _sizes(config: CosyVoice3Config) -> dict[str, int]:
    """Sizes that a voice and the model that uses it must share."""
    return {
        "text_tokens": config.llm.qwen2.vocab_size,
        "speech_tokens": config.llm.speech_token_size,
        "mel_bins": config.flow.output_size,
        "frames_of_a_token": config.flow.token_mel_ratio,
        "embedding": config.flow.spk_embed_dim,
    }


def _other_model(sizes: str, config: CosyVoice3Config) -> str | None:
    """How the model of a voice differs from this one."""
    try:
        made = json.loads(sizes)
        differ = [name for name, size in _sizes(config).items() if made[name] != size]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "does not say the sizes of its model"
    if differ:
        name = differ[0]
        return f"made by another model: {name} is {brief(made[name], 20)} there and {_sizes(config)[name]} here"
    return None


def _problem(voice: Voice, config: CosyVoice3Config) -> str | None:
    """Why a voice cannot be used with this model."""
    if max(len(voice.text), len(voice.licence)) > MAX_NOTE:
        return f"its text or its licence has more than {MAX_NOTE} characters"
    arrays = voice.given()
    if arrays.keys() not in (FIELDS.keys(), {EMBEDDING}):
        return f"has {', '.join(sorted(arrays))}, expected {EMBEDDING} alone or all of {', '.join(FIELDS)}"
    limits = {
        "prompt_text": config.llm.qwen2.vocab_size,
        "llm_prompt_speech_token": config.llm.speech_token_size,
        "flow_prompt_speech_token": config.flow.vocab_size,
    }
    for field, array in arrays.items():
        if array.dtype != FIELDS[field] or array.ndim != (3 if field == "prompt_speech_feat" else 2) or len(array) != 1:
            return f"{field} is {array.dtype} {list(array.shape)}"
        if field in limits and array.size and not 0 <= array.min() <= array.max() < limits[field]:
            return f"{field} holds ids outside 0..{limits[field] - 1}"
        if field not in limits and not np.isfinite(array).all():
            return f"{field} holds NaN or infinite numbers"
    if arrays[EMBEDDING].shape[1] != config.flow.spk_embed_dim:
        return f"{EMBEDDING} has {arrays[EMBEDDING].shape[1]} numbers, the model takes {config.flow.spk_embed_dim}"
    if "prompt_speech_feat" in arrays:
        (_, frames, bins), tokens = arrays["prompt_speech_feat"].shape, arrays["flow_prompt_speech_token"].shape[1]
        if (frames, bins) != (config.flow.token_mel_ratio * tokens, config.flow.output_size):
            return f"prompt_speech_feat is {frames} x {bins}, which does not fit {tokens} tokens of this model"
    return None
