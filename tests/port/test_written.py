"""Written text: spoken while it arrives, in paragraphs, with subtitles."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity_tests.speech_support import PROMPT_WORDS, SYSTEM
from port.app import arriving
from port.app.subtitles import srt
from port.cosyvoice3 import CosyVoice3
from port.frontend.written import paragraphs, words
from port.llm.sampling import SeededDraws
from port.request import Stream
from tests.support.cli_support import MODES, assert_one_line, heard, say

pytestmark = pytest.mark.part("frontend.text")

ROOT = Path(__file__).parents[2]
RATE = 24000
STORY = "Once upon a time — 从前，in a café\n\nnobody minded the rain."


@pytest.fixture(scope="module", autouse=True)
def short_speech(model):
    """Random weights hardly ever end by themselves, so a text token gets three speech tokens at most."""
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["llm"]["max_token_text_ratio"] = 3.0
    (model / "config.json").write_text(json.dumps(config), "utf-8")


def cut(text, size):
    return [text[i : i + size] for i in range(0, len(text), size)]


def test_words_do_not_depend_on_how_the_text_was_cut():
    parts = list(words([STORY]))
    assert all(list(words(cut(STORY, size))) == parts for size in (1, 2, 3, 7, 20))
    assert "".join(parts) == " ".join(STORY.split())
    assert parts[:7] == ["Once", " upon", " a", " time", " —", " 从前，", "in"]
    assert list(words(["\ufeff \n", "你好，", "今天", "。\n", " "])) == ["你好，", "今天。"]
    assert list(words(["", " \n"])) == []


def test_a_word_comes_as_soon_as_it_is_over():
    chunks = iter(["One", " two", "，"])
    found = words(chunks)
    assert next(found) == "One"
    assert next(chunks) == "，"


# ---- a pipe


def spoken_slowly(arguments, pieces):
    """Run `say` with raw samples on standard output; the last piece is written when samples came.

    Returns the samples, and how many bytes had come before the last piece was written.
    """
    command = [sys.executable, "-m", "port", *map(str, arguments), "-o", "-", "--format", "raw"]
    run = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out = b""
    try:
        for piece in pieces[:-1]:
            run.stdin.write(piece)
            run.stdin.flush()
        assert select.select([run.stdout], [], [], 100)[0], "no audio before the end of the text"
        before = os.read(run.stdout.fileno(), 1 << 16)
        more, err = run.communicate(pieces[-1], timeout=120)
        out = before + more
    finally:
        run.kill()
    assert run.returncode == 0, err
    return np.frombuffer(out, "<i2"), len(before)


@pytest.fixture
def voice(model, monkeypatch):
    """What the command loads."""
    monkeypatch.setattr("port.cosyvoice3.load_normalizer", lambda: None)
    return CosyVoice3.from_pretrained(model)


@pytest.mark.float32
def test_a_pipe_is_spoken_before_its_last_word_is_written(model, wavs, voice):
    """It sounds like the same text from an iterator in Python, wherever the pipe's reads fall, even inside é."""
    arguments = say(model, wavs, "--ref-text", PROMPT_WORDS, "--seed", 1, "--stream", "--reset-hop")
    data = STORY.encode()
    middle = data.index("é".encode()) + 1
    samples, before = spoken_slowly(arguments, [data[:5], data[5:middle], data[middle:-8], data[-8:]])
    assert before > 0
    text, ended = arriving.as_it_comes(voice, iter([STORY]))
    given = {"seed": 1, "stream": Stream(reset_hop=True), **ended}
    results = voice.inference_zero_shot(text, PROMPT_WORDS, wavs["prompt"], **given)
    expected = np.concatenate([np.array(result["tts_speech"])[0] for result in results])
    assert len(samples) == len(expected)
    assert np.abs(samples / 32768 - expected).max() < 1e-4


def test_when_a_pipe_is_read_to_its_end(run, model, wavs, monkeypatch, tmp_path, caplog):
    """Where speech is not streamed, pieces are asked for, or the words of the voice are unknown."""
    asked, original = [], arriving.as_it_comes
    monkeypatch.setattr(arriving, "is_pipe", lambda: True)
    monkeypatch.setattr(arriving, "as_it_comes", lambda *a: asked.append(a) or original(*a))
    known, text = ("--ref-text", PROMPT_WORDS), "Good morning."
    for more, comes in (
        ((*known, "--stream"), True),
        (known, False),
        ((*known, "--stream", "--pause", "1"), False),
        ((*known, "--stream", "--subtitles", tmp_path / "o.srt"), False),
        (("--stream",), False),
        (("--stream", "--instruct", "Slowly."), False),
    ):
        asked.clear()
        caplog.clear()
        code, *_ = run(*say(model, wavs, *more, "--seed", 3, "-o", tmp_path / "o.wav"), stdin=text)
        assert (code, bool(asked)) == (0, comes), more
        assert ("read to its end first" in caplog.text) == (known[0] not in more), more


