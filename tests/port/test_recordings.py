"""Recordings as people give them: every form gives the same samples, and a refusal names the recording and why."""

import io
import os
import sys

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import torch

from parity_tests.speech_support import write_voice
from port.files import recording
from port.files.errors import Refused
from port.files.recording import Heard, check_recording, read
from port.frontend import audio as port
from reference.frontend import audio as reference

pytestmark = pytest.mark.robust

RATE = 16000


@pytest.fixture
def path(tmp_path):
    return write_voice(tmp_path / "me.wav", 1.0, RATE)


def forms(path):
    wave, rate = soundfile.read(path, dtype="float32")
    return {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "open file": path.open("rb"),
        "memory": io.BytesIO(path.read_bytes()),
        "numpy": (wave, rate),
        "rate first": (rate, wave),
        "float64 rate": (wave.astype(np.float64), float(rate)),
        "mlx": (mx.array(wave), rate),
        "torch": (torch.from_numpy(wave), rate),
        "list": (wave.tolist(), rate),
        "channels first": (wave[None], rate),
        "channels last": (wave[:, None], np.int64(rate)),
        "stereo": (np.stack([wave, wave]), rate),
    }


@pytest.mark.parametrize("side", [port, reference], ids=["port", "reference"])
def test_all_forms_are_the_same_recording(side, path):
    expected = np.array(side.load_wav(path, 24000))
    for name, form in forms(path).items():
        assert np.array_equal(np.array(side.load_wav(form, 24000)), expected), name


def test_integers_are_scaled_by_their_range():
    wave = np.linspace(-1, 1, 4001)[:-1]
    for dtype, scale, offset in ((np.int16, 1 << 15, 0), (np.int32, 1 << 31, 0), (np.uint8, 128, 128)):
        found, _ = read(((wave * scale + offset).astype(dtype), RATE))
        assert found.dtype == np.float32
        assert np.abs(found[:, 0] - wave).max() <= 1 / scale + 1e-7


def test_bfloat16_is_taken_as_it_is(path):
    """numpy has no such type."""
    wave, _ = soundfile.read(path, dtype="float32")
    for rounded in (mx.array(wave).astype(mx.bfloat16), torch.from_numpy(wave).bfloat16()):
        found, _ = read((rounded, RATE))
        assert found.dtype == np.float32
        assert found[:, 0].tolist() == rounded.tolist()


def without_length(path):
    """Put 0 samples into a flac's header, as a writer leaves it that could not go back."""
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    return path


def test_a_flac_without_a_length_is_read(path, tmp_path):
    wave, _ = soundfile.read(path, dtype="int16")
    soundfile.write(tmp_path / "a.flac", wave, RATE)
    found, rate = read(without_length(tmp_path / "a.flac"))
    assert rate == RATE
    assert np.array_equal(found[:, 0] * 32768, wave)
    soundfile.write(tmp_path / "long.flac", np.zeros(61 * RATE, np.int16), RATE)
    with pytest.raises(Refused, match=r"long\.flac: 60\.0 s is longer than 30 s; cut it"):
        read(without_length(tmp_path / "long.flac"))


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.wav", dict(subtype="GSM610")), ("a.aiff", {}), ("a.mp3", {}), ("a.ogg", dict(subtype="OPUS"))],
)
def test_what_libsndfile_reads_is_read(tmp_path, name, options):
    wave = np.sin(np.arange(RATE) / 9).astype(np.float32) * 0.5
    if name[2:].upper() not in soundfile.available_formats():
        pytest.skip("this libsndfile is too old")
    soundfile.write(tmp_path / name, wave, RATE, **options)
    found, rate = read(tmp_path / name)
    assert rate == RATE and len(found) >= RATE


