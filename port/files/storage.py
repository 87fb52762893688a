"""Safetensors files of MLX: checked headers, and writing one tensor at a time.

A header with wrong sizes is refused in one line, before anything is allocated.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import mlx.core as mx
import numpy as np

from .disk import read_json, require_regular
from .errors import CONVERTER, Refused, brief

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 << 30
MAX_HEADER_BYTES = 100 << 20  # the limit of the safetensors format

Shape = tuple[int, ...]
DTYPES: dict[str, tuple[mx.Dtype, int]] = {
    "F32": (mx.float32, 4),
    "F16": (mx.float16, 2),
    "BF16": (mx.bfloat16, 2),
    "U32": (mx.uint32, 4),
    "U8": (mx.uint8, 1),
}
_SIZES = {tag: size for tag, (_, size) in DTYPES.items()}
_TAGS = {dtype: tag for tag, (dtype, _) in DTYPES.items()}


class TensorInfo(NamedTuple):
    """Header entry of a tensor; `begin` and `end` count bytes from the end of the header."""

    dtype: str
    shape: Shape
    begin: int = 0
    end: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][1]


def read_headers(folder: Path) -> dict[str, tuple[Path, TensorInfo]]:
    """Every tensor of the folder: its file and its header entry. No tensor data is read.

    Raises:
        Refused: no weights, a damaged header, a tensor in two files, an index that names other tensors than the
            files hold or a file outside the folder.
    """
    index_path = folder / INDEX_FILE
    if not index_path.exists():
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise Refused(f"{path}: not found; give a folder written by {CONVERTER}")
        return {name: (path, info) for name, info in read_header(path).items()}
    placed = read_json(index_path).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise Refused(f"{index_path}: has no weight_map")
    found: dict[str, tuple[Path, TensorInfo]] = {}
    for file in sorted(set(placed.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise Refused(f"{index_path}: {file!r:.80} is not a safetensors file of this folder")
        for name, info in read_header(folder / file).items():
            if placed.get(name) != file:
                raise Refused(f"{folder / file}: holds {name!r:.120}, which the index places elsewhere")
            found[name] = (folder / file, info)
    if missing := sorted(placed.keys() - found.keys()):
        raise Refused(f"{index_path}: {missing[0]!r:.120} is not in {placed[missing[0]]}")
    return found


def read_header(path: Path, sizes: Mapping[str, int] = _SIZES) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, checked: known dtypes, sizes that fit the shapes, no gaps and no overlaps.

    Args:
        sizes: bytes per number, for each known dtype.

    Raises:
        Refused: names the file, and the tensor if one is at fault.
    """
    return _read(path, sizes)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of one safetensors file.

    Raises:
        Refused: as `read_header`.
    """
    return _read(path, _SIZES)[1]


def _read(path: Path, sizes: Mapping[str, int]) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        require_regular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise Refused(f"{path}: truncated, or not a safetensors file")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, Refused):
            raise Refused(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
        raise Refused(f"{path}: its header is not JSON") from None
    if not isinstance(header, dict):
        raise Refused(f"{path}: its header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}  # mx.save_safetensors writes null if there is none
    if not isinstance(metadata, dict) or not all(map(_is_text, [*header, *metadata, *metadata.values()])):
        raise Refused(f"{path}: its metadata or a name is no valid text")
    infos = {name: _entry(path, name, entry, sizes) for name, entry in header.items()}
    end = 0
    for name, info in sorted(infos.items(), key=lambda item: item[1].begin):
        if info.begin != end:
            raise Refused(f"{path}: {name!r:.120} does not start where the tensor before it ends")
        end = info.end
    if end != size - 8 - length:
        raise Refused(f"{path}: holds {size - 8 - length} bytes of data, its header describes {end}; truncated?")
    return infos, metadata


def _is_text(value: Any) -> bool:
    """JSON escapes can spell half a surrogate pair, which MLX's reader rejects."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _entry(path: Path, name: str, entry: Any, sizes: Mapping[str, int]) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise Refused(f"{path}: the header entry of {name!r:.120} is damaged") from None
    if any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers):
        raise Refused(f"{path}: the header entry of {name!r:.120} holds sizes that are not usable")
    if not isinstance(dtype, str) or dtype not in sizes:
        raise Refused(f"{path}: {name!r:.120} has dtype {brief(dtype)}; known: {', '.join(sizes)}")
    if end - begin != math.prod(shape) * sizes[dtype]:
        raise Refused(f"{path}: {name!r:.120} of shape {shape} does not fit the {end - begin} bytes it is given")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise Refused(f"{next(n for n in names if names.count(n) > 1)!r:.120} is given twice")
    return content


