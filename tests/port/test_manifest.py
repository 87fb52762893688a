"""Manifests: what is read, and what is refused as a whole or line by line."""

import json
from pathlib import Path

import pytest

from port.app.manifest import MODES, Utterance, read_manifest
from port.files.errors import Refused

pytestmark = pytest.mark.robust


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_manifest_as_other_programs_write_it(tmp_path, encoding, end):
    """Only LF and CRLF end a line; strings may contain the other line ends of Unicode."""
    texts = [f"a{mark}b" for mark in ("\u2028", "\u2029", "\x85", "\ufeff")]
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
    (tmp_path / "m.jsonl").write_bytes((end.join(lines) + end).encode(encoding))
    found = read_manifest(tmp_path / "m.jsonl")
    assert [line["text"] for line in found] == texts
    assert [line["id"] for line in found] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no utterance"),
        ("{", "line 1: no JSON"),
        ("[" * 100_000, "line 1: no JSON"),
        ("[]", "needs an id"),
        ('{"text": "x"}', "needs an id"),
        ('{"id": "../x"}', "needs an id"),
        ('{"id": ".x"}', "needs an id"),
        ('{"id": "a/b"}', "needs an id"),
        ('{"id": "a"}\n{"id": "a"}', "line 2: the id a stands twice"),
        ('{"id": "7"}\n{"id": 7}', "line 2: the id 7 stands twice"),
        ('{"id": "A"}\n{"id": "b"}\n{"id": "a"}', "line 3: the id a stands twice, first as A"),
        ('{"id": "\uac00"}\n{"id": "\u1100\u1161"}', "line 2: the id \u1100\u1161 stands twice, first as \uac00"),
        ('{"id": 1' + "0" * 5000 + "}", "needs an id"),
        ('{"id": -7}', "needs an id"),
        ('{"id": true}', "needs an id"),
        ('{"id": 7.0}', "needs an id"),
        ('{"id": null}', "needs an id"),
    ],
)
def test_manifests_that_are_refused(tmp_path, text, said):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(Refused, match=said):
        read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(Refused, match="not readable"):
        read_manifest(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (dict(), "needs exactly"),
        (dict(text="x"), "found text"),
        (dict(text="x", spk="me", prompt_wav="a.wav"), "needs exactly"),
        (dict(text="x", spk="me", mode="vc"), "mode vc needs exactly prompt_wav, source_wav"),
        (dict(text="x", spk="me", mode="sing"), "mode 'sing' is unknown"),
        (dict(text="x", spk="me", volume=3), "unknown field 'volume'"),
        (dict(text=["x"], spk="me"), "text: a list"),
        (dict(text="x", spk="me", speed=True), "speed: a bool"),
        (dict(text="x", spk="me", seed=-1), "seed -1"),
        (dict(text="x", spk="me", seed=1 << 64), "seed 18446744073709551616"),
        (dict(text="x", spk="me", speed="1.5"), "speed: a str"),
        (dict(text="x", spk="me", speed=10**400), "speed 1000000000000000000000000000000000000000 is no tempo"),
        (dict(text="x", spk="me", speed=float("inf")), "speed inf is no tempo"),
        (dict(text="x", spk="me", speed=-1), "speed -1 is no tempo"),
        (dict(text=None, spk="me"), "found voice"),
        (dict(text="x", spk="me", voice="you"), "unknown field 'spk'"),
    ],
)
def test_lines_that_are_refused(line, said):
    with pytest.raises(Refused, match=said):
        Utterance.from_line({"id": "x", **line}, Path())


def test_a_line_of_each_mode_is_understood():
    for mode, ways in MODES.items():
        for way in ways:
            line = dict.fromkeys(way, "x")
            assert Utterance.from_line({"id": "x", **line}, Path("/f")).voice == line.get("voice")
            made = Utterance.from_line({"id": "x", "mode": mode, **line}, Path("/f"))
            assert made.prompt_wav == ("/f/x" if "prompt_wav" in line else None)
    assert Utterance.from_line({"id": "x", "text": "x", "spk": "me"}, Path()).voice == "me"
