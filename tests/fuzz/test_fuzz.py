"""Untrusted files: known bad ones, a short run of the fuzzer over every reader, and tests of the fuzzer itself."""

import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlx_parity.report.codec import ReportError
from port.files.disk import read_text
from port.files.errors import Refused
from port.frontend.audio import load_wav, resample
from tests.fuzz import __main__ as fuzz
from tests.fuzz.readers import READERS, Reader

pytestmark = pytest.mark.robust

CORPUS = Path(__file__).parents[2] / "parity_tests" / "data" / "damaged"
INPUTS = 60
PACKED = ("pickle",)  # not a file but a record of an archive
OF_A_FILE = [reader for reader in READERS if reader.name not in PACKED]
BY_NAME = {reader.name: reader for reader in READERS}


def broken(name, read):
    """A reader with a fault, for the fuzzer to find."""
    return Reader(name, "x", lambda folder: (folder / "x").write_bytes(b"valid"), read)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_known_damage_is_refused_or_read(path, tmp_path):
    """Each of these once ended in a traceback, or stands for one kind of refusal."""
    reader = BY_NAME[path.parent.name]
    reader.write(tmp_path)
    (tmp_path / reader.file).write_bytes(path.read_bytes())
    assert fuzz.attempt(reader, tmp_path)[0] == ("read" if path.stem.startswith("read") else "refused")


def test_every_reader_has_known_damage():
    assert {folder.name for folder in CORPUS.iterdir()} == BY_NAME.keys()


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_survives_a_short_run(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz.signal, "alarm", lambda seconds: 0)  # pytest has a clock of its own
    fuzz.work(reader, tmp_path, seconds=30, inputs=INPUTS, seed=time.time_ns())
    read, refused = map(int, (tmp_path / fuzz.TALLY).read_text().split())
    assert read + refused == INPUTS
    assert refused


def test_a_size_in_config_costs_nothing_before_it_is_compared(tmp_path):
    """Whatever size a number claims, nothing of that size is allocated before shapes are compared."""
    reader = BY_NAME["config_quantized"]
    reader.write(tmp_path)
    file = tmp_path / reader.file
    valid = file.read_text("utf-8")
    numbers = list(re.finditer(r": (\d+)(?=[,\n])", valid))
    assert len(numbers) > 60
    for number in numbers:
        file.write_text(valid[: number.start(1)] + "65536" + valid[number.end(1) :], encoding="utf-8")
        before = fuzz.peak()
        fuzz.attempt(reader, tmp_path)
        assert fuzz.peak() - before < 128 << 20, valid[valid.rfind("\n", 0, number.start()) : number.end()].strip()


@pytest.mark.meta
def test_a_wrong_exception_is_found(tmp_path):
    def read(folder):
        return {b"valid": 1}[(folder / "x").read_bytes()]

    with pytest.raises(KeyError):
        fuzz.work(broken("keys", read), tmp_path, seconds=10, inputs=100, seed=0)
    assert (tmp_path / fuzz.FAILURE).read_text().startswith("KeyError")
    assert (tmp_path / fuzz.CURRENT).read_bytes() != b"valid"


@pytest.mark.meta
def test_a_refusal_of_two_lines_is_found(tmp_path):
    def read(folder):
        if (folder / "x").read_bytes() != b"valid":
            raise ReportError("one\ntwo")

    with pytest.raises(AssertionError, match="more than one line"):
        fuzz.work(broken("lines", read), tmp_path, seconds=10, inputs=100, seed=0)


@pytest.mark.meta
def test_growth_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "MEMORY_LIMIT", 64 << 20)
    held = []

    def read(folder):
        if (folder / "x").read_bytes() != b"valid":
            held.append(np.ones(16 << 20))  # 128 MiB

    with pytest.raises(SystemExit):
        fuzz.work(broken("growth", read), tmp_path, seconds=10, inputs=100, seed=0)
    assert "grew by" in (tmp_path / fuzz.FAILURE).read_text()


def test_control_characters_are_found(tmp_path):
    def read(folder):
        if (folder / "x").read_bytes() != b"valid":
            error = Refused()
            error.args = ("\x1b[2J",)
            raise error

    with pytest.raises(AssertionError, match="does not print"):
        fuzz.work(broken("escapes", read), tmp_path, seconds=10, inputs=100, seed=0)


def test_long_work_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "CPU_LIMIT", 0.05)

    def read(folder):
        if (folder / "x").read_bytes() != b"valid":
            while time.process_time() < until:
                pass

    until = time.process_time() + 0.2
    with pytest.raises(SystemExit):
        fuzz.work(broken("work", read), tmp_path, seconds=10, inputs=100, seed=0)
    assert "took 0." in (tmp_path / fuzz.FAILURE).read_text()


@pytest.mark.meta
def test_a_death_and_a_hang_are_reported(monkeypatch, tmp_path):
    reader = BY_NAME["manifest"]
    for code, said in ((-11, "died of SIGSEGV"), (-14, "no answer within")):
        done = type("Done", (), dict(returncode=code, stderr=""))
        monkeypatch.setattr(fuzz.subprocess, "run", lambda *_, done=done, **__: done)
        assert said in fuzz.fuzz(reader, 1, 1, 0)[2]


@pytest.mark.meta
def test_damage_is_repeatable_and_changes_something():
    data = bytes(range(256)) * 4
    made = [fuzz.damage(data, random.Random(seed)) for seed in range(50)]
    assert made == [fuzz.damage(data, random.Random(seed)) for seed in range(50)]
    assert sum(one != data for one in made) > 40


def test_compressed_hours_of_silence_are_not_unpacked(tmp_path):
    path = tmp_path / "silence.flac"
    with soundfile.SoundFile(path, "w", 48000, channels=8, subtype="PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros((48000, 8), np.int16))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(Refused, match="cut it"):
        load_wav(path, 16000)


@pytest.mark.parametrize(("rate", "seconds"), [(16000, 60), (192000, 60), (44100, 60), (22050, 60)])
@pytest.mark.parametrize("target", [16000, 24000])
def test_the_longest_recording_takes_little_memory(rate, seconds, target):
    """A minute is more than any prompt; a few bytes of flac can hold it."""
    wave = np.zeros((1, rate * seconds), np.float32)
    before = fuzz.peak()
    assert resample(wave, rate, target).shape == (1, target * seconds)
    assert fuzz.peak() - before < fuzz.MEMORY_LIMIT


@pytest.mark.parametrize("reader", OF_A_FILE, ids=lambda reader: reader.name)
def test_a_pipe_or_a_folder_in_the_place_of_a_file(reader, tmp_path):
    """Reading must not wait for a writer."""
    reader.write(tmp_path)
    path = tmp_path / reader.file
    path.unlink()
    path.mkdir()
    assert fuzz.attempt(reader, tmp_path)[0] == "refused"
    path.rmdir()
    os.mkfifo(path)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for a pipe"))
    signal.alarm(20)
    try:
        assert fuzz.attempt(reader, tmp_path)[0] == "refused"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_text_of_a_pipe_with_a_writer_is_read_to_its_end(tmp_path):
    """A shell's `<(command)` is such a pipe; the writer may be slow."""
    os.mkfifo(tmp_path / "pipe")

    def write():
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            opened.set()
            for part in (b"caf", b"\xc3", b"\xa9\r\n", b"x"):
                time.sleep(0.05)
                pipe.write(part)

    opened, writer = threading.Event(), threading.Thread(target=write, daemon=True)
    keep = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)  # lets the writer begin
    writer.start()
    assert opened.wait(10)
    assert read_text(tmp_path / "pipe") == "café\nx"
    os.close(keep)
