"""`python -m port` refuses bad input in one line, before it loads the model wherever possible."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

from parity_tests.speech_support import SYSTEM, WORDS
from port.cosyvoice3 import CosyVoice3
from port.files.voices import VOICES
from tests.support.cli_support import MODES, assert_one_line, heard, say

pytestmark = pytest.mark.robust

ROOT = Path(__file__).parents[2]

RAW = ("--raw-prompt",)
REFUSED = {
    "prompt longer than 30 s": (1, "longer than 30 s", {"prompt": "long"}, ()),
    "rate below 16 kHz": (1, "8000 Hz is below 16000 Hz", {"prompt": "poor"}, ()),
    "unreadable audio": (1, "cannot be read as audio", {"prompt": "text"}, ()),
    "no recording": (1, "none.wav: no such file", {"prompt": "none"}, ()),
    "silence": (1, "silent.wav: is silent", {"prompt": "silent"}, ()),
    "too short a prompt": (1, "short.wav: 0.050 s is too short", {"prompt": "short"}, ()),
    "no end of prompt in an instruction": (1, "no <|endofprompt|>", {}, ("--text", WORDS, *RAW, "--instruct", "Slow.")),
    "no end of prompt in a prompt text": (1, "no <|endofprompt|>", {}, ("--text", WORDS, *RAW, "--ref-text", WORDS)),
    "an emoji": (1, "only punctuation, symbols", {}, ("--text", "\u2764\ufe0f", "--prompt-text", SYSTEM)),
    "an instruction alone": (1, "nothing to speak", {}, ("--text", SYSTEM)),
    "invisible": (1, "text is empty", {}, ("--text", "\ufeff\u200b")),
    "no tempo at all": (2, "--speed 0", {}, ("--text", WORDS, "--speed", "0")),
    "no end of prompt": (1, "no <|endofprompt|>", {}, ("--text", WORDS, *RAW)),
    "empty text": (1, "text is empty", {}, ("--text", " \n")),
    "empty standard input": (1, "text is empty", {}, ()),
    "missing text file": (1, "nowhere.txt: not readable", {}, ("--text-file", "nowhere.txt")),
    "only marks": (1, "only punctuation", {}, ("--text", "...", "--prompt-text", SYSTEM)),
    "stream with speed": (2, "--speed", {}, ("--text", WORDS, "--stream", "--speed", "1.5")),
    "no tempo": (2, "--speed nan", {}, ("--text", WORDS, "--speed", "nan")),
    "absurd tempo": (1, "speed 1e+06", {}, ("--text", SYSTEM + WORDS, "--speed", "1e6")),
    "no seed": (2, "'-1' is no whole number", {}, ("--text", WORDS, "--seed=-1")),
    "endless seed": (2, "9999 is no whole number in 0..2^64-1", {}, ("--text", WORDS, "--seed", "9" * 5000)),
    "no size": (2, "'x' is no size", {}, ("--text", WORDS, "--max-cache-bytes", "x")),
    "endless size": (2, "is no size", {}, ("--text", WORDS, "--max-cache-bytes", "9" * 400)),
    "two voices": (2, "leave out --ref-audio", {}, ("--text", WORDS, "--spk", "x")),
    "two ways": (2, "not allowed with", {}, ("--prompt-text", "a", "--instruct", "b")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(run, model, wavs, tmp_path, case):
    """All but one before the model is loaded: its folder does not exist, and that is not the error."""
    code, words, prompt, arguments = REFUSED[case]
    if not arguments and case != "empty standard input":
        arguments = ("--text", SYSTEM + WORDS)
    folder = model if case == "absurd tempo" else tmp_path / "nowhere"
    result = run(*say(folder, wavs, *arguments, "-o", tmp_path / "o.wav", **prompt))
    assert_one_line(result, code, words)
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_no_utf_8(run, model, wavs, tmp_path):
    """Whatever its source; its bytes are never spoken as other characters."""
    (tmp_path / "text.txt").write_bytes(SYSTEM.encode() + b"caf\xe9")
    command, said = say(model, wavs, "-o", tmp_path / "o.wav"), "not readable as UTF-8 text"
    assert_one_line(run(*command, "--text-file", tmp_path / "text.txt"), 1, f"text.txt: {said}")
    assert_one_line(run(*command, stdin=SYSTEM.encode() + b"caf\xe9"), 1, f"standard input: {said}")
    assert_one_line(run(*command, "--text", SYSTEM + "caf\udce9"), 2, f"--text: {said}")
    assert_one_line(run(*command, stdin=None), 1, "standard input is closed; give --text or --text-file")
    assert_one_line(run(*command, "--text-file", "/dev/zero"), 1, "/dev/zero: larger than 64 MiB")


def test_recordings_are_checked_before_the_model_is_loaded(run, wavs, tmp_path):
    out = ("-o", tmp_path / "o.wav")
    for source, prompt, said in (
        ("long", "prompt", "long.wav: 30.1 s is longer than 30 s"),
        ("none", "prompt", "none.wav: no such file"),
        ("source", "silent", "silent.wav: is silent"),
    ):
        recordings = ("--source-wav", wavs[source], "--prompt-wav", wavs[prompt])
        assert_one_line(run("vc", "--model", tmp_path / "nowhere", *recordings, *out), 1, said)
    add = ("voice", "add", "x", "--model", tmp_path / "nowhere", "--prompt-wav")
    assert_one_line(run(*add, wavs["short"], "--prompt-text", SYSTEM), 1, "short.wav: 0.050 s is too short")
    for name in ("a\nb", "../x", "NUL"):
        unsafe = (*add[:2], name, *add[3:], wavs["prompt"], "--prompt-text", SYSTEM)
        assert_one_line(run(*unsafe), 1, "voice name")


def test_output_paths_that_are_refused(run, model, wavs, tmp_path):
    for out in (tmp_path / "none" / "o.wav", tmp_path, tmp_path / "o.m4a", tmp_path / "o"):
        assert_one_line(run(*say(model, wavs, *MODES["cross-lingual"], "-o", out)), 2, str(out))
    assert_one_line(run("say", "--model", model, "--text", WORDS, "-o", tmp_path / "o.wav"), 2, "needs a voice")


def test_refused_folders(run, parity, wavs, tmp_path):
    for folder, words in ((parity.models.source, "config.json: not found"), (tmp_path / "none", "no such folder")):
        result = run(*say(folder, wavs, *MODES["cross-lingual"], "-o", tmp_path / "o.wav"))
        assert_one_line(result, 1, words)
    assert_one_line(run("voice", "list", "--model", tmp_path), 1, "config.json: not found")


def test_damaged_voice(run, model, tmp_path, no_voices_left):
    """The error names it, and it can be removed."""
    (model / VOICES).mkdir()
    (model / VOICES / "me.safetensors").write_bytes(b"nothing")
    here = ("--model", model)
    said = "me.safetensors: not readable as a voice"
    for command in (
        ["show", "me"],
        ["export", "me", "-o", tmp_path / "x"],
        ["import", model / VOICES / "me.safetensors"],
    ):
        assert_one_line(run("voice", *command, *here), 1, said)
    assert_one_line(run("say", *here, "--spk", "me", "--text", WORDS, "-o", tmp_path / "o.wav"), 1, said)
    assert run("voice", "remove", "me", *here)[0] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("[metal] out of\nmemory")])
def test_a_run_that_breaks_off_leaves_nothing(run, model, wavs, tmp_path, monkeypatch, error):
    def breaks(self, *arguments, **options):
        yield {"tts_speech": np.zeros((1, 960), np.float32)}
        raise error

    monkeypatch.setattr(CosyVoice3, "inference_cross_lingual", breaks)
    out = tmp_path / "o.wav"
    out.write_text("old")
    code, _, err = run(*say(model, wavs, *MODES["cross-lingual"], "-o", out))
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) > len("error: \n")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_breaks_off_late_keeps_what_is_there(run, model, wavs, tmp_path, monkeypatch, error):
    def breaks(self, *arguments, **options):
        for _ in range(39):
            yield {"tts_speech": np.full((1, 2400), 0.25, np.float32)}
        raise error(*["no memory"] * (error is RuntimeError))

    monkeypatch.setattr(CosyVoice3, "inference_cross_lingual", breaks)
    monkeypatch.setattr(CosyVoice3, "inference_vc", breaks)
    commands = {
        "say": say(model, wavs, *MODES["cross-lingual"]),
        "vc": ("vc", "--model", model, "--source-wav", wavs["source"], "--prompt-wav", wavs["prompt"]),
    }
    for name, command in commands.items():
        code, out, err = run(*command, "-o", tmp_path / f"{name}.wav")
        ended = error is KeyboardInterrupt
        assert (code, out) == (130 if ended else 1, "")
        said = "interrupted" if ended else "no memory"
        assert err == f"error: {said}; the first 3.9 s are kept in {tmp_path / name}.partial.wav\n"
        assert len(heard(tmp_path / f"{name}.partial.wav")) == 39 * 2400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["say.partial.wav", "vc.partial.wav"]


@pytest.fixture
def full_disk():
    """No file may grow past 80 KiB, less than two seconds of a wav."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_full_disk_is_reported(run, model, wavs, tmp_path, monkeypatch, full_disk, kind):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 2400)).astype(np.float32)
    pieces = lambda *_, **__: iter([{"tts_speech": noise}] * 100)  # noqa: E731
    monkeypatch.setattr(CosyVoice3, "inference_cross_lingual", pieces)
    result = run(*say(model, wavs, *MODES["cross-lingual"], "-o", tmp_path / f"o.{kind}"))
    assert_one_line(result, 1, f"error: {tmp_path}/o.{kind}: cannot be written (is the disk full?); the first ")
    seconds = float(re.search(rf"first ([\d.]+) s are kept in {tmp_path}/o.partial.{kind}$", result[2].strip())[1])
    assert 1.5 < seconds < 3
    assert [path.name for path in tmp_path.iterdir()] == [f"o.partial.{kind}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored"])
