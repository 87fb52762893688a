"""The text tokenizer: special ids, its files, damaged files, and equality with transformers' Qwen2 tokenizers."""

import hashlib
import json
import logging
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_tests.official_tokenizer import REASON, official_tokenizer
from port.files.errors import Refused
from port.frontend.special_tokens import ADDITIONAL_SPECIAL_TOKENS, SPECIAL_TOKENS
from port.frontend.tokenizer import OFFICIAL_VOCAB_SIZE, PROBE_IDS, PROBE_TEXT, CosyVoice3Tokenizer
from reference.tiny_tokenizer import build_tiny_tokenizer, byte_symbols

pytestmark = pytest.mark.part("frontend.tokenizer")

VOCAB_SIZE = 320
SHARED_SPECIALS = Path(__file__).parents[2] / "shared/official/additional_special_tokens.json"
TEXTS = [
    PROBE_TEXT,
    "",
    " ",
    "Hello world [breath] 你好",
    "You'RE we'll  don't\tI'd\r\n\r\n  x   \n y ",
    "收到好友从远方寄来的生日礼物，那份意外的惊喜。",
    "中文 English 混排，2025年12月25日 3.14²",
    "[j][ǐ]ng <strong>重</strong> [breath[breath]] <|endofprompt|><|im_end|><|endofprom",
    "e\u0301 \u212b \u1112\u1161\u11ab ﬁ ｱﾞ 豈",
    "👨‍👩‍👧 🇨🇳 😀😀",
    "\u3000\u00a0\u2028\x85\x00",
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_tokenizer(folder, VOCAB_SIZE)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    return CosyVoice3Tokenizer.from_folder(tiny_folder)


@pytest.fixture(scope="session")
def official_folder(tmp_path_factory):
    folder = official_tokenizer(tmp_path_factory.mktemp("official"))
    if folder is None:
        pytest.skip(REASON)
    return folder


@pytest.fixture(params=["tiny", "official"])
def any_folder(request):
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture
def damaged(tiny_folder, tmp_path):
    """The tiny tokenizer's files, for a test to damage."""
    return shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)


def test_special_tokens_are_the_official_ones():
    digest = hashlib.sha256("\n".join(ADDITIONAL_SPECIAL_TOKENS).encode()).hexdigest()
    assert digest == "4d5267643001673d742c7033834779c1e24f936caaf7a9ce850807222ee94b91"
    assert len(ADDITIONAL_SPECIAL_TOKENS) == 280
    assert len(SPECIAL_TOKENS) == len(set(SPECIAL_TOKENS)) == 281
    assert all(unicodedata.is_normalized("NFC", token) for token in SPECIAL_TOKENS)
    at = {OFFICIAL_VOCAB_SIZE + i: token for i, token in enumerate(SPECIAL_TOKENS)}
    assert [at[i] for i in (151643, 151646, 151647, 151662)] == ["<|endoftext|>", "<|endofprompt|>", "[breath]", "[mn]"]
    assert [at[i] for i in (151663, 151664, 151747, 151748)] == ["<|endofsystem|>", "[AA]", "[ZH]", "[a]"]
    assert max(at) == 151923 and at[151923] == "[ǜ]"


@pytest.mark.skipif(not SHARED_SPECIALS.is_file(), reason="the official list is not here")
def test_special_tokens_equal_the_official_list():
    assert list(ADDITIONAL_SPECIAL_TOKENS) == json.loads(SHARED_SPECIALS.read_text(encoding="utf-8"))


def test_special_ids_follow_the_vocabulary(tiny):
    assert len(tiny) == VOCAB_SIZE + 281
    assert tiny.special_tokens["<|endoftext|>"] == VOCAB_SIZE
    assert tiny.end_of_prompt == VOCAB_SIZE + 3
    for token, i in tiny.special_tokens.items():
        ids = tiny.encode(f"a{token} 好{token}{token}")
        assert ids.count(i) == 3 and ids[-2:] == [i, i]
        assert tiny.decode(ids, skip_special_tokens=False) == f"a{token} 好{token}{token}"
        assert tiny.decode(ids) == "a 好"


def test_official_ids(official_folder):
    tokenizer = CosyVoice3Tokenizer.from_folder(official_folder)
    assert len(tokenizer) == 151924
    assert tokenizer.end_of_prompt == 151646
    assert tuple(tokenizer.encode(PROBE_TEXT)) == PROBE_IDS
    assert len(tokenizer.encode("收到好友从远方寄来的生日礼物")) == 14
    assert tokenizer.encode("Hello world [breath] 你好")[2:5] == [220, 151647, 220]


