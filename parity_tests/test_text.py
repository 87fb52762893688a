"""Text normalisation and splitting: examples of the original, and its rules as properties."""

import json
import logging
import re
import sys
import types
from importlib.machinery import ModuleSpec
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parity_tests.official_tokenizer import REASON, official_tokenizer
from port.frontend import normalizer as wetext_side
from port.frontend import text as front
from port.frontend.text import split_paragraph, split_sentences, text_normalize
from port.frontend.tokenizer import CosyVoice3Tokenizer

pytestmark = pytest.mark.part("frontend.text")

EXAMPLES = json.loads((Path(__file__).parent / "data/text_normalisation.json").read_text(encoding="utf-8"))
IDS = [repr(row["text"][:20]) for row in EXAMPLES]


def words(text):
    """Replaces the tokenizer; on these examples it leads to the same splits."""
    return re.findall(r"\w+|[^\w\s]", text)


@pytest.fixture(scope="session")
def official_encode(tmp_path_factory):
    folder = official_tokenizer(tmp_path_factory.mktemp("official"))
    if folder is None:
        pytest.skip(REASON)
    return CosyVoice3Tokenizer.from_folder(folder).encode


@pytest.fixture
def wetext():
    pytest.importorskip("wetext", reason="wetext is not installed (extra 'text')")
    return wetext_side.WeTextNormalizer()


@pytest.mark.parametrize("row", EXAMPLES, ids=IDS)
def test_examples_by_the_plain_rules(row):
    assert text_normalize(row["text"], words) == row["plain"]


@pytest.mark.parametrize("row", EXAMPLES, ids=IDS)
def test_examples_with_wetext(row, wetext):
    assert text_normalize(row["text"], words, normalizer=wetext) == row["wetext"]


def test_examples_with_the_official_tokenizer(official_encode):
    for row in EXAMPLES:
        assert text_normalize(row["text"], official_encode) == row["plain"]


def test_text_that_is_not_normalised():
    parts = iter(["a", "b"])
    assert text_normalize(parts, words)[0] is parts
    assert text_normalize(parts, words, split=False)[0] is parts
    assert list(parts) == ["a", "b"]
    for text in (" 3 |> <| ", ""):
        assert text_normalize(text, words) == [text]
        assert text_normalize(text, words, split=False) == text
    assert text_normalize(" 3. 4 ", words, text_frontend=False) == [" 3. 4 "]
    assert text_normalize(" 3 ", words, split=False, text_frontend=False) == " 3 "
    with pytest.raises(TypeError, match="not list"):
        text_normalize(["a"], words)  # type: ignore[arg-type]


def test_without_split_no_full_stop_is_added():
    assert text_normalize(" 你好，", words, split=False) == "你好。"
    assert text_normalize("你好", words, split=False) == "你好"
    assert text_normalize("4 cats. Two dogs ", words, split=False) == "four cats. Two dogs"
    assert text_normalize("...", words, split=False) == "..."
    assert text_normalize(" ", words, split=False) == ""


def test_single_rules():
    assert wetext_side.contains_chinese("abc一") and wetext_side.contains_chinese("鿿")
    assert not wetext_side.contains_chinese("カナ ㄅ 。")
    assert front.replace_blank("你好 a b 好") == "你好a b好"
    assert front.replace_blank("你好 ") == "你好"
    assert front.replace_blank(" a  b ") == "ab"
    assert front.replace_corner_mark("m²m³") == "m平方m立方"
    assert front.remove_bracket("（a）【b】`c`——d—") == "abc d—"
    assert front.spell_out_number("12th 1st") == "twelveth onest"
    assert front.spell_out_number("²") == "zero"
    assert front.spell_out_number("٣") == "three"
    assert front.spell_out_number("Ⅷ") == "Ⅷ"
    assert front.spell_out_number("3.14, 1,234, 007") == "three.fourteen, one,two hundred and thirty-four, seven"
    assert front.is_only_punctuation("…！$") and front.is_only_punctuation("")
    assert not front.is_only_punctuation("! a") and not front.is_only_punctuation("! ?")