def test_a_run_that_is_killed_keeps_what_is_there(run, model, wavs, tmp_path, monkeypatch, number, ignored):
    """`kill` or a closed terminal; `nohup` makes the process ignore that."""

    def breaks(self, *arguments, **options):
        for i in range(40):
            if i == 39:
                signal.raise_signal(number)
            yield {"tts_speech": np.full((1, 2400), 0.25, np.float32)}

    monkeypatch.setattr(CosyVoice3, "inference_cross_lingual", breaks)
    mine = signal.SIG_IGN if ignored else (lambda *_: None)
    before = signal.signal(number, mine)
    try:
        code, _, err = run(*say(model, wavs, *MODES["cross-lingual"], "-o", tmp_path / "o.wav"))
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)
    said = f"error: interrupted; the first 3.9 s are kept in {tmp_path}/o.partial.wav\n"
    assert (code, err) == ((0, "") if ignored else (128 + number, said))
    assert [path.name for path in tmp_path.iterdir()] == ["o.wav" if ignored else "o.partial.wav"]


@pytest.mark.parametrize("module", ["port.app.arguments", "port.app.cli"])
def test_an_interrupt_while_modules_load_is_one_line(module):
    script = f"""
import runpy, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["voice", "list", "--model", "x"]
runpy.run_module("port", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def on_a_terminal(*arguments):
    """Lines that a command leaves on a terminal, to which both of its streams go; it must succeed."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    done = subprocess.run(
        [sys.executable, "-m", "port", *map(str, arguments)], cwd=ROOT, stdout=theirs, stderr=theirs, timeout=120
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # raised on Linux when the terminal is closed
        while part := os.read(ours, 1 << 16):
            said += part
    os.close(ours)
    assert done.returncode == 0, said
    lines = said.decode().replace("\r\n", "\n").strip("\n").split("\n")
    return [line.rpartition("\r")[2] for line in lines]


