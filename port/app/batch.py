"""Many utterances from a manifest, shared among the ranks of `mlx.launch`, resumed where a run stopped.

A manifest has one JSON object a line: `id` names the sound file; then what `say` or `vc` take (`text`, `prompt_wav`,
`prompt_text`, `instruct`, `voice`, or `source_wav` and `prompt_wav`; `seed`, `speed`), and `mode` where the line must
have that one. Paths are relative to the manifest. A line that cannot be spoken fails alone. A line that is not a JSON
object, or whose id is missing or repeated, refuses the whole manifest: its result would have no name.

Ranks share nothing but the output folder: rank r of n takes the lines r, r + n, ..., and each utterance has a seed of
its own, so the files do not depend on n. A rank holds a lock while it speaks, which the system frees however it ends:
so ranks find each other's ends, and two batches do not mix.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import sys
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..config import read_settings
from ..cosyvoice3 import CosyVoice3, Speech
from ..files.disk import beside, read_text, take_lock
from ..files.errors import Refused
from ..files.hub import find_folder
from .argument_types import MAX_DIGITS
from .speaking import NOTHING_SPOKEN, ended_by_signals, load_voice, sound_file, speak

RESULTS_FILE = "results.jsonl"
LEFT = "not spoken: the batch, or one of its ranks, ended before its time; run it again"
RECORDS = ".records"  # one file for each utterance, so that ranks never write to the same one
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
    prompt_wav: str | None = None
    prompt_text: str | None = None
    instruct: str | None = None
    voice: str | None = None
    source_wav: str | None = None
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

    def speak(self, voice: CosyVoice3, seed: int, raw_prompt: bool = False) -> Speech:
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


def run_batch(
    manifest: Path, out: Path, model: str, seed: int = 0, revision: str | None = None, raw_prompt: bool = False
) -> tuple[int, int]:
    """Speak every line that is not there yet, and write OUT/ID.wav and OUT/results.jsonl.

    A line that fails is recorded and tried again by the next run; so is what an end before its time leaves.

    Args:
        manifest: see `read_manifest`.
        out: made when missing; ranks on several machines must see the same folder.
        model: as for `CosyVoice3.from_pretrained`.
        seed: utterances without a seed of their own get one from this and their id.
        revision: of a hub id.
        raw_prompt: as for the command line.

    Returns:
        How many lines failed, of how many, over all ranks.

    Raises:
        Refused: the manifest as a whole, the model, or a folder that another batch is writing to.
        OSError: the folder cannot be made.
    """
    lines = read_manifest(manifest)
    group = mx.distributed.init()
    records = out / RECORDS
    records.mkdir(parents=True, exist_ok=True)
    locks = [records / f".rank{rank}" for rank in range(group.size())]
    with locks[group.rank()].open("w") as own:
        # A run of more ranks may have no rank 0 any more.
        held = not take_lock(own) or any(_is_held(lock) for lock in set(records.glob(".rank*")) - set(locks))
        if mx.distributed.all_sum(mx.array(int(held)), group=group, stream=mx.cpu).item():
            raise Refused(f"{out}: another batch is writing there; wait for its end or choose another --out")
        folder = find_folder(model, revision)
        read_settings(folder)  # which refuses a folder without a model in one line
        weights = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
        wanted = {line["id"]: _request(line, seed, weights, raw_prompt) for line in lines}
        left = lines[group.rank() :: group.size()]
        bar = tqdm(left, desc="utterances", unit="utterance", file=sys.stderr, disable=True if group.rank() else None)
        # Loading too: another rank may have spoken, and died, meanwhile.
        with logging_redirect_tqdm(), ended_by_signals():
            try:
                voice = load_voice(str(folder))
                for line in bar:
                    record, request = _record(records, line), wanted[line["id"]]
                    spoken = _result(record, line["id"], request)["status"] == "done"
                    if not (spoken and (out / f"{line['id']}.wav").is_file()):
                        found = _speak(line, manifest.parent, out, voice, seed, raw_prompt)
                        _write_atomically(record, json.dumps({**found, "request": request}))
                own.close()  # and with it the lock
                for lock in locks:
                    with lock.open() as other:
                        fcntl.flock(other, fcntl.LOCK_SH)  # waits until that rank has spoken its lines, or is gone
            except KeyboardInterrupt:
                bar.close()
            results = [_result(_record(records, line), line["id"], wanted[line["id"]]) for line in lines]
            _write_atomically(out / RESULTS_FILE, "".join(json.dumps(result) + "\n" for result in results))
    return sum(result["status"] != "done" for result in results), len(lines)


def _is_held(lock: Path) -> bool:
    with lock.open() as file:
        return not take_lock(file, shared=True)  # as all ranks of this run look at once


def _request(line: dict[str, Any], seed: int, weights: str, raw_prompt: bool) -> str:
    """Everything that determines the sound of a line, as a hash."""
    asked = [line, seed, weights] + ["raw prompt"] * raw_prompt
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _speak(
    line: dict[str, Any], folder: Path, out: Path, voice: CosyVoice3, seed: int, raw_prompt: bool
) -> dict[str, Any]:
    """Write one sound file; the line of the results file that tells of it."""
    name = line["id"]
    path = out / f"{name}.wav"
    try:
        utterance = Utterance.from_line(line, folder)
    except ValueError as error:
        with suppress(OSError):  # a name that no file can have
            path.unlink(missing_ok=True)  # of an earlier request with this id
        return {"id": name, "status": "failed", "error": " ".join(str(error).split())}
    for left in out.glob(".*.wav"):  # by a run that was killed
        if re.fullmatch(rf"\.{re.escape(name)}\.\d+\.wav", left.name):
            left.unlink()
    try:
        own_seed = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4])
        samples = 0
        with sound_file(path, voice.sample_rate) as file:
            for result in utterance.speak(voice, own_seed, raw_prompt):
                wave = np.array(result["tts_speech"])[0]
                samples += len(wave)
                file.write(wave)
            if not samples:
                raise Refused(NOTHING_SPOKEN)
    except Exception as error:  # whatever it is, the other lines go on
        path.unlink(missing_ok=True)  # of an earlier request with this id
        return {"id": name, "status": "failed", "error": " ".join(str(error).split()) or type(error).__name__}
    return {"id": name, "status": "done", "file": path.name, "seconds": round(samples / voice.sample_rate, 3)}


def _record(records: Path, line: dict[str, Any]) -> Path:
    """Where the result of a line is kept; by a hash where no file can have its id as a name."""
    name = line["id"]
    if len(name.encode()) > MAX_NAME_BYTES:
        name = hashlib.sha256(name.encode()).hexdigest()
    return records / f"{name}.json"


def _result(record: Path, name: str, request: str) -> dict[str, Any]:
    """The line of the results file that tells of an utterance: its record, where that is of this request."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(record.read_text("utf-8"))
        if found["request"] == request and found["status"]:
            return {key: value for key, value in found.items() if key != "request"}
    return {"id": name, "status": "failed", "error": LEFT}


def _write_atomically(path: Path, text: str) -> None:
    try:
        with beside(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({error.strerror})") from None
