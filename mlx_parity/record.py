"""Recorded cases: files of weights, inputs and true results, for a port in any language.

A folder holds NAME.safetensors: weights `w.*`, inputs `in.*`, PyTorch's results `out.*` (float32) and `out64.*`
(float64). A file is described in manifest.json, in its own metadata, or equally in both: `upstream` (what of the
original it was recorded from), `config` (its sizes) and `call` (arguments that are no tensors).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlx_parity.compare import BUDGET, FLOOR, Reading
from mlx_parity.comparison import WHOLE, ModuleRow
from mlx_parity.judge import Row, compare_all
from mlx_parity.models import loaded
from mlx_parity.recorded import by_key
from mlx_parity.report.model import write_atomically
from mlx_parity.run import Judged, Outcome
from mlx_parity.tree import PLAIN, leaves

Arrays = dict[str, np.ndarray]
Entry = Mapping[str, Any]

MANIFEST = "manifest.json"
DESCRIPTION = {"upstream": str, "config": dict, "call": dict}
GROUPS = {"w": "weights", "in": "inputs", "out": "out", "out64": "out64"}
MODULES = 5  # diverging modules to record of each part of a subject


class RecordError(ValueError):
    """Files that cannot be written or judged; the message is one line."""


@dataclass(frozen=True)
class Recorded:
    """Content of one file.

    Args:
        path: of the file; its name without suffix is the case's.
        upstream: names the part of the original.
        config: its constructor's arguments.
        call: those of the call that are no tensors.
        about: what else the manifest says.
    """

    path: Path
    upstream: str
    config: Mapping[str, Any]
    call: Mapping[str, Any]
    weights: Arrays
    inputs: Arrays
    out: Arrays
    out64: Arrays
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def tensors(self) -> Arrays:
        """As the file has them; masks as uint8, since many readers of safetensors know no bool."""
        return {
            f"{group}.{name}": np.ascontiguousarray(v.astype(np.uint8) if v.dtype == bool else v).reshape(v.shape)
            for group, attribute in GROUPS.items()
            for name, v in getattr(self, attribute).items()
        }

    @classmethod
    def read(cls, path: Path, entry: Entry | None = None) -> Recorded:
        """Read a file, described by its own metadata, its entry in the manifest, or both alike.

        Raises:
            RecordError: no such file; the description is incomplete or contradicts itself.
        """
        groups: dict[str, Arrays] = {group: {} for group in GROUPS}
        described = describe(path, entry)
        for key, value in read_tensors(path).items():
            group, _, name = key.partition(".")
            if group not in groups or not name:
                raise RecordError(f"{path}: tensor {key!r} is none of {', '.join(f'{g}.*' for g in GROUPS)}")
            groups[group][name] = value
        return cls(path, *described, *groups.values())


def read_tensors(path: Path) -> Arrays:
    """All tensors of a file.

    Raises:
        RecordError: it is missing, or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, TypeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> RecordError:
    if not path.exists():
        return RecordError(f"{path} is missing")
    return RecordError(f"{path}: no file of recorded tensors ({' '.join(str(error).split())})")


