"""Text from files is escaped before it reaches a terminal, a log or a page."""

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from port.app import cli
from port.config import CosyVoice3Config
from port.files.errors import LIMIT, Refused, printable
from port.files.voices import Voice, read_voice, write_voice
from reports.card import card, is_card, write_card
from tests.support.convert_support import CONFIG
from tests.support.parsed_json import edited, leaves

pytestmark = pytest.mark.robust

BITES = ("\x1b[2J", "\x1b]0;title\x07", "\r\nFAIL", "\u202e", "\u2028", "\x85", "\x00", "\ud800", "\u200b", "\x9b31m")


@pytest.mark.parametrize("bite", BITES)
def test_what_does_not_print_is_escaped(bite):
    assert printable(f"a{bite}b").isprintable()
    assert str(Refused(f"a{bite}b")).isprintable()
    assert str(Refused(f"x: tensor a{bite}b")).isprintable()


def test_ordinary_text_stays_as_it_is():
    for text in ("café", "声音", "один", "😀", "a 'b' \"c\" \\d", "x" * LIMIT):
        assert printable(text) == text


@pytest.mark.parametrize("size", [LIMIT + 1, 10_000, 4_000_000])
def test_long_lines_lose_their_middle(size):
    line = printable("begin " + "x" * size + " end")
    assert len(line) <= LIMIT
    assert line.startswith("begin ") and line.endswith(" end")


def test_values_nested_as_deep_as_the_parser_goes(tmp_path):
    """Writing them out takes more of the stack than reading them."""
    for depth in range(100, 1000, 5):
        content = json.dumps(CONFIG.to_dict()).replace(
            '"sample_rate": 24000', f'"sample_rate": {"[" * depth}{"]" * depth}'
        )
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(Refused) as refusal:
            CosyVoice3Config.load(tmp_path)
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize("bite", [*BITES[:7], "x" * 9_000])
def test_notes_of_a_voice_are_shown_in_lines_that_print(tmp_path, capsys, bite):
    """The author of the file wrote them."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (tmp_path / "voices").mkdir()
    bite = bite.replace("\ud800", "")  # half a character, which the format has no bytes for
    embedding = np.ones((1, CONFIG.flow.spk_embed_dim), np.float32)
    write_voice(tmp_path / "voices" / "me.safetensors", Voice(embedding, text=f"a{bite}b", licence=f"{bite}c"), CONFIG)
    assert cli.main(["voice", "show", "me", "--model", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert [line.partition(":")[0] for line in lines] == ["name", "prompt", "text", "licence", "file"]
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


@pytest.mark.parametrize("bite", [*BITES[:7], "x" * 100_000])
def test_tensors_of_a_voice_that_do_not_print(tmp_path, bite):
    said = {"format": "cosyvoice3-voice", "version": "1"}
    save_file({f"me{bite}": np.ones((1, 192), np.float32)}, tmp_path / "x", said)
    with pytest.raises(Refused) as refusal:
        read_voice(tmp_path / "x", CONFIG)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 1000


# ---- the model card

HTML = "<script>alert(1)</script><img src=x onerror=y> ![x](https://x) | `\n\n# FAIL\n---\n\x1b[2J"


CONFIGURATION = {
    "provenance": {"source": "me/x", "revision": "0" * 40, "sha256": {}},
    "quantization": {"bits": 4, "group_size": 64, "llm.x": {"bits": 8}},
}
AUDIT = {
    "verdict": "2 source tensors",
    "parity": [{"name": "walk.llm", "status": "PASS", "ratio": 1.5}],
    "files": {"llm": {"name": "llm.pt", "bytes": 3, "sha256": "ab"}},
}
QUALITY = {
    "precision": "4 bits",
    "layers": 2,
    "metrics": [{"metric": "m", "unit": "dB", "value": 1.0, "rounding": 1.0, "limit": 1.0, "status": "PASS"}],
}
FILES = {"config.json": CONFIGURATION, "audit.json": AUDIT, "quality.json": QUALITY}
PLACES = [(name, path) for name, content in FILES.items() for path, _ in leaves(content)]


def write(folder, changed=None, path=(), value=None):
    for name, content in FILES.items():
        (folder / name).write_text(json.dumps(edited(content, path, value) if name == changed else content))


@pytest.mark.parametrize(
    ("name", "path"), PLACES, ids=lambda value: value if isinstance(value, str) else ".".join(map(str, value))
)
@pytest.mark.parametrize(
    "value", [HTML, [HTML], 3, None, {HTML: HTML}], ids=["text", "list", "number", "null", "object"]
)
def test_a_card_escapes_untrusted_text(tmp_path, name, path, value):
    write(tmp_path, name, path, value)
    try:
        text = card(tmp_path)
    except Refused as error:
        assert str(error).isprintable()
        return
    body = text.rpartition("<!--")[0]
    assert "<" not in body.replace("<|endofprompt|>", "")
    assert "![" not in body and "\x1b" not in body and "\n# FAIL" not in body
    head = yaml.safe_load(text.split("---")[1])
    assert set(head) <= {"library_name", "pipeline_tag", "base_model", "base_model_relation", "license", "tags"}
    assert head["pipeline_tag"] == "text-to-speech"


def test_a_readme_that_somebody_wrote_is_kept(tmp_path):
    write(tmp_path)
    readme = write_card(tmp_path, card(tmp_path))
    assert is_card(readme)
    write_card(tmp_path, card(tmp_path, repo="me/other"))  # a card may be replaced
    for text in ("mine", readme.read_text() + "\nmine\n", readme.read_text().replace("MLX", "mlx", 1), ""):
        readme.write_text(text)
        with pytest.raises(Refused, match="move it away"):
            write_card(tmp_path, card(tmp_path))
        assert readme.read_text() == text
