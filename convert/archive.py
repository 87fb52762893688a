"""The zip archive of a `.pt` file, read strictly: one directory, plain records that do not overlap, right checksums."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from port.files.errors import Refused

# Far above any real checkpoint.
MAX_RECORDS = 20_000
MAX_DIRECTORY_BYTES = 8 << 20
CHUNK = 8 << 20
FOREIGN = "truncated, or not a file written by torch.save (1.6 or newer)"


def open_records(path: Path, file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Start and size in bytes of each record; every record has passed its checksum.

    Raises:
        Refused: not a zip archive, or a truncated, damaged, compressed or ambiguous one.
    """
    directory = _directory(path, file)
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError):
        raise Refused(f"{path}: {FOREIGN}") from None
    if len(found) > MAX_RECORDS:
        raise Refused(f"{path}: {len(found)} records, more than {MAX_RECORDS}")
    records: dict[str, tuple[int, int]] = {}
    for info in found:
        # torch.save stores records without compression, so a record that would grow when unpacked is an attack.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Refused(f"{path}: record {info.filename!r} is compressed; torch.save stores records plainly")
        file.seek(info.header_offset)
        header = file.read(30)
        name, extra = struct.unpack("<26x2H", header) if len(header) == 30 else (0, 0)
        begin = info.header_offset + 30 + name + extra
        if header[:4] != b"PK\3\4" or begin + info.file_size > directory or info.filename in records:
            raise Refused(f"{path}: {FOREIGN}: record {info.filename!r} is not where its directory says")
        records[info.filename] = begin, info.file_size
    if sum(size for _, size in records.values()) > directory:
        raise Refused(f"{path}: {FOREIGN}: its records overlap")
    for info in found:
        _check_sum(path, file, info.filename, *records[info.filename], info.CRC)
    return records


def _directory(path: Path, file: BinaryIO) -> int:
    """Start of the archive's directory. There must be only one: with two, readers differ in which one they use."""
    size = file.seek(0, 2)
    file.seek(max(size - 98, 0))
    tail = file.read().rjust(98, b"\0")
    mark, entries, length, begin, comment = struct.unpack("<4s6xH2LH", tail[-22:])
    if mark != b"PK\5\6" or comment:
        raise Refused(f"{path}: {FOREIGN}")
    end = size - 22
    if tail[-42:-38] == b"PK\6\7":  # 64-bit sizes have their own record, before its locator
        end -= 76
        mark, wide_entries, wide_length, wide_begin = struct.unpack("<4s28x3Q", tail[:56])
        pairs = ((entries, wide_entries, 0xFFFF), (length, wide_length, 0xFFFFFFFF), (begin, wide_begin, 0xFFFFFFFF))
        (located,) = struct.unpack("<Q", tail[-34:-26])
        if mark != b"PK\6\6" or located != end or any(n not in (wide, none) for n, wide, none in pairs):
            raise Refused(f"{path}: {FOREIGN}: it has two directories")
        length, begin = wide_length, wide_begin
    if begin + length != end:
        raise Refused(f"{path}: {FOREIGN}: it has two directories")
    if length > MAX_DIRECTORY_BYTES:
        raise Refused(f"{path}: a directory of {length} bytes, more than {MAX_DIRECTORY_BYTES}")
    return begin


def _check_sum(path: Path, file: BinaryIO, name: str, begin: int, size: int, wanted: int) -> None:
    file.seek(begin)
    found = 0
    while size:
        piece = file.read(min(size, CHUNK))
        if not piece:
            raise Refused(f"{path}: {FOREIGN}")
        found, size = zlib.crc32(piece, found), size - len(piece)
    if found != wanted:
        raise Refused(f"{path}: damaged, record {name!r} fails its checksum; download or copy it again")