class Writer:
    """Writes `model.safetensors`, or numbered shards and their index, one tensor at a time and in any order.

    Names are sorted over the shards. Only one tensor is in memory at a time, so all sizes must be known in advance.
    Use it in a `with` block; leaving the block without an error completes the files.

    Args:
        folder: must exist and hold no weights yet.
        tensors: dtype and shape of every tensor.
        max_shard_bytes: most bytes of data in one file; a larger tensor gets its own file.
        metadata: metadata of every file.

    Raises:
        Refused: the folder holds weights already.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        max_shard_bytes: int = MAX_SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if present := sorted(folder.glob("model*.safetensors*")):
            raise Refused(f"{present[0]}: exists already")
        self._folder, self._metadata = folder, {"format": "mlx", **(metadata or {})}
        self._places: dict[str, tuple[str, TensorInfo, int]] = {}
        self._written: set[str] = set()
        shards = _split({name: tensors[name] for name in sorted(tensors)}, max_shard_bytes)
        self._files: dict[str, BinaryIO] = {}
        for number, shard in enumerate(shards, 1):
            file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._open(file, shard)

    def _open(self, file: str, shard: dict[str, TensorInfo]) -> None:
        entries: dict[str, Any] = {"__metadata__": self._metadata}
        offsets, offset = {}, 0
        for name, info in shard.items():
            offsets[name], offset = offset, offset + info.nbytes
            entries[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [offsets[name], offset]}
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        handle = (self._folder / file).open("wb")
        handle.write(struct.pack("<Q", len(header)) + header)
        self._files[file] = handle
        for name, info in shard.items():
            self._places[name] = (file, info, 8 + len(header) + offsets[name])

    def write(self, name: str, array: np.ndarray | mx.array) -> None:
        """Write one tensor; it must have the announced shape; it is rounded to the announced dtype if that differs.

        Raises:
            Refused: a name that was not announced or was written before, or another shape.
        """
        if name not in self._places or name in self._written:
            raise Refused(f"{name}: {'written twice' if name in self._written else 'not announced'}")
        file, info, position = self._places[name]
        if tuple(array.shape) != info.shape:
            raise Refused(f"{name}: has shape {list(array.shape)}, announced was {list(info.shape)}")
        handle = self._files[file]
        handle.seek(position)
        handle.write(_stored(array, info.dtype).data.cast("B"))
        self._written.add(name)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._files.values():
            handle.close()
        if kind is not None:
            return
        if unwritten := sorted(self._places.keys() - self._written):
            raise Refused(f"{unwritten[0]}: announced and not written")
        if len(self._files) > 1:
            infos = [info for _, info, _ in self._places.values()]
            index = {
                "metadata": {
                    "total_size": sum(info.nbytes for info in infos),
                    "total_parameters": sum(math.prod(info.shape) for info in infos),
                },
                "weight_map": {name: file for name, (file, _, _) in sorted(self._places.items())},
            }
            (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def describe(name: str, array: np.ndarray | mx.array) -> TensorInfo:
    """Header entry of an array, without its offsets.

    Raises:
        Refused: a dtype that safetensors does not have.
    """
    tag = _TAGS.get(array.dtype) if isinstance(array, mx.array) else _NUMPY_TAGS.get(array.dtype)
    if tag is None:
        raise Refused(f"{name}: dtype {array.dtype} cannot be stored; known: {', '.join(DTYPES)}")
    return TensorInfo(tag, tuple(array.shape))


_NUMPY_TAGS = {np.dtype(t): tag for t, tag in ((np.float32, "F32"), (np.float16, "F16"), (np.uint32, "U32"))}


def _stored(array: np.ndarray | mx.array, tag: str) -> np.ndarray:
    if isinstance(array, np.ndarray) and _NUMPY_TAGS.get(array.dtype) == tag:
        return np.ascontiguousarray(array)
    array = mx.array(array).astype(DTYPES[tag][0])
    # numpy has no bfloat16; only the bits matter here.
    return np.array(array.view(mx.uint16) if tag == "BF16" else array, order="C")


def _split(tensors: dict[str, TensorInfo], limit: int) -> list[dict[str, TensorInfo]]:
    shards: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name, info in tensors.items():
        if shards[-1] and filled + info.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = info
        filled += info.nbytes
    return shards
