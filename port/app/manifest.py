"""A manifest: one JSON object a line, each an utterance.

`id` names the sound file; then what `say` or `vc` take (`text`, `prompt_wav`, `prompt_text`, `instruct`, `voice`, or
`source_wav` and `prompt_wav`; `seed`, `speed`), and `mode` where the line must have that one. Paths are relative to the
manifest. A line that cannot be spoken fails alone. A line that is not a JSON object, or whose id is missing or
repeated, refuses the whole manifest: its result would have no name.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..batched.spoken import Spoken
from ..cosyvoice3 import CosyVoice3
from ..files.disk import read_text
from ..files.errors import Refused
from ..files.recording import Recording
from .argument_types import MAX_DIGITS
from .speaking import speak

SAFE_ID = re.compile(r"[\w-][\w.-]{0,199}")
MAX_NAME_BYTES = 200  # of an id, so that the names beside its place stay within the 255 of a file system
PATHS = ("prompt_wav", "source_wav")
# What a line of each mode must have besides `id`; for one of the alternatives.
MODES: dict[str, tuple[set[str], ...]] = {
    "zero-shot": ({"text", "prompt_wav", "prompt_text"}, {"text", "voice"}),
    "cross-lingual": ({"text", "prompt_wav"}, {"text", "voice"}),
    "instruct": ({"text", "prompt_wav", "instruct"}, {"text", "voice", "instruct"}),
    "sft": ({"text", "voice"},),
    "vc": ({"source_wav", "prompt_wav"},),
}


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest."""

    id: str
    text: str | None = None
    mode: str | None = None
    prompt_wav: Recording | None = None
    prompt_text: str | None = None
    instruct: str | None = None
    voice: str | None = None
    source_wav: Recording | None = None
    seed: int | None = None
    speed: float = 1.0

    @classmethod
    def from_line(cls, line: dict[str, Any], folder: Path) -> Utterance:
        """Check a line; paths become those below `folder`, and null stands for nothing.

        Raises:
            Refused: an unknown field, a value of the wrong type, or fields that do not make a mode.
        """
        if "voice" not in line:  # which the original calls spk
            line = {"voice" if name == "spk" else name: value for name, value in line.items()}
        if unknown := [name for name in line if name not in FIELDS]:
            raise Refused(f"unknown field {unknown[0]!r:.40}; fields are {', '.join(FIELDS)}")
        line = {name: value for name, value in line.items() if value is not None}
        types: dict[str, Any] = {"seed": int, "speed": (int, float)}
        for name, value in line.items():
            if not isinstance(value, types.get(name, str)) or isinstance(value, bool):
                raise Refused(f"{name}: a {type(value).__name__} cannot stand here")
        given: dict[str, Any] = {name: str(folder / value) if name in PATHS else value for name, value in line.items()}
        made = cls(**given)
        made._check(line.keys() - {"id", "mode", "seed", "speed"})
        return made

    @property
    def spk(self) -> str | None:
        """The saved voice, as `speak` asks for it."""
        return self.voice

    def _check(self, given: set[str]) -> None:
        if self.mode is not None and self.mode not in MODES:
            raise Refused(f"mode {self.mode!r:.40} is unknown; choose {', '.join(MODES)}")
        possible = [self.mode] if self.mode else list(MODES)
        if not any(given == wanted for mode in possible for wanted in MODES[mode]):
            said = f"mode {self.mode}" if self.mode else "a line"
            ways = " or ".join(sorted({", ".join(sorted(way)) for mode in possible for way in MODES[mode]}))
            raise Refused(f"{said} needs exactly {ways}; found {', '.join(sorted(given)) or 'nothing'}")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise Refused(f"seed {self.seed!s:.40} is not in 0..2^64-1")
        if not 0 < self.speed <= sys.float_info.max:
            raise Refused(f"speed {self.speed!s:.40} is no tempo; give a number above 0")
        if len(self.id.encode()) > MAX_NAME_BYTES:
            raise Refused(f"the id has more than {MAX_NAME_BYTES} bytes, too many for the name of a file")

    def speak(self, voice: CosyVoice3, seed: int, raw_prompt: bool = False) -> Spoken:
        """Audio of this line; `seed` where the line has none of its own."""
        if self.source_wav is not None:
            return voice.inference_vc(self.source_wav, self.prompt_wav or "", speed=self.speed)
        seed = seed if self.seed is None else self.seed
        law = {"raw_prompt": raw_prompt, "split_long": not raw_prompt}
        return speak(self, voice, self.text or "", law | {"speed": self.speed, "seed": seed})


FIELDS = tuple(field.name for field in fields(Utterance))


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Lines of a manifest, each with an `id` that stands once and has no way out of the folder; a whole number will do.

    Ids that differ in case or in how accents are encoded are one id, as they are one file on many disks.

    Raises:
        Refused: no such file, no JSON object on a line, or no usable id.
    """
    text = read_text(path)
    lines: dict[str, dict[str, Any]] = {}  # by the id as such disks take it
    for number, row in enumerate(text.split("\n"), 1):  # a string may hold what splitlines takes for an end of line
        if not row.strip():
            continue
        try:
            line = json.loads(row, parse_int=_whole_number)
        except (ValueError, RecursionError):
            raise Refused(f"{path}, line {number}: no JSON; write one object a line") from None
        name = line.get("id") if isinstance(line, dict) else None
        if type(name) is int and name >= 0:
            line["id"] = name = str(name)
        if not isinstance(name, str) or not SAFE_ID.fullmatch(name):
            raise Refused(f"{path}, line {number}: needs an id of letters, digits, '_', '-' and '.'")
        same = unicodedata.normalize("NFC", name).casefold()
        if same in lines:
            first = lines[same]["id"]
            written = "" if first == name else f", first as {first}"
            raise Refused(f"{path}, line {number}: the id {name} stands twice{written}")
        lines[same] = line
    if not lines:
        raise Refused(f"{path}: holds no utterance")
    return list(lines.values())


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)  # infinite