def test_arriving_text_is_checked(run, model, wavs, monkeypatch, tmp_path):
    monkeypatch.setattr(arriving, "is_pipe", lambda: True)
    ask = say(model, wavs, "--ref-text", PROMPT_WORDS, "--stream", "-o", tmp_path / "o.wav")
    assert_one_line(run(*ask, stdin=b"caf\xe9 is open"), 1, "standard input: not readable as UTF-8 text")
    assert_one_line(run(*ask, stdin="café".encode()[:-1]), 1, "standard input: not readable as UTF-8 text")
    assert_one_line(run(*ask, stdin=" \n"), 1, "held nothing to speak")
    monkeypatch.setattr(arriving, "MAX_TEXT_BYTES", 9)
    assert_one_line(run(*ask, stdin="One two three."), 1, "standard input: larger than")
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_an_arriving_text(voice):
    """Not allowed until all of it came; then allowed, and forced at the length that a whole text may have."""
    config = voice.model.config.llm
    text, ended = arriving.as_it_comes(voice, iter(["Hello there."]))
    tokens = sum(len(voice.frontend.tokenizer.encode(word)) for word in text)
    last = int(config.max_token_text_ratio * tokens)
    scores = lambda end: np.where(np.arange(config.speech_token_size + 200) == config.eos, end, 0.0)  # noqa: E731

    draws = SeededDraws(0)
    sampled = lambda end, count: ended["sampling"](scores(end), [0] * count, draws, config.sampling)  # noqa: E731
    assert sampled(-np.inf, last + 1) != config.eos
    assert sampled(0.0, last) == config.eos
    assert sampled(0.0, 0) < config.speech_token_size


# ---- paragraphs


def test_paragraphs():
    assert paragraphs("One.\nTwo.\n \n\nThree.\n") == ["One.\nTwo.", "Three."]
    assert paragraphs(f"{SYSTEM}One.\n\nTwo.") == [f"{SYSTEM}One.", f"{SYSTEM}Two."]


def test_pauses_and_subtitles(run, model, wavs, tmp_path):
    """One entry for each piece, as long as its audio; a pause between two paragraphs, none inside one."""
    (tmp_path / "text.txt").write_text("One [breath] two.\n\nIt is 3.\n\n...\n", encoding="utf-8")
    arguments = say(model, wavs, "--ref-text", PROMPT_WORDS, "--text-file", tmp_path / "text.txt", "--seed", 2)
    out, subtitles = tmp_path / "o.wav", tmp_path / "o.srt"
    for more in ((), ("--stream", "--reset-hop")):
        assert run(*arguments, *more, "--pause", "0.5", "--subtitles", subtitles, "-o", out)[0] == 0
        one, two = subtitles.read_text("utf-8").split("\n\n")
        assert one.split("\n")[::2] == ["1", "One two."]
        assert two.strip().split("\n")[::2] == ["2", "It is three."]
        times = [[seconds(t) for t in entry.split("\n")[1].split(" --> ")] for entry in (one, two)]
        wave = heard(out)
        assert times[0][0] == 0
        # Each time is rounded to a millisecond.
        assert times[1][0] - times[0][1] == pytest.approx(0.5, abs=0.002)
        assert times[1][1] == pytest.approx(len(wave) / RATE, abs=0.002)
        assert not wave[round(times[0][1] * RATE) + 24 : round(times[1][0] * RATE) - 24].any()


def seconds(clock):
    hours, minutes, rest = clock.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def test_the_clock_of_subtitles():
    assert srt([("A", 3600 * RATE), ("", RATE), ("B\n\nC", 90)], RATE) == (
        "1\n00:00:00,000 --> 01:00:00,000\nA\n\n2\n01:00:01,000 --> 01:00:01,004\nB C\n"
    )


def test_refused_with_long_texts(run, model, wavs, tmp_path):
    ask = say(model, wavs, *MODES["cross-lingual"])
    assert_one_line(run(*ask, "--pause", "-1"), 2, "'-1' is no number of seconds in 0..60")
    assert_one_line(run(*ask, "--pause", "nan"), 2, "no number of seconds")
    assert_one_line(run(*ask, "--subtitles", tmp_path / "o.txt"), 2, "o.txt: give a name that ends in .srt")
    assert_one_line(run(*ask, "--subtitles", tmp_path / "none" / "o.srt"), 2, "o.srt: cannot be written there")
