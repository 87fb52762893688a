"""A golden file (numbers made by running the original), what describes it, and the side that replays it."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from mlx_parity.compare import Reading
from mlx_parity.sides import mlx as mlx_side
from mlx_parity.sides import truth

Arrays = dict[str, np.ndarray]
Side = Literal["reference", "port"]
Entry = Mapping[str, Any]

MANIFEST = "manifest.json"
EMBEDDED = Path(__file__).parents[1] / "data" / "golden"
DESCRIPTION = {"upstream": str, "config": dict, "call": dict}


class GoldenError(ValueError):
    """A file or a manifest that cannot be judged; the message is one line."""


@dataclass(frozen=True)
class GoldenFile:
    """Content of one file: weights, inputs and the original's results in float32 and float64.

    `upstream` names the part of the original, `config` its constructor's arguments, `call` those of the call.
    """

    path: Path
    upstream: str
    config: dict[str, Any]
    call: dict[str, Any]
    weights: Arrays
    inputs: Arrays
    out: Arrays
    out64: Arrays

    @property
    def name(self) -> str:
        return self.path.stem

    @classmethod
    def read(cls, path: Path, entry: Entry | None = None) -> GoldenFile:
        """Read a file, described by its own metadata, its entry in the manifest, or both alike.

        Raises:
            GoldenError: no golden file; the description is incomplete or contradicts itself.
        """
        groups: dict[str, Arrays] = {"w": {}, "in": {}, "out": {}, "out64": {}}
        described = describe(path, entry)
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    group, _, name = key.partition(".")
                    if group not in groups or not name:
                        raise GoldenError(f"{path}: tensor {key!r} is none of w.*, in.*, out.* and out64.*")
                    groups[group][name] = file.get_tensor(key)
        except (OSError, SafetensorError, TypeError) as error:
            raise GoldenError(f"{path}: not a golden file ({error})") from None
        return cls(path, *described, groups["w"], groups["in"], groups["out"], groups["out64"])


@dataclass(frozen=True)
class GoldenRow:
    """One line of the table: a tensor of a file on one side."""

    file: str
    tensor: str
    side: Side
    measure: str
    value: float | None
    limit: float | None
    status: str
    note: str = ""
    reading: Reading | None = None


def describe(path: Path, entry: Entry | None = None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """`upstream`, `config` and `call` of a file; errors as of `GoldenFile.read`."""
    try:
        with safe_open(path, framework="numpy") as file:
            meta = dict(file.metadata() or {})
        own_words = {k: meta[k] if kind is str else json.loads(meta[k]) for k, kind in DESCRIPTION.items() if k in meta}
    except (OSError, SafetensorError, ValueError) as error:
        raise GoldenError(f"{path}: not a golden file ({error})") from None
    found = own_words | {k: entry[k] for k in DESCRIPTION if entry and k in entry}
    if absent := [k for k in DESCRIPTION if k not in found]:
        raise GoldenError(f"{path}: neither {MANIFEST} nor the metadata has {' and '.join(absent)}: nothing to replay")
    for key, kind in DESCRIPTION.items():
        if not isinstance(found[key], kind):
            raise GoldenError(f"{path}: {key} is {json.dumps(found[key])}, not a {kind.__name__}")
        if own_words.get(key, found[key]) != found[key]:
            raise GoldenError(f"{path}: {MANIFEST} and the metadata differ in {key}")
    return found["upstream"], found["config"], found["call"]


def read_manifest(folder: Path) -> dict[str, Entry] | None:
    """Entries of the folder's manifest by file name; None when it has no manifest.

    Raises:
        GoldenError: it cannot be read, or names a key or a file twice.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise GoldenError(f"{path}: cannot be read ({error})") from None
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, list):
        raise GoldenError(f"{path}: expected an object with a list `cases`")
    entries: dict[str, Entry] = {}
    for number, entry in enumerate(cases):
        name = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise GoldenError(f"{path}: case {number} has no `file` that names a file of the folder")
        if name in entries:
            raise GoldenError(f"{path}: {name} is described twice")
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
    with safe_open(path, framework="numpy") as file:
        held = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
    for name in sorted(held.keys() | listed.keys()):
        if name not in held:
            yield name, f"{MANIFEST} lists this tensor, the file lacks it"
        elif name not in listed:
            yield name, f"the file holds this tensor, {MANIFEST} does not list it"
        else:
            found = {"shape": list(held[name].shape), "dtype": str(held[name].dtype)}
            wanted = listed[name] if isinstance(listed[name], dict) else {"shape": listed[name]}
            for what in found.keys() & wanted.keys():
                if found[what] != wanted[what]:
                    yield name, f"{what} is {found[what]}, {wanted[what]} in {MANIFEST}"


@dataclass(frozen=True)
class Kit:
    """One side: its package, and tensors of its kind (`dtype` counts for the reference only)."""

    package: Side
    dtype: torch.dtype = torch.float32

    def get(self, path: str) -> Any:
        """A name below the package: `flow.masks.make_pad_mask`."""
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(f"{self.package}.{module}"), name)

    def tensor(self, array: np.ndarray) -> Any:
        return mlx_side.to_mlx(array) if self.package == "port" else truth.to_torch(array, self.dtype)

    def array(self, tensor: Any) -> np.ndarray:
        return mlx_side.to_numpy(tensor) if self.package == "port" else truth.to_numpy(tensor)
