"""Many utterances from a manifest, shared among the ranks of `mlx.launch`, resumed where a run stopped.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..batched.spoken import Spoken
from ..batched.together import Made, default_batch_size, together
from ..config import read_settings
from ..cosyvoice3 import CosyVoice3
from ..files.disk import beside, take_lock
from ..files.errors import Refused
from ..files.hub import find_folder
from ..files.recording import Heard
from .manifest import MAX_NAME_BYTES, PATHS, Utterance, read_manifest
from .sound import sound_file
from .speaking import NOTHING_SPOKEN, ended_by_signals, load_voice

RESULTS_FILE = "results.jsonl"
LEFT = "not spoken: the batch, or one of its ranks, ended before its time; run it again"
RECORDS = ".records"  # one file for each utterance, so that ranks never write to the same one
MOST_RECORDINGS = 8  # kept of those that lines share; one of 30 s in stereo at 48 kHz takes 17 MB
Line = dict[str, Any]


def run_batch(
    manifest: Path,
    out: Path,
    model: str,
    seed: int = 0,
    revision: str | None = None,
    raw_prompt: bool = False,
    batch_size: int | None = None,
) -> list[Line]:
    """Speak every line that is not there yet, and write OUT/ID.wav and OUT/results.jsonl.

    A line that fails is recorded and tried again by the next run; so is what an end before its time leaves.

    Args:
        manifest: see `read_manifest`.
        out: made when missing; ranks on several machines must see the same folder.
        model: as for `CosyVoice3.from_pretrained`.
        seed: utterances without a seed of their own get one from this and their id.
        revision: of a hub id.
        raw_prompt: as for the command line.
        batch_size: as for `together`, of each rank; None takes `default_batch_size`.

    Returns:
        What `results.jsonl` says of each line, whichever rank spoke it.

    Raises:
        KeyboardInterrupt: the run was ended; a note says how many lines remain.
        Refused: the manifest as a whole, the model, or a folder that another batch is writing to.
        OSError: the folder cannot be made.
    """
    lines = read_manifest(manifest)
    group = mx.distributed.init()
    ended: KeyboardInterrupt | None = None
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
                heard = lru_cache(MOST_RECORDINGS)(Heard)  # which keeps its encoding too

                def asked() -> Iterator[tuple[Line, Callable[[], Spoken]]]:
                    for line in left:
                        result = _result(_record(records, line), line["id"], wanted[line["id"]])
                        if result["status"] == "done" and (out / f"{line['id']}.wav").is_file():
                            bar.update()
                        else:
                            yield line, partial(_prepared, line, manifest.parent, voice, seed, raw_prompt, heard)

                size = default_batch_size(voice.model.config) if batch_size is None else batch_size
                for line, made in together(voice.model, asked(), size):
                    found = {"id": line["id"], **_written(made, out / f"{line['id']}.wav", voice.sample_rate)}
                    request = wanted[line["id"]]
                    _write_atomically(_record(records, line), json.dumps({**found, "request": request}))
                    bar.update()
                bar.close()
                own.close()  # and with it the lock
                for lock in locks:
                    with lock.open() as other:
                        fcntl.flock(other, fcntl.LOCK_SH)  # waits until that rank has spoken its lines, or is gone
            except KeyboardInterrupt as error:
                bar.close()
                ended = error
            results = [_result(_record(records, line), line["id"], wanted[line["id"]]) for line in lines]
            _write_atomically(out / RESULTS_FILE, "".join(json.dumps(result) + "\n" for result in results))
    if ended is not None:
        for told in not_done(results):
            ended.add_note(told)
        raise ended
    return results


def not_done(results: Sequence[Line]) -> list[str]:
    """How many lines failed, and how many remain, in words; nothing where all are done."""
    left = sum(result.get("error") == LEFT for result in results)
    failed = sum(result["status"] != "done" for result in results) - left
    counts = {f"failed; {RESULTS_FILE} says why": failed, "remain; run it again": left}
    return [f"{count} of {len(results)} utterances {told}" for told, count in counts.items() if count]


def _is_held(lock: Path) -> bool:
    with lock.open() as file:
        return not take_lock(file, shared=True)  # as all ranks of this run look at once


def _request(line: Line, seed: int, weights: str, raw_prompt: bool) -> str:
    """Everything that determines the sound of a line, as a hash."""
    asked = [line, seed, weights] + ["raw prompt"] * raw_prompt
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _prepared(
    line: Line, folder: Path, voice: CosyVoice3, seed: int, raw_prompt: bool, heard: Callable[[str], Heard]
) -> Spoken:
    own_seed = int.from_bytes(hashlib.sha256(f"{seed}/{line['id']}".encode()).digest()[:4])
    asked = Utterance.from_line(line, folder)
    recordings: dict[str, Any] = {name: heard(path) for name in PATHS if (path := getattr(asked, name))}
    return replace(asked, **recordings).speak(voice, own_seed, raw_prompt)


def _written(made: Made, path: Path, sample_rate: int) -> dict[str, Any]:
    """Write one sound file; returns what the results file tells of it."""
    try:
        for left in path.parent.glob(".*.wav"):  # by a run that was killed
            if re.fullmatch(rf"\.{re.escape(path.stem)}\.\d+\.wav", left.name):
                left.unlink()
        if isinstance(made, Exception):
            raise made
        waves = [np.array(result["tts_speech"])[0] for result in made]
        if not (samples := sum(map(len, waves))):
            raise Refused(NOTHING_SPOKEN)
        with sound_file(path, sample_rate) as file:
            for wave in waves:
                file.write(wave)
    except Exception as error:  # whatever it is, the other lines go on
        with suppress(OSError):  # a name that no file can have
            path.unlink(missing_ok=True)  # of an earlier request with this id
        return {"status": "failed", "error": " ".join(str(error).split()) or type(error).__name__}
    return {"status": "done", "file": path.name, "seconds": round(samples / sample_rate, 3)}


def _record(records: Path, line: Line) -> Path:
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