@pytest.mark.parametrize("command", ["say", "vc"])
def test_on_a_terminal_the_summary_has_a_line_of_its_own(model, wavs, tmp_path, command):
    arguments = {
        "say": say(model, wavs, *MODES["cross-lingual"], "--seed", 2),
        "vc": ("vc", "--model", model, "--source-wav", wavs["source"], "--prompt-wav", wavs["prompt"]),
    }[command]
    *_, bar, summary = on_a_terminal(*arguments, "-o", tmp_path / "o.wav")
    assert bar.startswith({"say": "speech tokens", "vc": "audio"}[command])
    assert summary.startswith(f"{tmp_path / 'o.wav'}: ")


@pytest.mark.parametrize("command", ["say", "batch"])
def test_on_a_terminal_a_warning_has_a_line_of_its_own(model, wavs, tmp_path, command):
    request = {"text": "Hello.", "prompt_wav": str(wavs["prompt"]), "prompt_text": SYSTEM + WORDS}
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", **request}))
    words = ("--text", "Hello.", "--prompt-text", SYSTEM + WORDS, "--seed", 2)
    arguments = {
        "say": say(model, wavs, *words, "-o", tmp_path / "o.wav"),
        "batch": ("batch", tmp_path / "m.jsonl", "--model", model, "--out", tmp_path / "out"),
    }[command]
    lines = on_a_terminal(*arguments)
    assert "the text 'Hello.' is much shorter than the prompt text; this may sound poor" in lines
    assert lines[-2].startswith(("speech tokens", "utterances: 100%"))


HEAVY = {"inflect", "torch", "mlx", "numpy", "soundfile", "tokenizers", "tqdm", "wetext", "huggingface_hub"}


@pytest.mark.parametrize("arguments", [["--help"], ["say", "--help"], ["sya"], ["say", "--modle", "x"]])
def test_help_and_mistakes_load_nothing(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "port", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 2)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in loaded
    assert not loaded & HEAVY


def test_no_command_loads_what_it_does_not_need(model, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "port", "voice", "list", "--model", str(model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert not {"inflect", "torch", "wetext"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