def test_every_digit_is_spelled_out():
    digits = [character for character in map(chr, range(sys.maxunicode + 1)) if character.isdigit()]
    assert len(digits) > 500
    for digit in digits:
        assert not any(map(str.isdigit, text_normalize(f"x{digit}", words, split=False)))


def test_sentences_keep_their_closing_quote_and_drop_repeated_marks():
    breaks = front.BREAKS["en"]
    assert split_sentences('a "b." c.', breaks) == ['a "b."', " c."]
    assert split_sentences("a..b?!.", breaks) == ["a.", "b?"]
    assert split_sentences('a.."b.', breaks) == ['a."', "b."]
    assert split_sentences('."a.', breaks) == ['"a.']
    assert split_paragraph("", words) == []


def test_commas_split_on_request_and_a_short_remainder_is_joined():
    long, short = "一" * 70 + "，", "二" * 20
    assert split_paragraph(long + short, words) == [f"{long}{short}。"]
    assert split_paragraph(long + short, words, comma_split=True) == [long, f"{short}。"]
    assert split_paragraph(long + short, words, comma_split=True, merge_len=22) == [f"{long}{short}。"]


def test_chinese_is_measured_in_characters_and_the_rest_in_tokens():
    long, short = "一" * 60, "二" * 30
    assert split_paragraph(f"{long}。{short}。", words) == [f"{long}。", f"{short}。"]
    assert split_paragraph(f"{long}。{short}。", lambda s: s, "en") == [f"{long}。{short}。."]
    assert split_paragraph("a b. " * 40, list, "en") != split_paragraph("a b. " * 40, words, "en")


def test_the_length_of_a_piece_is_that_of_its_tokens():
    """A mark and the letter after it may be one token, so the whole can be shorter than the sum of its sentences."""
    dense = "ab." * 100
    assert split_paragraph(dense, str.split, "en") == [dense]
    long = "w " * 80 + "w."
    assert split_paragraph(long + dense, str.split, "en") == [long + dense]  # a remainder of one token is joined
    assert split_paragraph(long + " w" * 30, str.split, "en") == [long, " w" * 30 + "."]


def fake_wetext(monkeypatch, normalize):
    module = types.ModuleType("wetext")
    normalizer = types.SimpleNamespace(normalize=normalize)
    vars(module).update(__spec__=ModuleSpec("wetext", None), Normalizer=lambda **_: normalizer)
    monkeypatch.setitem(sys.modules, "wetext", module)
    return wetext_side.WeTextNormalizer()


def test_a_failing_wetext_is_reported_once_per_text_and_plain_rules_are_used(monkeypatch, caplog):
    def fail(text):
        raise AssertionError

    normalizer = fake_wetext(monkeypatch, fail)
    with caplog.at_level(logging.WARNING):
        assert text_normalize("5 cats", words, normalizer=normalizer) == ["five cats."]
        assert text_normalize("5只猫", words, normalizer=normalizer) == ["5只猫。"]
        assert text_normalize("5 cats and 6 dogs, 7 cows.", words, normalizer=normalizer)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "wetext cannot read '5'",
        "wetext cannot read '5只猫'",
        "wetext cannot read '5', '6', '7'",
    ]


def test_only_output_of_wetext_is_unescaped(monkeypatch):
    escaping = fake_wetext(monkeypatch, lambda text: re.sub(r'(["\\])', r"\\\1", text).replace("3", "three"))
    assert escaping('3 "x" \\ \\"') == 'three "x" \\ \\"'
    idle = fake_wetext(monkeypatch, str.strip)
    assert idle(' 好\\"好 ') == '好\\"好'


def test_wetext_reads_numbers_among_letters_of_any_script(monkeypatch):
    normalizer = fake_wetext(monkeypatch, str.upper)
    texts = ("a3", "好a3", "3 é", "日本かa3", "오늘 a3", "я a3", "かな a3", "π a3", "ʼ3a")
    assert [normalizer(text) for text in texts] == [text.upper() for text in texts]


