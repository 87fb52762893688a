"""Recorded cases: a port in any language can be judged from files alone, and only correct results pass."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_parity.record import Recorded, read_manifest, write
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.parts import PARTS
from parity_tests.record import ORIGINAL, judged, lines, main, select, with_truth

pytestmark = pytest.mark.meta
NAMES = ["flow.adaln_zero", "flow.masks.pad", "vocoder.resblock.k3", "vocoder.sine.9"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    write(map(with_truth, select(all_cases(), NAMES)), folder, ORIGINAL)
    return folder


@pytest.fixture
def results(files, tmp_path):
    """Results of our own port, computed from the files alone, as a program in another language would."""
    for name, entry in read_manifest(files).items():
        held = Recorded.read(files / name)
        found = OwnPort().run(PARTS[entry["module"]], held.config, held.weights, held.inputs, held.call)
        save_file({k: np.ascontiguousarray(found[k]) for k in held.out}, tmp_path / name)
    return tmp_path


def test_a_port_is_judged_from_files_alone(files, results, capsys):
    rows = judged(files, results)
    assert [row.reading.status for row in rows] == ["PASS"] * 9
    assert main(["--judge", str(files), str(results)]) == 0
    assert "9 of 9 tensors" in capsys.readouterr().out


def test_files_are_laid_out_like_the_golden_ones(files):
    file = Recorded.read(files / "vocoder.resblock.k3.safetensors")
    assert file.config == dict(channels=10, kernel_size=3, dilations=[1, 3, 5])
    assert "convs1.0.parametrizations.weight.original1" in file.weights
    assert file.out["y"].dtype == np.float32 and file.out64["y"].dtype == np.float64
    mask = Recorded.read(files / "flow.masks.pad.safetensors").out["mask"]
    assert mask.dtype == np.uint8


def change(path, **tensors):
    held = load_file(path)
    save_file({k: v for k, v in (held | tensors).items() if v is not None}, path)


def test_a_wrong_result_fails_and_is_named_first(files, results, capsys):
    path = results / "vocoder.resblock.k3.safetensors"
    change(path, y=load_file(path)["y"] * np.float32(1.0001))
    assert main(["--judge", str(files), str(results)]) == 1
    said = capsys.readouterr().out
    assert "first that does not pass: vocoder.resblock.k3.y (vocoder.generator.ResBlock)" in said
    assert "8 of 9 tensors" in said


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"no tensors"),
        lambda path: change(path, y=None),
        lambda path: change(path, surplus=np.ones(3, np.float32)),
        lambda path: change(path, y=np.full((2, 10, 64), np.nan, np.float32)),
        lambda path: change(path, y=np.zeros((2, 64, 10), np.float32)),
        lambda path: change(path, y=np.zeros((2, 10, 64), np.int32)),
    ],
    ids=["no file", "damaged", "no output", "surplus", "nan", "other layout", "integers"],
)
def test_what_cannot_be_compared_is_an_error(files, results, spoil):
    spoil(results / "vocoder.resblock.k3.safetensors")
    rows = judged(files, results, "vocoder.resblock*")
    assert "ERROR" in {row.reading.status for row in rows}
    assert any("ERROR" in line for line in lines(rows))


def test_a_wrong_call_is_one_line(files, results, tmp_path, capsys):
    altered = tmp_path / "altered"
    altered.mkdir()
    for path in files.iterdir():
        (altered / path.name).write_bytes(path.read_bytes())
    change(altered / "flow.masks.pad.safetensors", surplus=np.ones(1, np.float32))
    for words in (
        [],
        ["flow.dit.full"],
        ["flow.*", "nothing.like.it", "--out", str(tmp_path)],
        ["--judge", str(tmp_path / "nowhere"), str(results)],
        ["--judge", str(files), str(files)],
        ["--judge", str(files), str(results), "--only", "nothing*"],
        ["--judge", str(altered), str(results)],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("record: ") and "\n" not in said


def test_the_list_names_every_case(capsys):
    assert main(["--list"]) == 0
    names = capsys.readouterr().out.split()
    assert {case.name for case in all_cases()} < set(names)
    assert "llm.sampling.ras" in names