def refused(tmp_path):
    """Recordings, and words that the refusal of each must contain."""
    write_voice(tmp_path / "short.wav", 0.05, RATE)
    write_voice(tmp_path / "tiny.wav", 0.01, RATE)
    write_voice(tmp_path / "long.wav", 45, RATE)
    write_voice(tmp_path / "poor.wav", 1, 8000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE, np.float32), RATE)
    soundfile.write(tmp_path / "offset.wav", np.full(RATE, 0.1, np.float32), RATE)
    soundfile.write(tmp_path / "dither.wav", np.random.default_rng(0).integers(-1, 2, RATE).astype(np.int16), RATE)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "song.m4a").write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(2000))
    (tmp_path / "text.wav").write_text("no sound")
    os.mkfifo(tmp_path / "pipe.wav")
    wave = np.sin(np.arange(RATE)).astype(np.float32)
    return [
        (tmp_path / "none.wav", "none.wav: no such file"),
        (str(tmp_path / "none.wav"), "none.wav: no such file"),
        (tmp_path / "none.wav" / "x", "none.wav/x: no such file"),
        (tmp_path, "(a folder)"),
        (tmp_path / "pipe.wav", "pipe.wav: cannot be read as audio (a pipe or a device)"),
        ("/dev/zero", "/dev/zero: cannot be read as audio (a pipe or a device)"),
        (tmp_path / "empty.wav", "empty.wav: cannot be read as audio (the file is empty)"),
        (tmp_path / "text.wav", "give wav, flac, ogg, "),
        (tmp_path / "song.m4a", f"{tmp_path / 'song.m4a'} new.wav"),
        (tmp_path / "short.wav", "short.wav: 0.050 s is too short"),
        (tmp_path / "tiny.wav", "tiny.wav: 0.010 s is too short"),
        (tmp_path / "long.wav", "long.wav: 45.0 s is longer than 30 s; cut it"),
        (tmp_path / "poor.wav", "poor.wav: sample rate 8000 Hz is below"),
        (tmp_path / "silent.wav", "silent.wav: is silent"),
        (tmp_path / "offset.wav", "offset.wav: is silent"),
        (tmp_path / "dither.wav", "dither.wav: is silent"),
        (b"", "audio of 0 bytes: cannot be read"),
        (bytes(3_000_000), "audio of 3000000 bytes: cannot be read"),
        ("x" * 3_000_000, "cannot be read as audio"),
        ("a\0b", "cannot be read as audio"),
        ("a\x1b[31mb", "'a\\x1b[31mb': no such file"),
        (io.StringIO("x"), "StringIO: is not open in binary mode"),
        ((wave, 8000), "array of samples: sample rate 8000 Hz"),
        ((wave, 800_000_000), "array of samples: sample rate 800000000 Hz is above"),
        ((wave, 0), "must be a number of Hz"),
        ((wave, None), "must be a number of Hz"),
        ((wave,), "a tuple of 1 is not a recording"),
        ((wave.reshape(2, 2, -1), RATE), "give floats or integers"),
        ((wave * 1j, RATE), "give floats or integers"),
        ((np.array(["a"]), RATE), "give floats or integers"),
        ((wave * np.nan, RATE), "array of samples: holds NaN"),
        ((wave[:0], RATE), "array of samples: holds no samples"),
        ((np.tile(wave, 31), RATE), "array of samples: 31.0 s is longer"),
        (wave, "ndarray: is not a recording; give a path, bytes, an open file or (samples, sample rate)"),
        (None, "NoneType: is not a recording"),
        (["me.wav"], "list: is not a recording"),
    ]


def test_what_is_refused_is_named_in_one_short_line(tmp_path):
    for source, said in refused(tmp_path):
        with pytest.raises(Refused) as caught:
            check_recording(source)
        message = str(caught.value)
        assert said in message
        assert message.isprintable() and len(message) < 1500


def test_a_recording_to_convert_may_be_silent(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE, np.float32), RATE)
    check_recording(tmp_path / "silent.wav", voice=False)
    with pytest.raises(Refused, match="is silent"):
        check_recording(tmp_path / "silent.wav")


def test_the_suggested_converter_is_the_machine_s(tmp_path, monkeypatch):
    (tmp_path / "a b.m4a").write_text("x")
    for platform, command in (("linux", "ffmpeg -i '"), ("darwin", "afconvert -f WAVE -d LEI16 '")):
        monkeypatch.setattr(sys, "platform", platform)
        with pytest.raises(Refused) as caught:
            read(tmp_path / "a b.m4a")
        assert f"{command}{tmp_path / 'a b.m4a'}' new.wav" in str(caught.value)


def test_the_formats_are_those_of_this_libsndfile(tmp_path, monkeypatch):
    (tmp_path / "x.mp3").write_text("x")
    monkeypatch.setattr(recording.soundfile, "available_formats", lambda: {"WAV": "", "FLAC": ""})
    with pytest.raises(Refused, match="give wav, flac, or convert"):
        read(tmp_path / "x.mp3")


def test_an_open_file_is_read_once_for_all_features(voice, path):
    expected = voice.frontend.frontend_zero_shot("", path)
    found = voice.frontend.frontend_zero_shot("", path.open("rb"))
    found = found.given()
    assert all(np.array_equal(np.array(found[key]), np.array(value)) for key, value in expected.given().items())


def test_a_recording_keeps_what_each_reader_makes_of_it(path):
    """Two models' front ends are two readers, even if equal."""

    class FrontEnd:
        def __eq__(self, other):
            return True

        __hash__ = None

        def extract(self, heard):
            return heard.name, self

    heard, one, other = Heard(path), FrontEnd(), FrontEnd()
    assert heard.once(one.extract) is heard.once(one.extract)
    assert heard.once(other.extract)[1] is other