def test_without_a_working_wetext_plain_rules_are_used(monkeypatch, caplog):
    wetext_side.load_normalizer.cache_clear()
    monkeypatch.setitem(sys.modules, "wetext", None)
    with caplog.at_level(logging.WARNING):
        assert wetext_side.load_normalizer() is None
    assert "wetext is not installed, so plain rules read numbers" in caplog.text
    wetext_side.load_normalizer.cache_clear()
    broken = fake_wetext(monkeypatch, str.upper)
    del sys.modules["wetext"].Normalizer
    for text in ("five cats", "5 cats", "6 cats"):
        assert broken(text) == text
    assert caplog.text.count("wetext cannot be used (module 'wetext' has no attribute 'Normalizer')") == 1


def test_wetext_is_loaded_at_the_first_digit(monkeypatch):
    normalizer = fake_wetext(monkeypatch, str.upper)
    monkeypatch.setitem(sys.modules, "wetext", None)  # from here on importing it fails
    assert normalizer(" no  digit [AH0] ") == "no digit [AH0]" and normalizer("没有 ") == "没有"
    assert "_normalizers" not in vars(normalizer)
    normalizer("5")
    assert vars(normalizer)["_normalizers"] == {}


MIXED = "今天好ab 12.。！?;：、，,\"”'()（）【】`—-²³₂①\n\t<|>[]오я😀"
MARKS = 'ab .,;，。"”'
ANY_TEXT = st.text(max_size=300) | st.text(MIXED, max_size=300) | st.text(MARKS, max_size=40)
CHINESE = st.lists(
    st.text("一二三，", min_size=1, max_size=90) | st.sampled_from(["”一", '"']), min_size=1, max_size=12
)


@given(ANY_TEXT, st.booleans())
def test_any_text_gives_pieces_that_are_not_empty(text, front_end):
    pieces = text_normalize(text, words, text_frontend=front_end)
    assert all(pieces) or pieces == [text] == [""]
    assert isinstance(text_normalize(text, words, split=False, text_frontend=front_end), str)


@settings(deadline=None, max_examples=60)
@given(text=ANY_TEXT)
def test_any_text_survives_wetext(text):
    pytest.importorskip("wetext", reason="wetext is not installed (extra 'text')")
    pieces = text_normalize(text, words, normalizer=wetext_side.load_normalizer())
    assert all(pieces) or pieces == [text] == [""]


@given(ANY_TEXT, st.sampled_from(["zh", "en"]), st.booleans())
def test_splitting_loses_nothing_but_repeated_marks(text, lang, comma_split):
    breaks = front.BREAKS[lang] | (front.COMMAS if comma_split else frozenset())
    mark = f"[{re.escape(''.join(sorted(breaks)))}]"
    if text and text[-1] not in breaks:
        text += "。" if lang == "zh" else "."
    # Marks at the start are dropped; of a run of marks the first is kept, and every quote.
    expected = re.sub(
        rf'({mark}["”]?)((?:{mark}["”]?)*)',
        lambda run: run[1] + re.sub(mark, "", run[2]),
        re.sub(rf"\A{mark}+", "", text),
    )
    assert "".join(split_paragraph(text, words, lang, comma_split=comma_split)) == expected


# At and beyond each limit, the full stop counted: 61 + 19 and 61 + 20 characters for pieces of at most 80, a first
# sentence of 60 and 61, a remainder of 19 and 20.
@example(["一" * 60, "二" * 18], 80, 60, 0)
@example(["一" * 60, "二" * 19], 80, 60, 0)
@example(["一" * 59, "二" * 20], 80, 60, 0)
@example(["一" * 70, "二" * 18], 80, 60, 20)
@example(["一" * 70, "二" * 19], 80, 60, 20)
@given(CHINESE, st.integers(5, 80), st.integers(1, 60), st.integers(0, 30))
def test_pieces_end_where_the_length_rules_say(parts, most, least, merge):
    text = "。".join(parts) + "。"
    ends = list(accumulate(map(len, split_sentences(text, front.BREAKS["zh"]))))
    cuts = [0]
    for end, next_end in pairwise(ends):
        if end - cuts[-1] > least and next_end - cuts[-1] > most:
            cuts.append(end)
    if len(cuts) > 1 and ends[-1] - cuts[-1] < merge:
        cuts.pop()
    lengths = [b - a for a, b in pairwise([*cuts, ends[-1]])]
    assert [len(piece) for piece in split_paragraph(text, words, "zh", most, least, merge)] == lengths