@given(st.text(st.characters(exclude_categories=["Cs", "Cn"])))
def test_decoding_returns_the_composed_text(tiny, text):
    ids = tiny.encode(text)
    assert all(0 <= i < len(tiny) for i in ids)
    if not any(token in text for token in SPECIAL_TOKENS):
        assert tiny.decode(ids) == unicodedata.normalize("NFC", text)


def test_surrogates_and_broken_bytes_become_replacement_characters(tiny):
    assert tiny.decode(tiny.encode("a\ud83d\ude00\ud800b")) == "a😀\ufffdb"
    assert tiny.decode(tiny.encode("好")[:1]) == "\ufffd"


def test_decode_refuses_ids_out_of_range(tiny):
    for wrong in (-1, len(tiny), 1 << 40):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside"):
            tiny.decode([0, wrong])


def pieces():
    """Text of characters on which all versions of Unicode agree, and special tokens, whole or without their end."""
    classes = [
        "今天天气不错我们",
        "abc ABC'sLLdre",
        "019٣²Ⅷ①",
        " \t\n\r\u00a0\u3000",
        "😀\u200d👩🇨🇳e\u0301가ﬁ\u212b",
        "<|>[]/.,!?；。，“”",
    ]
    special = st.sampled_from(SPECIAL_TOKENS)
    part = st.one_of(*(st.text(c, min_size=1, max_size=6) for c in classes), special, special.map(lambda t: t[:-1]))
    return st.lists(part, max_size=12).map("".join)


class Witnesses:
    """transformers' slow and fast tokenizers with our special tokens, and ours before and after `save`."""

    def __init__(self, folder, saved):
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        ends = dict.fromkeys(("eos_token", "pad_token"), "<|endoftext|>")
        special = ends | {"additional_special_tokens": list(ADDITIONAL_SPECIAL_TOKENS)}
        self.ours = CosyVoice3Tokenizer.from_folder(folder)
        self.ours.save(saved)
        self.reloaded = CosyVoice3Tokenizer.from_folder(saved)
        self.slow = transformers.Qwen2Tokenizer.from_pretrained(folder)
        self.fast = transformers.Qwen2TokenizerFast.from_pretrained(folder)
        for tokenizer in (self.slow, self.fast):
            tokenizer.add_special_tokens(special)
        self.auto = transformers.AutoTokenizer.from_pretrained(saved)

    def check(self, text):
        ids = self.ours.encode(text)
        others = (self.reloaded, self.slow, self.fast, self.auto)
        assert [other.encode(text) for other in others] == [ids] * len(others)
        # Not the fast one, which garbles accents in special tokens such as [ià].
        assert self.ours.decode(ids) == self.slow.decode(ids, skip_special_tokens=True)
        assert self.ours.decode(ids, skip_special_tokens=False) == self.slow.decode(ids)


@pytest.fixture(scope="session")
def tiny_witnesses(tiny_folder, tmp_path_factory):
    return Witnesses(tiny_folder, tmp_path_factory.mktemp("saved"))


def test_ids_equal_those_of_transformers(any_folder, tmp_path):
    witnesses = Witnesses(any_folder, tmp_path / "new" / "folder")
    assert len(witnesses.slow) == len(witnesses.fast) == len(witnesses.auto) == len(witnesses.ours)
    for token, i in witnesses.ours.special_tokens.items():
        assert witnesses.slow.convert_tokens_to_ids(token) == witnesses.fast.convert_tokens_to_ids(token) == i
        assert witnesses.auto.convert_tokens_to_ids(token) == i
    for text in TEXTS:
        witnesses.check(text)
    names = {path.name for path in (tmp_path / "new/folder").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}


@given(text=pieces())
def test_any_ids_equal_those_of_transformers(tiny_witnesses, text):
    tiny_witnesses.check(text)


