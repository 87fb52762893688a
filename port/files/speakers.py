"""Saved voices: one safetensors file with the prompt of each speaker, ready for the model.

L text tokens, P prompt tokens, F prompt frames, C mel bins, E width of the speaker embedding

The original pickles them (`spk2info.pt`), which runs code when read. This file holds tensors named `SPEAKER.FIELD` and
works for both packages, so nothing here depends on a framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..config import CosyVoice3Config
from .disk import beside, require_regular
from .errors import Refused

MAX_NAME = 200
SPEAKERS_FILE = "spk2info.safetensors"
# Of `Prompt`, with shapes (1, L), (1, P), (1, P), (1, F, C), (1, E).
FIELDS = {
    "prompt_text": np.int32,
    "llm_prompt_speech_token": np.int32,
    "flow_prompt_speech_token": np.int32,
    "prompt_speech_feat": np.float32,
    "flow_embedding": np.float32,
}
EMBEDDING = "flow_embedding"  # all that `inference_sft` needs

Speaker = dict[str, np.ndarray]


def check_name(name: str) -> str:
    """Return `name` if a speaker can have it.

    Raises:
        Refused: empty, too long, or with characters that do not print.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise Refused(f"speaker name {name!r:.60} must have 1 to {MAX_NAME} printable characters")
    return name


def load_speakers(path: str | Path, config: CosyVoice3Config) -> dict[str, Speaker]:
    """Read a speaker file; a file that does not exist holds no speakers.

    Args:
        path: as written by `save_speakers`.
        config: the model that will use them.

    Returns:
        By name, the fields that the speaker has: all of `FIELDS`, or the embedding alone.

    Raises:
        Refused: damaged, or made for a model of other sizes.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        require_regular(path)
        tensors = load_file(path)
    except Refused:
        raise
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise Refused(f"{path}: not readable as a speaker file ({' '.join(str(error).split()):.160})") from None
    speakers: dict[str, Speaker] = {}
    for key, array in tensors.items():
        name, _, field = key.rpartition(".")
        if field not in FIELDS or not name:
            raise Refused(f"{path}: unknown tensor {key!r:.80}")
        try:
            check_name(name)
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
        speakers.setdefault(name, {})[field] = array
    for name, speaker in speakers.items():
        if problem := _problem(speaker, config):
            raise Refused(f"{path}: speaker {name!r:.60}: {problem}")
    return dict(sorted(speakers.items()))


def save_speakers(path: str | Path, speakers: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write all speakers, beside `path` first and then renamed.

    Raises:
        Refused: a name that `check_name` refuses, or a place that cannot be written to.
    """
    path = Path(path)
    tensors = {
        f"{check_name(name)}.{field}": np.ascontiguousarray(array, FIELDS[field])
        for name, speaker in speakers.items()
        for field, array in speaker.items()
    }
    try:
        with beside(path) as file:
            save_file(tensors, file)
    except (OSError, SafetensorError) as error:
        raise Refused(f"{path}: cannot be written ({' '.join(str(error).split()):.160})") from None


def _problem(speaker: Speaker, config: CosyVoice3Config) -> str | None:
    """What keeps a speaker from being used with this model."""
    if speaker.keys() not in (FIELDS.keys(), {EMBEDDING}):
        return f"has {', '.join(sorted(speaker))}, expected {EMBEDDING} alone or all of {', '.join(FIELDS)}"
    limits = {
        "prompt_text": config.llm.qwen2.vocab_size,
        "llm_prompt_speech_token": config.llm.speech_token_size,
        "flow_prompt_speech_token": config.flow.vocab_size,
    }
    for field, array in speaker.items():
        if array.dtype != FIELDS[field] or array.ndim != (3 if field == "prompt_speech_feat" else 2) or len(array) != 1:
            return f"{field} is {array.dtype} {list(array.shape)}"
        if field in limits and array.size and not 0 <= array.min() <= array.max() < limits[field]:
            return f"{field} holds ids outside 0..{limits[field] - 1}"
        if field not in limits and not np.isfinite(array).all():
            return f"{field} holds NaN or infinite numbers"
    if speaker[EMBEDDING].shape[1] != config.flow.spk_embed_dim:
        return f"{EMBEDDING} has {speaker[EMBEDDING].shape[1]} numbers, the model takes {config.flow.spk_embed_dim}"
    if "prompt_speech_feat" in speaker:
        (_, frames, bins), tokens = speaker["prompt_speech_feat"].shape, speaker["flow_prompt_speech_token"].shape[1]
        if (frames, bins) != (config.flow.token_mel_ratio * tokens, config.flow.output_size):
            return f"prompt_speech_feat is {frames} x {bins}, which does not fit {tokens} tokens of this model"
    return None
