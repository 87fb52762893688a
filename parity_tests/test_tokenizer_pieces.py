"""The pieces that text is cut into before merging are those of transformers' Qwen2 tokenizers.

A small tokenizer merges little, so most wrong cuts do not change its ids. Therefore the pieces themselves are compared,
and the ids of a vocabulary that joins any two neighbours.
"""

import json
import sys
import unicodedata
from itertools import product

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from port.frontend.special_tokens import ADDITIONAL_SPECIAL_TOKENS
from port.frontend.tokenizer import CosyVoice3Tokenizer
from reference.tiny_tokenizer import build_tiny_tokenizer, byte_symbols

pytestmark = pytest.mark.part("frontend.tokenizer")

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
# Cuts worked out by hand from the rule.
PIECES = {
    "I'll don't WE'RE o'clock": ["I", "'ll", " don", "'t", " WE", "'RE", " o", "'clock"],
    "it's'd'M'x": ["it", "'s", "'d", "'M", "'x"],
    "I'LLa We'Sx o'rex": ["I", "'LL", "a", " We", "'S", "x", " o", "'re", "x"],
    "2025, 3.14": ["2", "0", "2", "5", ",", " ", "3", ".", "1", "4"],
    "a1b²Ⅷ٣": ["a", "1", "b", "²", "Ⅷ", "٣"],
    "a  b   c": ["a", " ", " b", "  ", " c"],
    "a\tb \tc": ["a", "\tb", " ", "\tc"],
    "a\n\nb \r\n c\n  ": ["a", "\n\n", "b", " \r\n", " c", "\n", "  "],
    "x!?\n\n(y)": ["x", "!?\n\n", "(y", ")"],
    " ,  ,": [" ,", " ", " ,"],
    "e\u0338a": ["e", "\u0338a"],  # a lone mark is no letter; it joins the letters after it
    "你好，世界。": ["你好", "，世界", "。"],
    "a\u00a0b\u3000 c": ["a", "\u00a0b", "\u3000", " c"],
    "👩‍👩": ["👩‍👩"],
}


def assigned():
    """Characters by category. Unicode 3.2 and today's agree on them, so every library does."""
    found: dict[str, list[str]] = {}
    for code in range(0x20, min(sys.maxunicode, 0x30000)):
        character = chr(code)
        category = unicodedata.category(character)
        if category == unicodedata.ucd_3_2_0.category(character) and category not in ("Cn", "Cs", "Co"):
            found.setdefault(category, []).append(character)
    return found


CHARACTERS = assigned()


def texts():
    """Short runs of one category, contractions, spaces and line ends, in any order."""
    run = st.sampled_from(sorted(CHARACTERS)).flatmap(
        lambda c: st.text(st.sampled_from(CHARACTERS[c]), min_size=1, max_size=4)
    )
    contractions = st.sampled_from(["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]).flatmap(
        lambda c: st.sampled_from([c, c.upper(), c.title(), c[:-1], f"{c}x"])
    )
    spaces = st.text(" \t\n\r\x0b\x0c\x85\u00a0\u2028\u3000", min_size=1, max_size=5)
    plain = st.text("ab AB 12 .,' ", min_size=1, max_size=6)
    return st.lists(st.one_of(run, contractions, spaces, plain), max_size=8).map("".join)


def cut(pre_tokenizer, text):
    """The pieces that a pre-tokenizer of the library `tokenizers` cuts composed text into."""
    return [text[start:end] for _, (start, end) in pre_tokenizer.pre_tokenize_str(text)]


@pytest.fixture(scope="session")
def witnesses(tmp_path_factory):
    """Functions from text to pieces: our pre-tokenizer, built and saved, and transformers', slow and fast."""
    folder, saved = tmp_path_factory.mktemp("pieces"), tmp_path_factory.mktemp("saved")
    build_tiny_tokenizer(folder)
    ours = CosyVoice3Tokenizer.from_folder(folder)
    ours.save(saved)
    slow = transformers.Qwen2Tokenizer.from_pretrained(folder)
    cutters = {
        "ours": ours._tokenizer.pre_tokenizer,
        "ours, saved": transformers.AutoTokenizer.from_pretrained(saved).backend_tokenizer.pre_tokenizer,
        "fast": transformers.Qwen2TokenizerFast.from_pretrained(folder).backend_tokenizer.pre_tokenizer,
    }
    found = {name: lambda text, c=c: cut(c, text) for name, c in cutters.items()}
    return found | {"slow": lambda text: regex.findall(slow.pat, text)}


@pytest.mark.parametrize("text", PIECES)
def test_pieces_by_hand(witnesses, text):
    for name, pieces in witnesses.items():
        assert pieces(unicodedata.normalize("NFC", text)) == PIECES[text], name


@settings(max_examples=600, deadline=None)
@given(text=texts())
@example(text="".join(characters[0] + " " + characters[-1] for characters in CHARACTERS.values()))
def test_pieces_of_any_text_are_those_of_transformers(witnesses, text):
    text = unicodedata.normalize("NFC", text)
    found = {name: pieces(text) for name, pieces in witnesses.items()}
    assert all(pieces == found["slow"] for pieces in found.values()), found
    assert "".join(found["ours"]) == text


def test_every_category_is_cut_alike(witnesses):
    """Characters of every category between letters, digits, spaces and signs."""
    for category, characters in CHARACTERS.items():
        for start in range(0, len(characters), 997):
            some = characters[start : start + 997 : 1 + len(characters) // 400]
            text = unicodedata.normalize("NFC", "".join(f"a{c}b {c}1{c}.{c}\n" for c in some))
            assert witnesses["ours"](text) == witnesses["slow"](text), category


@pytest.fixture(scope="session")
def joining(tmp_path_factory):
    """A tokenizer whose merges join any two of the symbols below, and the same in transformers."""
    folder = tmp_path_factory.mktemp("joining")
    symbols, joined = byte_symbols(), b"asLT12' \t\n\r.,!"
    pairs = [(symbols[left], symbols[right]) for left, right in product(joined, repeat=2)]
    tokens = [*symbols.values(), *(left + right for left, right in pairs)]
    build_tiny_tokenizer(folder, 257)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {str(int(i) - 257 + len(tokens)): token for i, token in config["added_tokens_decoder"].items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": added}))
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("".join(f"{left} {right}\n" for left, right in pairs), encoding="utf-8")
    others = [kind.from_pretrained(folder) for kind in (transformers.Qwen2Tokenizer, transformers.Qwen2TokenizerFast)]
    special = dict.fromkeys(("eos_token", "pad_token"), "<|endoftext|>")
    for other in others:
        other.add_special_tokens(special | {"additional_special_tokens": list(ADDITIONAL_SPECIAL_TOKENS)})
    return CosyVoice3Tokenizer.from_folder(folder), *others


@settings(max_examples=300, deadline=None)
@given(text=st.text("asLT12' \t\n\r.,!好é", max_size=24))
def test_ids_where_any_neighbours_are_joined(joining, text):
    ours, *others = joining
    assert [other.encode(text) for other in others] == [ours.encode(text)] * 2