def test_other_merges_with_the_official_vocabulary_are_refused(caplog):
    symbols = list(byte_symbols().values())
    tokens = symbols + [a + b + c for a in symbols for b in symbols for c in symbols[:3]]
    vocab = {token: i for i, token in enumerate(tokens[:OFFICIAL_VOCAB_SIZE])}
    tokenizer = CosyVoice3Tokenizer(vocab, [], "there/vocab.json")
    with pytest.raises(Refused, match=r"^there/vocab.json: not the CosyVoice 3 tokenizer [^\n]*$"):
        tokenizer.check_probe()
    with caplog.at_level(logging.WARNING):
        assert tokenizer.check_probe("warn") is False
    assert "CosyVoice-BlankEN" in caplog.text


def test_stock_qwen_merges_are_refused(tmp_path):
    if official_tokenizer(tmp_path, stock=True) is None:
        pytest.skip(REASON)
    with pytest.raises(Refused, match="not the CosyVoice 3 tokenizer"):
        CosyVoice3Tokenizer.from_folder(tmp_path)
    stock = CosyVoice3Tokenizer.from_folder(tmp_path, on_mismatch="warn")
    assert len(stock.encode("收到好友从远方寄来的生日礼物")) == 8


def test_an_older_tokenizer_json_is_read(tiny, tmp_path):
    tiny.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").unlink()
    again = CosyVoice3Tokenizer.from_folder(tmp_path)
    assert [again.encode(text) for text in TEXTS] == [tiny.encode(text) for text in TEXTS]


def edit_json(path, change):
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("!"), "ids are not 0..318"),
        (lambda v: v.update({"!": 1}), "ids are not"),
        (lambda v: v.update({"!": True}), "ids are not"),
        (lambda v: v.update({"!!!!": v.pop("!")}), "1 of the 256 bytes have no token, the first is '!'"),
        (lambda v: v.update({"好": len(v)}), "not written in the byte-level alphabet"),
        (lambda v: v.update({"": len(v)}), "not written in the byte-level alphabet"),
        (lambda v: v.update({"[breath]": len(v)}), r"special token \[breath\] must not be"),
        (lambda v: v.update({"zqz": v.pop("he")}), "merge 1, 'h' [+] 'e', is not in the vocabulary"),
        (lambda v: v.clear(), "0 tokens"),
    ],
)
def test_an_inconsistent_vocabulary_is_refused(damaged, change, message):
    edit_json(damaged / "vocab.json", change)
    with pytest.raises(Refused, match=message) as caught:
        CosyVoice3Tokenizer.from_folder(damaged)
    assert "vocab.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b"[1]", "expected a JSON object"),
        ("vocab.json", b'{"a": ', "not readable as JSON"),
        ("vocab.json", b'{"a":' + b"1" * 5000 + b"}", "not readable as JSON"),
        ("vocab.json", b"[" * 100000, "not readable as JSON"),
        ("vocab.json", b"\xff\xfe", "not readable as JSON"),
        ("merges.txt", b"a b c\n", "is not a pair of tokens"),
        ("merges.txt", b"h e\nh e\n", "a merge is there twice"),
        ("merges.txt", b"#" * ((16 << 20) + 1), "larger than 16777216 bytes"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": []}', "not an object of objects"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"320": {"content": "<|new|>"}}}', "'320' is unknown"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"321": {"content": "[a]"}}}', "'321' is unknown"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"9": {}}}', "added token None"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"320": {"content": "<|endoftext|>", "lstrip": true}}}',
            "does not match as",
        ),
    ],
)
def test_damaged_files_are_refused_in_one_line(damaged, name, content, message):
    (damaged / name).write_bytes(content)
    with pytest.raises(Refused, match=message) as caught:
        CosyVoice3Tokenizer.from_folder(damaged)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("model"), "its model is not BPE"),
        (lambda d: d["model"].update(type="WordPiece"), "its model is not BPE"),
        (lambda d: d["model"].update(merges=None), "'merges' is missing or not a list"),
        (lambda d: d["model"].update(merges=[["h"]]), "is not a pair of tokens"),
        (lambda d: d["model"].update(vocab=[]), "'vocab' is missing or not a dict"),
        (lambda d: d.update(added_tokens=[1]), "not a list of objects"),
        (lambda d: d["added_tokens"].append({"id": 601, "content": "<|extra|>"}), "is unknown"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(tiny, tmp_path, change, message):
    tiny.save(tmp_path)
    edit_json(tmp_path / "tokenizer.json", change)
    with pytest.raises(Refused, match=message):
        CosyVoice3Tokenizer.from_folder(tmp_path)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"no vocab.json with merges.txt and no tokenizer.json"):
        CosyVoice3Tokenizer.from_folder(tmp_path)
