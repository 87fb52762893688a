"""Malicious files: refused in one line, quickly, and without allocating the memory they claim."""

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import pytest
import torch

from convert.checkpoint import read_state_dict
from tests.support.convert_support import refused, resave

pytestmark = pytest.mark.robust

FILES = ("llm.pt", "flow.pt", "hift.pt")
TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.bias": torch.ones(3)}


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def records_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def packed(records):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_pickle(pickled):
    """A `.pt` file whose pickle is replaced."""
    records = records_of(saved(TENSORS))
    (name,) = (name for name in records if name.endswith("data.pkl"))
    return packed(records | {name: pickled})


# ---- what the checksums see


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("length", [1, 4096])
def test_damage_in_the_middle_of_a_file(source, refuses, name, length):
    data = bytearray((source / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + length] = bytes(255 - byte for byte in data[middle : middle + length])
    (source / name).write_bytes(data)
    line = refuses(source, name)
    assert "checksum" in line or "not where its directory says" in line  # a small record's header was hit


def test_every_record_is_checked(tmp_path):
    """One bit flipped in each record, the pickle and the small ones too."""
    data, path = saved(TENSORS), tmp_path / "x.pt"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = archive.infolist()
    assert len(found) > 4
    for info in found:
        name, extra = struct.unpack_from("<2H", data, info.header_offset + 26)
        broken = bytearray(data)
        broken[info.header_offset + 30 + name + extra] ^= 1
        path.write_bytes(broken)
        assert repr(info.filename) in refused(read_state_dict, path)


# ---- archives that two readers see differently


def test_two_directories(tmp_path):
    """One where the end record says, one right before it: torch takes the first, Python's zipfile the last."""
    harmless, harmful = saved(TENSORS), saved({"a.weight": torch.zeros(300_000)})
    directory = struct.unpack("<L", packed(records_of(harmless))[-6:-2])[0]
    first, second = packed(records_of(harmful)), packed(records_of(harmless))
    path = tmp_path / "x.pt"
    path.write_bytes(first[:-22] + second)  # the second's offsets count from its own beginning
    assert "two directories" in refused(read_state_dict, path)
    end = bytearray(second[-22:])
    end[16:20] = struct.pack("<L", struct.unpack("<L", first[-6:-2])[0])
    path.write_bytes(first[:-22] + second[directory:-22] + end)
    assert "two directories" in refused(read_state_dict, path)


def test_sizes_of_64_bits_that_disagree(tmp_path):
    data = bytearray(saved(TENSORS))
    data[-6:-2] = struct.pack("<L", 7)  # of the directory, in the record for 32 bits
    (tmp_path / "x.pt").write_bytes(data)
    assert "two directories" in refused(read_state_dict, tmp_path / "x.pt")


@pytest.mark.parametrize("change", [lambda d: d + b"more", lambda d: b"\0" * 64 + d, lambda d: d[:-2] + b"\4\0note"])
def test_bytes_around_an_archive(tmp_path, change):
    (tmp_path / "x.pt").write_bytes(change(packed(records_of(saved(TENSORS)))))
    refused(read_state_dict, tmp_path / "x.pt")


def test_records_that_overlap(tmp_path):
    """All entries of the directory share one large record, which would be read once an entry for its checksum."""
    content = bytes(1 << 20)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(content), len(content), len(content), 1, 0)
    sizes = (zlib.crc32(content), len(content), len(content))
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, *sizes, 1, *[0] * 6)
    body = local + b"a" + content
    directory = b"".join(entry + bytes([65 + i % 26]) for i in range(20))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 20, 20, len(directory), len(body), 0)
    (tmp_path / "x.pt").write_bytes(body + directory + end)
    refused(read_state_dict, tmp_path / "x.pt")


@pytest.mark.parametrize("stem", ["../x", "../../etc", "/etc", "a/../../x", "C:\\x"])
def test_names_of_records_that_leave_the_folder(tmp_path, stem):
    """Records are read in place; nothing is unpacked to the disk."""
    records = {f"{stem}/{name.partition('/')[2]}": content for name, content in records_of(saved(TENSORS)).items()}
    path = tmp_path / "inner" / "x.pt"
    path.parent.mkdir()
    path.write_bytes(packed(records | {"../beside": b"x", f"{stem}/../above": b"x"}))
    assert read_state_dict(path)["a.weight"].tolist() == TENSORS["a.weight"].tolist()
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


# ---- small pickles that cost much, and damaged ones


def doubled(times):
    """A dictionary whose key is a tuple that holds the same tuple twice, and so on."""
    return b"\x80\x02}(" + b")" + b"q\x00h\x00\x86" * times + b"K\x01u."


