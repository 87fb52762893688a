"""Where speech goes: a player, standard output, files of every kind that libsndfile writes, a name that is free."""

import io
import json
import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from port.app import cli
from port.app.player import BUFFER_SECONDS, Player
from port.app.sound import formats
from port.cosyvoice3 import CosyVoice3
from port.files.errors import Refused
from tests.support.cli_support import MODES, assert_one_line, heard, say
from tests.support.null_device import NullDevice

pytestmark = pytest.mark.part("app")

RATE = 24000


@pytest.fixture
def device(monkeypatch):
    """Stands for sounddevice."""
    made = NullDevice()
    monkeypatch.setitem(sys.modules, "sounddevice", made)
    return made


@pytest.fixture
def spoken(monkeypatch):
    """What every request says, in five chunks of a second."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE).astype(np.float32)
    chunks = lambda *_, **__: iter([{"tts_speech": part[None]} for part in np.split(wave, 5)])  # noqa: E731
    monkeypatch.setattr(CosyVoice3, "inference_cross_lingual", chunks)
    return wave


# ---- a player


def test_what_is_made_is_played_and_written(run, model, wavs, tmp_path, device):
    for name, more in (("a.wav", ["--play"]), ("b.wav", ["--play", "--stream", "--strict-min-length"])):
        device.taken.clear()
        code, out, err = run(*say(model, wavs, *MODES["zero-shot"], *more, "--seed", 1, "-o", tmp_path / name))
        assert (code, err) == (0, "")
        assert "the player ran dry" in out
        wave = heard(tmp_path / name)
        played = np.concatenate(device.taken)
        assert np.abs(played[played != 0] - wave).max() < 1e-4  # 16 bits; zeros are gaps and the end
        assert device.opened == {"samplerate": RATE, "channels": 1, "dtype": "float32"}
    assert device.closed


def test_speech_that_is_only_played(run, model, wavs, tmp_path, device, spoken, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(*say(model, wavs, *MODES["cross-lingual"], "--play", "--seed", 7, "--json"))
    found = json.loads(out)
    assert (code, found["file"], found["seed"], found["ran_dry"]) == (0, None, 7, 0)
    assert np.array_equal(np.concatenate(device.taken)[: len(spoken)], spoken)
    assert list(tmp_path.iterdir()) == []


class Still(NullDevice):
    """A device that asks for sound only when the test calls `ask`."""

    def OutputStream(self, callback, finished_callback, **given):
        self.ask = lambda: callback(out := np.full((960, 1), np.nan, np.float32), 960) or out[:, 0]
        return SimpleNamespace(start=lambda: None, close=lambda: None)


def test_the_player_counts_how_often_it_ran_dry():
    device = Still()
    player = Player(RATE, device)
    for _ in range(2):
        player.write(np.full(1200, 0.5, np.float32))
        assert (device.ask() == 0.5).all()
        assert np.count_nonzero(device.ask()) == 240  # the rest, and silence
        assert not device.ask().any()  # the same gap
    assert player.ran_dry == 2
    player.end()
    with pytest.raises(device.CallbackStop):
        device.ask()
    assert player.ran_dry == 2


def test_a_faster_producer_waits():
    device = NullDevice(pace=20)
    with Player(RATE, device) as player:
        player.write(np.zeros(round(RATE * (BUFFER_SECONDS + 4)), np.float32))
        waiting = player._blocks.qsize()
    assert waiting <= player._blocks.maxsize
    assert player.ran_dry == 0
    assert sum(map(len, device.taken)) >= RATE * (BUFFER_SECONDS + 4)


def test_a_device_that_stops_or_does_not_start():
    with pytest.raises(Refused, match="cannot play 24000 Hz"), Player(RATE, NullDevice(fails="Invalid rate")) as player:
        player.write(np.zeros(9, np.float32))
    device = NullDevice()
    with pytest.raises(Refused, match="has stopped"), Player(RATE, device) as player:
        player.write(np.zeros(9, np.float32))
        player._stream.close()
        player.write(np.zeros(round(RATE * BUFFER_SECONDS * 2), np.float32))


class Missing:
    """No PortAudio, as on Linux without its package."""

    def find_spec(self, name, path=None, target=None):
        if name == "sounddevice":
            raise OSError("PortAudio library not found")


def test_without_what_playing_needs(run, model, wavs, monkeypatch):
    ask = say(model, wavs, *MODES["cross-lingual"], "--play")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert_one_line(run(*ask), 2, "pip install 'cosyvoice3-mlx[play]'")
    monkeypatch.setitem(sys.modules, "sounddevice", NullDevice(fails="none"))
    assert_one_line(run(*ask), 2, "no device to play on (Error querying device -1)")
    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert_one_line(run(*ask), 2, "needs the library PortAudio")


def test_ctrl_c_stops_the_sound_at_once_and_keeps_what_was_said(
    run, model, wavs, tmp_path, device, monkeypatch, request
):
    device.pace = 1
    # It is ignored where a shell runs this in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def breaks(self, *arguments, **options):
        yield {"tts_speech": np.full((1, 8 * RATE), 0.25, np.float32)}
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CosyVoice3, "inference_cross_lingual", breaks)
    code, out, err = run(*say(model, wavs, *MODES["cross-lingual"], "--play", "-o", tmp_path / "o.wav"))
    assert (code, out) == (130, "")
    assert err == f"error: interrupted; the first 8.0 s are kept in {tmp_path}/o.partial.wav\n"
    assert len(heard(tmp_path / "o.partial.wav")) == 8 * RATE
    assert device.closed
    assert sum(map(len, device.taken)) < 8 * RATE


# ---- standard output


@pytest.mark.parametrize("kind", ["wav", "raw"])
def test_sound_on_standard_output(model, wavs, capfdbinary, monkeypatch, spoken, tmp_path, kind):
    """To the bit the samples of a file."""
    monkeypatch.setattr("port.cosyvoice3.load_normalizer", lambda: None)
    ask = [str(a) for a in say(model, wavs, *MODES["cross-lingual"], "-o")]
    assert cli.main([*ask, "-", "--format", kind]) == 0
    out, err = capfdbinary.readouterr()
    assert err.startswith(b"standard output: 5.00 s of audio, ")
    if kind == "wav":
        assert soundfile.info(io.BytesIO(out)).samplerate == RATE
        out = out[44:]
    assert cli.main([*ask, str(tmp_path / "o.wav")]) == 0
    wave = soundfile.read(tmp_path / "o.wav", dtype="int16")[0]
    assert np.array_equal(np.frombuffer(out, "<i2"), wave)
    assert np.abs(wave / 32768 - spoken).max() < 2 / 32767


def test_refused_on_standard_output(run, model, wavs, tmp_path, monkeypatch):
    ask = say(model, wavs, *MODES["cross-lingual"])
    assert_one_line(run(*ask, "-o", "-", "--json"), 2, "leave out one")
    assert_one_line(run(*ask, "-o", tmp_path / "o.wav", "--format", "raw"), 2, "--format is that of standard output")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert_one_line(run(*ask, "-o", "-"), 2, "is a terminal")


def test_a_reader_that_goes_away(model, wavs, capfd, monkeypatch, spoken):
    ours, theirs = os.pipe()
    os.close(ours)
    monkeypatch.setattr("port.cosyvoice3.load_normalizer", lambda: None)
    with os.fdopen(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        code = cli.main([str(a) for a in say(model, wavs, *MODES["cross-lingual"], "-o", "-")])
    assert (code, capfd.readouterr().err) == (1, "error: standard output was closed by its reader\n")


# ---- files


@pytest.mark.parametrize("kind", [name for name in formats() if name != "pcm"])
def test_every_kind_of_file(run, model, wavs, tmp_path, spoken, kind):
    path = tmp_path / f"o.{kind}"
    assert run(*say(model, wavs, *MODES["cross-lingual"], "-o", path))[0] == 0
    wave, rate = soundfile.read(path)
    assert rate == RATE
    assert abs(len(wave) - len(spoken)) <= 0.1 * RATE  # mp3 and opus pad their last frame
    subtypes = {"mp3": "MPEG_LAYER_III", "ogg": "VORBIS", "opus": "OPUS"}
    assert soundfile.info(path).subtype == subtypes.get(kind, "PCM_16")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_kind_that_cannot_be_written_here(run, model, wavs, tmp_path, monkeypatch):
    monkeypatch.setattr(soundfile, "check_format", lambda format, subtype=None: format in ("WAV", "FLAC"))
    for name in ("o.mp3", "o.m4a", "o", "o.raw"):
        result = run(*say(model, wavs, *MODES["cross-lingual"], "-o", tmp_path / name))
        assert_one_line(
            result, 2, f"{name}: this libsndfile cannot write such a file; give a name that ends in one of .wav, .flac"
        )


def test_without_a_name_a_free_one_is_taken(run, model, wavs, tmp_path, monkeypatch, spoken):
    monkeypatch.chdir(tmp_path)
    for name in ("speech.wav", "speech-2.wav", "speech-3.wav"):
        assert run(*say(model, wavs, *MODES["cross-lingual"]))[1].startswith(f"{name}: 5.00 s")
        assert len(heard(tmp_path / name)) == len(spoken)
    monkeypatch.setattr(CosyVoice3, "inference_cross_lingual", lambda *_, **__: iter(()))
    assert_one_line(run(*say(model, wavs, *MODES["cross-lingual"])), 1, "nothing to speak")
    assert len(list(tmp_path.iterdir())) == 3