def describe(path: Path, entry: Entry | None = None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """`upstream`, `config` and `call` of a file; errors as of `Recorded.read`."""
    try:
        with safe_open(path, framework="numpy") as file:
            meta = dict(file.metadata() or {})
        own_words = {k: meta[k] if kind is str else json.loads(meta[k]) for k, kind in DESCRIPTION.items() if k in meta}
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from None
    found = own_words | {k: entry[k] for k in DESCRIPTION if entry and k in entry}
    if absent := [k for k in DESCRIPTION if k not in found]:
        raise RecordError(f"{path}: neither {MANIFEST} nor the metadata has {' and '.join(absent)}: nothing to replay")
    for key, kind in DESCRIPTION.items():
        if not isinstance(found[key], kind):
            raise RecordError(f"{path}: {key} is {json.dumps(found[key])}, not a {kind.__name__}")
        if own_words.get(key, found[key]) != found[key]:
            raise RecordError(f"{path}: {MANIFEST} and the metadata differ in {key}")
    return found["upstream"], found["config"], found["call"]


def read_manifest(folder: Path) -> dict[str, Entry] | None:
    """Entries of the folder's manifest by file name; None when it has no manifest.

    Raises:
        RecordError: it cannot be read, or names a key or a file twice.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from None
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, list):
        raise RecordError(f"{path}: expected an object with a list `cases`")
    entries: dict[str, Entry] = {}
    for number, entry in enumerate(cases):
        name = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise RecordError(f"{path}: case {number} has no `file` that names a file of the folder")
        if name in entries:
            raise RecordError(f"{path}: {name} is described twice")
        entries[name] = entry
    return entries


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return found


def differences(path: Path, entry: Entry) -> Iterator[tuple[str, str]]:
    """Where a file is not what its manifest entry says: tensor ('' for the file) and the difference."""
    if "sha256" in entry and hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        yield "", f"sha256 differs from {MANIFEST}: the file was changed, or the manifest speaks of another"
    listed = entry.get("tensors")
    if listed is None:
        return
    if not isinstance(listed, dict):
        yield "", f"`tensors` in {MANIFEST} is no object"
        return
    held = read_tensors(path)
    for name in sorted(held.keys() | listed.keys()):
        if name not in held:
            yield name, f"{MANIFEST} lists this tensor, the file lacks it"
        elif name not in listed:
            yield name, f"the file holds this tensor, {MANIFEST} does not list it"
        else:
            found = _shape(held[name])
            wanted = listed[name] if isinstance(listed[name], dict) else {"shape": listed[name]}
            for what in found.keys() & wanted.keys():
                if found[what] != wanted[what]:
                    yield name, f"{what} is {found[what]}, {wanted[what]} in {MANIFEST}"


def _shape(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def write(files: Iterable[Recorded], folder: Path, original: str) -> int:
    """Write cases and their manifest, each file atomically; returns how many. An older record is removed.

    Args:
        original: what the truth was made by, for the manifest.

    Raises:
        RecordError: the folder has a manifest that cannot be read.
        OSError: it cannot be written to.
    """
    for old in read_manifest(folder) or ():
        (folder / old).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    entries = []
    for file in files:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{file.path.stem}.safetensors"
        words = {key: kind(getattr(file, key)) for key, kind in DESCRIPTION.items()}
        tensors, unfinished = file.tensors, place.with_name(f".{place.name}")
        save_file(tensors, unfinished, {k: v if isinstance(v, str) else json.dumps(v) for k, v in words.items()})
        unfinished.replace(place)
        about = {"case": file.name, "file": place.name, "sha256": hashlib.sha256(place.read_bytes()).hexdigest()}
        entries.append({**about, **file.about, **words, "tensors": {k: _shape(v) for k, v in tensors.items()}})
    if entries:
        content = {"upstream": original, "rule": {"ratio": BUDGET, "floor": FLOOR}, "cases": entries}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    return len(entries)


def judge_results(
    folder: Path,
    results: Path,
    only: str = "*",
    follows: Mapping[str, Callable[[Arrays], Arrays] | None] | None = None,
    again: Callable[[str], str] = str,
) -> list[Row]:
    """Rows for every output of every recorded case; what a port did not write is an ERROR.

    Args:
        folder: written by `write`.
        results: the port's files, one of the same name for each case, with a tensor for each output.
        only: glob of case names.
        follows: `Part.follows` by the path of a part.
        again: the command that judges a case alone.

    Raises:
        RecordError: `folder` is no folder of recorded cases, or `only` matches none of them.
    """
    entries = read_manifest(folder)
    if entries is None:
        raise RecordError(f"{folder}: no recorded cases; write some first")
    wanted = {Path(name).stem: entry for name, entry in entries.items() if fnmatchcase(Path(name).stem, only)}
    if not wanted:
        raise RecordError(f"{folder}: no recorded case matches {only}")
    if folder.resolve() == results.resolve():
        raise RecordError(f"{results}: is the folder of recorded cases, not of a port's results")
    rows = []
    for name, entry in wanted.items():
        truth, module = Recorded.read(folder / entry["file"], entry), entry.get("module", "")
        if changed := next(differences(truth.path, entry), None):
            raise RecordError(f"{truth.path}: {changed[1]}; record it again")
        try:
            port = read_tensors(results / entry["file"])
        except RecordError as error:
            readings = {output: Reading("ERROR", str(error)) for output in truth.out}
        else:
            readings = compare_all(port, truth.out, truth.out64, follow=(follows or {}).get(module))
        row = partial(Row, stage=entry.get("stage", ""), kind="isolated", module=module, case=name)
        rows += [row(f"{name}.{k}", reading=reading, reproduce=again(name)) for k, reading in readings.items()]
    return rows


def record(outcome: Outcome, folder: Path) -> int:
    """Write the first diverging modules of each part of a subject; returns how many. An older record is removed."""
    return write(_diverging(outcome), folder, outcome.subject.original)


def _diverging(outcome: Outcome) -> Iterator[Recorded]:
    for name, judged in outcome.parts.items():
        chosen: dict[str, ModuleRow] = {}
        for row in sorted(judged.comparison.blamed, key=lambda row: row.where != "here"):
            chosen.setdefault(row.module, row)
        yield from filter(None, (_recorded(name, judged, row) for row in [*chosen.values()][:MODULES]))


def _recorded(part: str, judged: Judged, row: ModuleRow) -> Recorded | None:
    """The call that a row is of; None where PyTorch made no such call."""
    comparer, name = judged.comparer, "" if row.module == WHOLE else row.module
    single = by_key(comparer.single).get((name, row.call))
    if single is None:
        return None
    single, double = (loaded(call, comparer.spool) for call in (single, comparer.double[name, row.call]))
    call = {k: v for k, v in leaves(single.arguments, PLAIN) if isinstance(v, bool | int | float | str)}
    weights, inputs = comparer.side.weights(name), dict(leaves(single.arguments, np.ndarray))
    r32, r64 = ({k or "y": v for k, v in run.results.items()} for run in (single, double))
    path = Path(re.sub(r"[^\w.-]+", "_", f"{part}.{row.module}") + ".safetensors")
    return Recorded(path, row.kind, {}, call, weights, inputs, r32, r64, {"part": part, "module": row.module})
