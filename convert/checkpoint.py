"""Safe reading of official files: weights without running pickled code, yaml without following tags, hashes.

Whatever is wrong with a file ends in one `CheckpointError` line that names the file.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from convert.mapping import COUNTERS
from convert.transforms import Shape

# Far above any real model, far below what would fill a machine.
MAX_TENSORS = 20_000
MAX_ELEMENTS = 1 << 31
MAX_PICKLE_BYTES = 64 << 20
MAX_YAML_BYTES = 1 << 20
WRAPPERS = ("state_dict", "module")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The official yaml seeds four generators; nothing else in it may ask for a call.
ALLOWED_APPLY = frozenset({"random.seed", "numpy.random.seed", "torch.manual_seed", "torch.cuda.manual_seed_all"})


class CheckpointError(ValueError):
    """A source file that cannot be used; one line that names the file and what is wrong with it."""


class StateDict(Mapping[str, np.ndarray]):
    """Tensors of one file, read from disk one at a time when asked for.

    `shapes` holds all shapes without reading data; `ignored` names what stood beside the weights (training counters,
    entries around a wrapped state dict).
    """

    def __init__(self, tensors: dict[str, torch.Tensor], ignored: tuple[str, ...] = ()) -> None:
        self._tensors = tensors
        self.ignored = ignored
        self.shapes: dict[str, Shape] = {key: tuple(tensor.shape) for key, tensor in tensors.items()}

    def __getitem__(self, key: str) -> np.ndarray:
        """Float32 array, or float64 where the file holds that; no copy where the file holds float32."""
        tensor = self._tensors[key].detach()
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        return tensor.numpy()

    @property
    def shared(self) -> int:
        """Numbers that stand in `shapes` more often than in the file, under a further name."""
        held = [(tensor.untyped_storage().data_ptr(), tensor.numel()) for tensor in self._tensors.values()]
        return sum(count for _, count in held) - sum(dict(held).values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def sha256(path: Path) -> str:
    """Hex digest of a file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def read_state_dict(path: Path) -> StateDict:
    """Open a `.pt` file as torch.save writes it, memory-mapped; nothing in it is executed.

    Accepted around the weights: `epoch` and `step`, and one wrapper `state_dict` or `module`.

    Raises:
        CheckpointError: missing, truncated, compressed or not a torch file, code in the pickle, not a state dict,
            tensors that are not floating point, or shapes that the file cannot hold.
    """
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {named[1]}" if named else "holds more than tensors"
        raise CheckpointError(f"{path}: refused, its pickle {what}, and only plain tensors are read") from None
    except Exception as error:  # a damaged pickle can make torch's reader fail in any way
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not readable as a torch state dict ({reason})") from None
    tensors, ignored = _unwrap(path, content)
    for key, tensor in tensors.items():
        _check_tensor(path, key, tensor)
    return StateDict(tensors, ignored)


def _check_archive(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: not found")
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        raise CheckpointError(f"{path}: truncated, or not a file written by torch.save (1.6 or newer)") from None
    if len(records) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(records)} records, more than {MAX_TENSORS}")
    size = path.stat().st_size
    for record in records:
        # Weights are stored as they are, so a record that unpacks to more than it takes is no checkpoint.
        if record.compress_type != zipfile.ZIP_STORED or record.file_size > size:
            raise CheckpointError(
                f"{path}: record {record.filename!r} is compressed; torch.save stores records plainly"
            )
        if record.filename.endswith("data.pkl") and record.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path}: its pickle takes {record.file_size} bytes, more than {MAX_PICKLE_BYTES}")


def _unwrap(path: Path, content: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    ignored: list[str] = []
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            inner = content.get(wrapper)
            if isinstance(inner, Mapping):
                if outside := [key for key, value in content.items() if isinstance(value, torch.Tensor)]:
                    raise CheckpointError(f"{path}: tensor {outside[0]!r} stands outside {wrapper!r}")
                ignored += [str(key) for key in content if key != wrapper]
                content = inner
                break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected a state dict")
    tensors = {}
    for key, value in content.items():
        if key in COUNTERS:
            ignored.append(key)
        elif not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: entry {key!r} is {type(value).__name__}, expected a tensor under a name")
        else:
            tensors[key] = value
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return tensors, tuple(ignored)


def _check_tensor(path: Path, key: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise CheckpointError(f"{path}: {key} is not a plain dense tensor")
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"{path}: {key} holds {str(tensor.dtype).removeprefix('torch.')}, expected floating point"
        )
    shape = list(tensor.shape)
    # A stride of 0 lets a few stored bytes claim any size.
    if tensor.numel() > MAX_ELEMENTS or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {key} claims shape {shape}, more than the file holds")
    if tensor.numel() == 0:
        raise CheckpointError(f"{path}: {key} is empty, shape {shape}")


# ---- yaml


@dataclass(frozen=True)
class Tagged:
    """A HyperPyYAML tag as data: `!new:a.b.C {x: 1}` is Tagged('new', 'a.b.C', {'x': 1}). Nothing is looked up."""

    kind: str
    target: str
    value: Any


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that keeps `!new`, `!name`, `!ref` and the four seed calls as data and refuses every other tag."""


def _tagged(kind: str) -> Any:
    def construct(loader: _PlainLoader, suffix: str, node: yaml.Node) -> Tagged:
        if kind == "apply" and suffix not in ALLOWED_APPLY:
            _refuse(loader, node)
        return Tagged(kind, suffix, _plain(loader, node))

    return construct


def _reference(loader: _PlainLoader, node: yaml.Node) -> Tagged:
    if not isinstance(node, yaml.ScalarNode):
        _refuse(loader, node)
    return Tagged("ref", str(loader.construct_scalar(node)), None)


def _plain(loader: _PlainLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node) or None


def _refuse(_: _PlainLoader, node: yaml.Node) -> None:
    raise CheckpointError(f"line {node.start_mark.line + 1}: tag '{node.tag}' would run code; refused")


for _kind in ("new", "name", "apply"):
    _PlainLoader.add_multi_constructor(f"!{_kind}:", _tagged(_kind))
_PlainLoader.add_constructor("!ref", _reference)
_PlainLoader.add_constructor(None, _refuse)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a HyperPyYAML file to plain data; tags become `Tagged` values and nothing is imported or called.

    Raises:
        CheckpointError: missing, not yaml, too large, aliases, or a tag outside `!new`, `!name`, `!ref` and the four
            seed calls of the official file.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_YAML_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not readable ({type(error).__name__})") from None
    try:
        for event in yaml.parse(text, Loader=_PlainLoader):
            # The official file has none, and a chain of them unfolds without bound.
            if isinstance(event, yaml.AliasEvent):
                raise CheckpointError(f"line {event.start_mark.line + 1}: aliases are not accepted")
        data = yaml.load(text, Loader=_PlainLoader)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: {where}not valid yaml ({problem})") from None
    except (RecursionError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not valid yaml ({type(error).__name__})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a mapping at the top")
    return data
