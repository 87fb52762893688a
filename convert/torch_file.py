"""Read a `.pt` file written by torch.save without torch's unpickler: tensors and plain data only; nothing is called.

The file is a zip archive of uncompressed records: a pickle with the names and shapes, and the bytes of each storage.
One reader handles all of it, so no second reader can see different content; it has its own limits.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from convert.archive import FOREIGN, open_records
from port.files.errors import Refused

# Far above any real checkpoint, far below what would take a machine's memory or minutes.
MAX_PICKLE_BYTES = 16 << 20
MAX_OPCODES = 1 << 20

DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
# Objects that trainers store beside the weights. They are not called either, only named (`Foreign`).
HARMLESS = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        *(f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in ("set", "frozenset", "dict")),
    }
)
_PLAIN = frozenset({"BINBYTES", "BINFLOAT", "BININT", "BININT1", "BININT2", "BINUNICODE", "LONG1"})
_PLAIN |= {"SHORT_BINBYTES", "SHORT_BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Storage(NamedTuple):
    """`size` numbers of one dtype in a record of the archive, which begins at byte `begin` of the file."""

    dtype: torch.dtype
    begin: int
    size: int


class Stored(NamedTuple):
    """A tensor as the pickle describes it; `offset` and `strides` count numbers. All are whole numbers >= 0."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Foreign(NamedTuple):
    """An object that the pickle would have made by a call; only the name of the callable is kept."""

    name: str


class TorchFile(NamedTuple):
    """Content of a `.pt` file, and its bytes for `Stored` tensors: a private map that never writes to the file."""

    content: Any
    data: mmap.mmap


def read_torch_file(path: Path) -> TorchFile:
    """Check every record of the archive by its checksum, then read the pickle.

    Raises:
        Refused: truncated, damaged, compressed or ambiguous archive, code or other objects in the pickle.
    """
    try:
        with path.open("rb") as file:
            records = open_records(path, file)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path}: cannot be read ({error})") from None
    names = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(names) != 1:
        raise Refused(f"{path}: {FOREIGN}: it holds {len(names)} records data.pkl")
    stem = names[0].removesuffix("data.pkl")
    begin, size = records.get(f"{stem}byteorder", (0, 0))
    if size and data[begin : begin + size] != b"little":
        raise Refused(f"{path}: written on a big-endian machine; load it there and save it on another")
    begin, size = records[names[0]]
    if size > MAX_PICKLE_BYTES:
        raise Refused(f"{path}: its pickle takes {size} bytes, more than {MAX_PICKLE_BYTES}")
    storages = {
        name.removeprefix(f"{stem}data/"): place for name, place in records.items() if name.startswith(f"{stem}data/")
    }
    try:
        return TorchFile(_Reader(path, storages).read(data[begin : begin + size]), data)
    except (ValueError, KeyError, IndexError, TypeError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path}: its pickle is damaged ({type(error).__name__})") from None


class _Reader:
    """Executes the few instructions that torch.save writes, on plain data."""

    def __init__(self, path: Path, storages: Mapping[str, tuple[int, int]]) -> None:
        self.path = path
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, pickled: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count >= MAX_OPCODES:
                raise Refused(f"{self.path}: its pickle takes more than {MAX_OPCODES} steps")
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "TUPLE" or name in _TUPLES:
            stack.append(tuple(self.take(_TUPLES.get(name))))
        elif name in ("APPEND", "APPENDS"):
            items = self.take(1 if name == "APPEND" else None)
            if not isinstance(stack[-1], Foreign):
                _as(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.put(self.take(2 if name == "SETITEM" else None))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ") if name == "GLOBAL" else self.take(2)
            stack.append(self.named(".".join(_as(str, word) for word in words)))
        elif name == "BINPERSID":
            stack.append(self.storage(*stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self.take(2)
            stack.append(_made(_as(Foreign, function).name, _as(tuple, arguments)))
        elif name == "BUILD":  # such as the `_metadata` of a state dict
            self.take(1)
            if isinstance(stack[-1], Stored | Storage):
                raise ValueError
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"{self.path}: refused, its pickle asks for {name}, and only plain tensors are read")

    def take(self, count: int | None) -> list[Any]:
        """The last `count` values, or those since the last mark."""
        begin = self.marks.pop() if count is None else len(self.stack) - count
        if begin < (self.marks[-1] if self.marks else 0):
            raise ValueError
        taken = self.stack[begin:]
        del self.stack[begin:]
        return taken

    def put(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], Foreign):
            return
        target = _as(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Keys are hashed, and hashing nested tuples of a few bytes could take forever.
            if not isinstance(key, str | int | float | None):
                raise Refused(f"{self.path}: a {type(key).__name__} is a key in it, expected names")
            target[key] = value

    def named(self, name: str) -> Foreign:
        if name not in HARMLESS and not name.startswith("torch."):
            raise Refused(
                f"{self.path}: refused, its pickle asks for {name}, and only plain tensors are read; "
                "save the model's state_dict() alone"
            )
        return Foreign(name)

    def storage(self, kind: str, dtype: Any, key: str, location: Any, count: int) -> Storage | Foreign:
        name = _as(Foreign, dtype).name
        if kind != "storage" or type(count) is not int or count < 0:
            raise ValueError
        if name not in DTYPES:
            return Foreign(name)
        if key not in self.storages:
            raise Refused(f"{self.path}: record {key!r:.60} of its data is missing")
        begin, size = self.storages[key]
        if count * DTYPES[name].itemsize > size:
            raise Refused(f"{self.path}: record {key!r:.60} holds less than {count} numbers")
        return Storage(DTYPES[name], begin, count)


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """The result of a call, if it is plain data or a dense tensor."""
    if name == "collections.OrderedDict" and not arguments:
        return {}
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    # A last argument marks negated or conjugated numbers: not a plain tensor.
    if name == "torch._utils._rebuild_tensor_v2" and isinstance(arguments[0], Storage) and not any(arguments[6:]):
        storage, offset, shape, strides = arguments[:4]
        if len(_as(tuple, shape)) != len(_as(tuple, strides)):
            raise ValueError
        if any(type(n) is not int or not 0 <= n < 1 << 62 for n in (offset, *shape, *strides)):
            raise ValueError
        return Stored(storage, offset, shape, strides)
    return Foreign(name)
