"""Safe reading of official files: weights without running pickled code, yaml without following tags, hashes.

Any fault of a file raises `Refused`, one line that names the file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
import yaml

from convert.names import COUNTERS
from convert.torch_file import Foreign, Storage, Stored, read_torch_file
from convert.transforms import Shape
from convert.yaml_limits import check_events
from port.files.disk import require_regular
from port.files.errors import Refused
from port.files.storage import read_header

# Far above any real model, far below what would fill a machine.
MAX_TENSORS = 20_000
MAX_ELEMENTS = 1 << 31
MAX_DIMENSIONS = 8
# Keys of a trainer's state dict: DeepSpeed `module`, Lightning `state_dict`, vocoder trainers `generator`, ...
WRAPPERS = ("state_dict", "model_state_dict", "module", "model", "generator")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Their names in safetensors files: dtypes of weights, and dtypes of training counters.
_SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SAFETENSORS |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool}
_SAFETENSORS |= {"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8}
# The official yaml seeds four generators; nothing else in it may ask for a call.
ALLOWED_APPLY = frozenset({"random.seed", "numpy.random.seed", "torch.manual_seed", "torch.cuda.manual_seed_all"})
MAX_YAML_BYTES = 1 << 18


class StateDict(Mapping[str, np.ndarray]):
    """Tensors of one file, read from disk one at a time when asked for.

    `shapes` holds all shapes and needs no data; `ignored` names the entries beside the weights (training counters,
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
        """How many numbers `shapes` counts more than once, because two names share one tensor."""
        held = [(tensor.untyped_storage().data_ptr(), tensor.numel()) for tensor in self._tensors.values()]
        return sum(count for _, count in held) - sum(dict(held).values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def sha256(path: Path) -> str:
    """Hex digest of a file.

    Raises:
        Refused: the file cannot be read.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from None


def read_state_dict(path: Path) -> StateDict:
    """Open the weights of a `.pt` file written by torch.save, or of a safetensors file; nothing in it is executed.

    The weights may be inside `WRAPPERS`, also nested ones. Entries that are not weights are listed in `ignored`.

    Raises:
        Refused: missing, truncated, damaged, compressed or not such a file, code in the pickle, not a state
            dict, tensors that are not floating point, or shapes that the file cannot hold.
        Refused: a damaged safetensors file.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from None
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        kept: list[str] = []
        content, data = _read_safetensors(path)
    else:
        content, data = read_torch_file(path)
        content, kept = _unwrap(path, content)
    ignored, tensors = kept, {}
    for key, value in content.items():
        beside = isinstance(key, str) and "." not in key and not _is_tensor(value)
        if beside or (key in COUNTERS and isinstance(value, Stored) and math.prod(value.shape) == 1):
            ignored.append(key)
        elif not isinstance(key, str):
            raise Refused(f"{path}: entry {key!r:.60} is {_what(value)}, expected a tensor under a name")
        else:
            tensors[key] = _tensor(path, key, value, data)
    if all(math.prod(tensor.shape) == 1 for tensor in tensors.values()):  # none, or a loss
        within = _fullest(content)
        more = f" itself; its entry {within!r:.120} does: save that alone" if within else ""
        raise Refused(f"{path}: holds no tensors{more}")
    if len(tensors) > MAX_TENSORS:
        raise Refused(f"{path}: {len(tensors)} tensors, more than {MAX_TENSORS}")
    return StateDict(tensors, tuple(ignored))


def _read_safetensors(path: Path) -> tuple[dict[str, Any], mmap]:
    """Descriptions and bytes, as `read_torch_file` gives them."""
    entries = read_header(path, {tag: dtype.itemsize for tag, dtype in _SAFETENSORS.items()})
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        data = mmap(file.fileno(), 0, access=ACCESS_COPY)
    content: dict[str, Any] = {}
    for name, info in entries.items():
        storage = Storage(_SAFETENSORS[info.dtype], begin + info.begin, math.prod(info.shape))
        strides = tuple(math.prod(info.shape[i + 1 :]) for i in range(len(info.shape)))
        content[name] = Stored(storage, 0, info.shape, strides)
    return content, data


def _unwrap(path: Path, content: Any) -> tuple[dict[Any, Any], list[str]]:
    """The state dict inside a trainer's wrappers, and the names of the entries beside it."""
    ignored: list[str] = []
    for _ in WRAPPERS:
        if not isinstance(content, dict):
            raise Refused(f"{path}: holds {_what(content)}, expected a state dict")
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if wrapper is None:
            break
        for key, value in content.items():
            # A gradient norm or a loss is a tensor of one number; a tensor with more numbers is a weight.
            if isinstance(value, Stored) and math.prod(value.shape) != 1:
                raise Refused(f"{path}: tensor {key!r:.80} stands outside {wrapper!r}")
        ignored += [str(key) for key in content if key != wrapper]
        content = content[wrapper]
    return content, ignored


def _fullest(content: dict[Any, Any]) -> str:
    """The path of keys to the dict with the most named tensors; empty if there is none."""
    counts, level = {"": 0}, [("", content)]
    for _ in range(3):
        inner = ((f"{path}.{key!s:.60}", value) for path, held in level for key, value in held.items())
        level = list({id(value): (path, value) for path, value in inner if isinstance(value, dict)}.values())
        counts |= {path[1:]: sum(map(_is_tensor, held.values())) for path, held in level}
    return max(counts, key=counts.__getitem__)


def _is_tensor(value: Any) -> bool:
    """Dense or, such as `torch._utils._rebuild_sparse_tensor`, of another kind."""
    return isinstance(value, Stored) or (isinstance(value, Foreign) and value.name.startswith("torch."))


def _what(value: Any) -> str:
    return (
        value.name if isinstance(value, Foreign) else "a tensor" if isinstance(value, Stored) else type(value).__name__
    )


def _tensor(path: Path, key: str, value: Any, data: mmap) -> torch.Tensor:
    """The tensor that `value` describes, a view of the mapped file."""
    if isinstance(value, Foreign) and _is_tensor(value):
        raise Refused(f"{path}: {key} is not a plain dense tensor ({value.name})")
    if not isinstance(value, Stored):
        raise Refused(f"{path}: entry {key!r:.120} is {_what(value)}, expected a tensor under a name")
    storage, offset, shape, strides = value
    if storage.dtype not in FLOATS:
        raise Refused(f"{path}: {key} holds {str(storage.dtype).removeprefix('torch.')}, expected floating point")
    if len(shape) > MAX_DIMENSIONS:
        raise Refused(f"{path}: {key} has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    count = math.prod(shape)
    if count == 0:
        raise Refused(f"{path}: {key} is empty, shape {list(shape)}")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # A stride of 0 lets a few stored bytes claim any size.
    if count > min(MAX_ELEMENTS, storage.size) or last >= storage.size:
        raise Refused(f"{path}: {key} claims shape {list(shape)}, more than the file holds")
    numbers = torch.frombuffer(data, dtype=storage.dtype, count=storage.size, offset=storage.begin)
    return numbers.as_strided(shape, strides, offset)


# ---- yaml


@dataclass(frozen=True)
class Tagged:
    """A HyperPyYAML tag as data: `!new:a.b.C {x: 1}` is Tagged('new', 'a.b.C', {'x': 1}). Nothing is looked up."""

    kind: str
    target: str
    value: Any


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that reads `!new`, `!name`, `!ref` and the four seed calls as data and refuses every other tag."""


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
    return loader.construct_scalar(cast(yaml.ScalarNode, node)) or None


def _refuse(_: _PlainLoader, node: yaml.Node) -> NoReturn:
    raise Refused(f"line {node.start_mark.line + 1}: tag '{node.tag}' would run code; refused")


for _kind in ("new", "name", "apply"):
    _PlainLoader.add_multi_constructor(f"!{_kind}:", _tagged(_kind))
_PlainLoader.add_constructor("!ref", _reference)
_PlainLoader.add_constructor(None, _refuse)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a HyperPyYAML file to plain data; tags become `Tagged` values and nothing is imported or called.

    Raises:
        Refused: missing, not yaml, too large or too deep, aliases that unfold to too much, or a tag outside
            `!new`, `!name`, `!ref` and the four seed calls of the official file.
    """
    try:
        require_regular(path)
        if path.stat().st_size > MAX_YAML_BYTES:
            raise Refused(f"{path}: larger than {MAX_YAML_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Refused(f"{path}: not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: not readable ({getattr(error, 'strerror', None) or 'no UTF-8 text'})") from None
    try:
        check_events(text)
        data = yaml.load(text, Loader=_PlainLoader)
    except Refused as error:
        raise Refused(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise Refused(f"{path}: {where}not valid yaml ({problem})") from None
    except Exception as error:  # PyYAML converts text to numbers, dates and booleans without validating it
        raise Refused(f"{path}: not valid yaml ({type(error).__name__})") from None
    if not isinstance(data, dict):
        raise Refused(f"{path}: expected a mapping at the top")
    return data
