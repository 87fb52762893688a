"""Fixtures that the tests of commands, conversions and the hub share."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from convert import run
from parity_tests.speech_support import write_voice
from port.app import cli
from port.files.voices import VOICES
from tests.support.fake_hub import CHUNK, fake_hub


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    """Recordings by name, good and bad."""
    folder = tmp_path_factory.mktemp("wavs")
    (folder / "text.wav").write_text("no sound")
    silent = folder / "silent.wav"
    soundfile.write(silent, np.zeros(24000, np.float32), 24000)
    return {
        "prompt": write_voice(folder / "prompt.wav", 1.1, 22050),
        "source": write_voice(folder / "source.flac", 2.6, 16000, 190),
        "long": write_voice(folder / "long.wav", 30.1, 16000),
        "poor": write_voice(folder / "poor.wav", 1, 8000),
        "text": folder / "text.wav",
        "none": folder / "none.wav",
        "short": write_voice(folder / "short.wav", 0.05),
        "silent": silent,
    }


@pytest.fixture(name="run")
def run_command(model, capsys, monkeypatch):
    """Run a command in this process; returns exit code, standard output and standard error.

    `stdin` is a text, the bytes of one, or None for a closed standard input.
    """
    monkeypatch.setattr("port.cosyvoice3.load_normalizer", lambda: None)

    def text_stream(content):
        if content is None:
            return None
        content = content.encode() if isinstance(content, str) else content
        return io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape")  # as in the locale C.UTF-8

    def command(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", text_stream(stdin))
        try:
            code = cli.main([str(a) for a in arguments if a is not None])
        except SystemExit as exit_:  # argparse
            code = int(exit_.code)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def no_voices_left(model):
    """Delete the voices that a test saved."""
    yield
    shutil.rmtree(model / VOICES, ignore_errors=True)


@pytest.fixture
def source(official, tmp_path):
    """A copy of the official folder, to be damaged."""
    return Path(shutil.copytree(official, tmp_path / "source"))


@pytest.fixture
def conversion(tmp_path, monkeypatch, capsys):
    """Convert a folder; returns exit code and the line on stderr. A failure must print one line and leave nothing."""

    def call(folder, out=None, expect_left=(), flags=()):
        monkeypatch.setattr(run, "parity_check", None)
        results = tmp_path / "results"
        results.mkdir(exist_ok=True)
        code = run.main(["--hf-path", str(folder), "--mlx-path", str(out or results / "out"), *flags])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line and "%|" not in line and "it/s" not in line]
        if code:
            assert len(lines) == 1, captured.err
            assert lines[0].startswith("convert: ")
            assert sorted(p.name for p in results.iterdir()) == sorted(expect_left)
        return code, lines[0] if lines else ""

    return call


@pytest.fixture
def refuses(conversion):
    """A conversion that must fail with one line that contains the words `said`; returns the line."""

    def call(folder, *said, code=1, **how):
        found, line = conversion(folder, **how)
        assert found == code
        assert [words for words in said if words not in line] == [], line
        return line

    return call


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake hub instead of huggingface.co, an empty cache, and a token that must never be printed."""
    with fake_hub() as served:
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, "huggingface_hub.file_download"):  # some versions keep a copy
            monkeypatch.setattr(f"{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(f"{constants}.DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)  # a protocol that the fake hub does not speak
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
        yield served