class Call:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (pickle.dumps({"a": Call(bytearray, 2 << 30)}, 2), "asks for"),
        (pickle.dumps({"module": {}, "a": Call(bytes, 2 << 30)}, 2), "asks for"),
        (pickle.dumps({"a": Call(range, 1 << 60)}, 4), "asks for builtins.range"),
        (pickle.dumps({"a": Call(torch.zeros, 1 << 30)}, 2), "asks for"),
        (b"\x80\x02}X\x01\x00\x00\x00actorch._C._TensorBase\nzeros\nJ\x00\x00\x00\x40\x85Rs.", "is not a plain dense"),
        (doubled(60), "is a key"),
        (pickle.dumps({frozenset({1}): 2}, 4), "asks for FROZENSET"),
        (pickle.dumps({b"a": torch.Size([1])}, 4), "is a key"),
        (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "expected a state dict"),
        (b"\x80\x02]" + b"K\x01a" * (1 << 19) + b".", "steps"),
        (b"\x80\x02}" + b"\x8b" + struct.pack("<L", 1 << 20) + bytes(1 << 20) + b".", "asks for LONG4"),
        (b"\x80\x02(" + b"I" + b"9" * 100_000 + b"\n.", "pickle"),
        (b"\x80\x02cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (b"\x80\x02ctorch.serialization\nload\n(X\x01\x00\x00\x00xtR.", "expected a state dict"),
        (b"\x80\x02", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02K\x01Q.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02}(K\x01u.", "damaged"),
        (b"\x80\x02(}\x86.", "damaged"),
    ],
)
def test_costly_or_damaged_pickles(tmp_path, pickled, said):
    (tmp_path / "x.pt").write_bytes(with_pickle(pickled))
    assert said in refused(read_state_dict, tmp_path / "x.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch._neg_view(torch.ones(2)),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.ones(2).to_sparse(),
        torch.ones(2, 2).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.empty(2, device="meta"),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones([1] * 70),
        torch.ones(2).bool(),
        torch.ones(2, 0),
        torch.ones(1).expand(1 << 40),
        [torch.ones(2)],
        3.5,
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_of_another_kind(tmp_path, value):
    torch.save(TENSORS | {"c.odd": value}, tmp_path / "x.pt")
    assert "c.odd" in refused(read_state_dict, tmp_path / "x.pt")


def test_a_tensor_that_repeats_an_element_of_its_storage_is_read(tmp_path):
    torch.save(TENSORS | {"c.odd": torch.ones(8).as_strided((4,), (0,))}, tmp_path / "x.pt")
    assert read_state_dict(tmp_path / "x.pt")["c.odd"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x04K\x01\x86", b"K\x04K\xff\x86"),  # a stride beyond the storage
        (b"K\x03K\x04\x86", b"K\x03K\xff\x86"),  # a size beyond it
        (b"K\x03K\x04\x86", b"K\x03J\xff\xff\xff\xff\x86"),  # a negative size
        (b"K\x03K\x04\x86", b"K\x03)\x86"),
        (b"K\x03K\x04\x86", b"K\x03\x88\x86"),
        (b"K\x0c", b"J\xff\xff\xff\x7f"),  # the storage's size
        (b"FloatStorage", b"OtherStorage"),
        (b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"),
    ],
)
def test_tensors_with_false_sizes_or_types(tmp_path, old, new):
    records = records_of(saved(TENSORS))
    (name,) = (name for name in records if name.endswith("data.pkl"))
    pickled = records[name].replace(old, new, 1)
    assert pickled != records[name]
    (tmp_path / "x.pt").write_bytes(packed(records | {name: pickled}))
    refused(read_state_dict, tmp_path / "x.pt")


def test_what_trainers_leave_beside_the_weights_is_named(tmp_path):
    beside = {"optimizer": {"lr": 1e-4, "state": {0: {"exp_avg": torch.ones(3)}}}, "args": argparse.Namespace(a=1)}
    beside |= {"grad_norm": torch.tensor(1.5), "unused": {"x"}, "epoch": 3, "rng": (1, None, True)}
    torch.save({"module": TENSORS, **beside}, tmp_path / "x.pt")
    state = read_state_dict(tmp_path / "x.pt")
    assert list(state) == list(TENSORS)
    assert set(state.ignored) == set(beside)
    assert state["a.weight"].tolist() == TENSORS["a.weight"].tolist()


def test_weights_beside_a_wrapper_are_not_ignored(tmp_path):
    torch.save({"module": TENSORS, "c.weight": torch.ones(3)}, tmp_path / "x.pt")
    assert "'c.weight' stands outside 'module'" in refused(read_state_dict, tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["cosyvoice3.yaml", "CosyVoice-BlankEN/config.json", "flow.pt"])
def test_a_pipe_in_the_place_of_a_file(source, refuses, name):
    (source / name).unlink()
    os.mkfifo(source / name)
    refuses(source, "not a file")


def test_names_from_a_file_cannot_rewrite_the_terminal(source, refuses):
    resave(source / "flow.pt", lambda state: state | {"a.\x1b[2J\n::error::\u202e" + "x" * 5000: torch.ones(2)})
    line = refuses(source)
    assert line.isprintable()
    assert len(line) < 1000
    path = source / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"\x1b[31m\nkey\u2028": 1}))
    assert refuses(source, "config.json").isprintable()
