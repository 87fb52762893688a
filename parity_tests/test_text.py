"""Text normalisation and splitting against examples of the original, and its rules as properties."""

import json
import logging
import re
import sys
import types
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parity_tests.harness.official_tokenizer import REASON, official_tokenizer
from port.frontend import normalizer as wetext_side
from port.frontend import text as front
from port.frontend.special_tokens import SPECIAL_TOKENS, mistaken_tokens
from port.frontend.text import split_paragraph, split_sentences, text_normalize
from port.frontend.tokenizer import CosyVoice3Tokenizer

EXAMPLES = json.loads((Path(__file__).parent / "data/text_normalisation.json").read_text(encoding="utf-8"))
IDS = [repr(row["text"][:20]) for row in EXAMPLES]


def words(text):
    """Stands in for the tokenizer: on these examples it leads to the same splits."""
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


def test_text_that_is_passed_on():
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
        text_normalize(["a"], words)


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


def test_commas_split_only_when_asked_and_a_short_rest_is_glued():
    long, short = "一" * 70 + "，", "二" * 20
    assert split_paragraph(long + short, words) == [f"{long}{short}。"]
    assert split_paragraph(long + short, words, comma_split=True) == [long, f"{short}。"]
    assert split_paragraph(long + short, words, comma_split=True, merge_len=22) == [f"{long}{short}。"]


def test_chinese_is_measured_in_characters_and_the_rest_in_tokens():
    long, short = "一" * 60, "二" * 30
    assert split_paragraph(f"{long}。{short}。", words) == [f"{long}。", f"{short}。"]
    assert split_paragraph(f"{long}。{short}。", lambda s: s, "en") == [f"{long}。{short}。."]
    assert split_paragraph("a b. " * 40, list, "en") != split_paragraph("a b. " * 40, words, "en")


def test_a_piece_is_measured_as_it_will_be_tokenized():
    """A mark right before a letter may belong to one token with it, so the whole is shorter than its sentences."""
    dense = "ab." * 100
    assert split_paragraph(dense, str.split, "en") == [dense]
    long = "w " * 80 + "w."
    assert split_paragraph(long + dense, str.split, "en") == [long + dense]  # a rest of one token is glued
    assert split_paragraph(long + " w" * 30, str.split, "en") == [long, " w" * 30 + "."]


def fake_wetext(monkeypatch, normalize):
    module = types.ModuleType("wetext")
    module.Normalizer = lambda **_: types.SimpleNamespace(normalize=normalize)
    monkeypatch.setitem(sys.modules, "wetext", module)
    return wetext_side.WeTextNormalizer()


def test_a_failing_wetext_is_reported_once_a_text_and_replaced_by_the_plain_rules(monkeypatch, caplog):
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


def test_wetext_output_is_unescaped_only_where_wetext_was_at_work(monkeypatch):
    escaping = fake_wetext(monkeypatch, lambda text: re.sub(r'(["\\])', r"\\\1", text).replace("3", "three"))
    assert escaping('3 "x" \\ \\"') == 'three "x" \\ \\"'
    idle = fake_wetext(monkeypatch, str.strip)
    assert idle(' 好\\"好 ') == '好\\"好'


def test_letters_of_any_script_leave_numbers_to_wetext(monkeypatch):
    normalizer = fake_wetext(monkeypatch, str.upper)
    texts = ("a3", "好a3", "3 é", "日本かa3", "오늘 a3", "я a3", "かな a3", "π a3", "ʼ3a")
    assert [normalizer(text) for text in texts] == [text.upper() for text in texts]


def test_a_missing_or_broken_wetext_means_plain_rules(monkeypatch, caplog):
    wetext_side.load_normalizer.cache_clear()
    monkeypatch.setitem(sys.modules, "wetext", None)
    with caplog.at_level(logging.WARNING):
        assert wetext_side.load_normalizer() is None
    assert "wetext is not installed, so plain rules read numbers" in caplog.text
    wetext_side.load_normalizer.cache_clear()
    monkeypatch.setitem(sys.modules, "wetext", types.ModuleType("wetext"))
    assert wetext_side.load_normalizer() is None
    assert "cannot be used" in caplog.text
    wetext_side.load_normalizer.cache_clear()


# What the original makes of it where it does; where it asserts, all that can be read is.
READ = {
    "The value of π is 3.14159.": "The value of pi is three point one four one five nine.",
    "5 µm and $3.50": "five µm and three point five dollars",
    "ʻOkina in 2024": "ʻOkina in twenty twenty four",
    "Я родился в 1985": "Я родился в nineteen eighty five",
    "かな and $3.50": "かな and three point five dollars",
    "Dr. Smith & co": "Dr. Smith & co",  # wetext 0.0.4 leaves a text without a digit alone
    "2024": "twenty twenty four",  # 0.1.8 would read it in Chinese, 0.0.4 did not
    "12345": "twelve thousand three hundred and forty five",
    " 2024.": "twenty twenty four.",
    "２０２４年": "二零二四年",
    "See [12]. On 2024-01-15 it cost $3.50 and 1,000,000 people paid 50%.": "See [twelve]. On the fifteenth of january "
    "twenty twenty four it cost three point five dollars and one million people paid fifty percent.",
    "Call +49 30 on Jan 5, 2024": "Call +forty-nine thirty on the fifth of january, twenty twenty four",
    "x²=5 costs $3.50": "x squared=five costs three point five dollars",
    '[1] is "$3.50" \\ 2': '[one] is "three point five dollars" \\ two',
    "[HH][AH0][L][OW1] there are 3": "[HH][AH0][L][OW1] there are three",
    "[AH0]": "[AH0]",
    "他读[AH0]三遍": "他读[AH0]三遍",
    "他有[AH0]3只": "他有[AH0]三只",
    "[breath]3 <strong>2024</strong> [OW1] ": "[breath]three <strong>twenty twenty four</strong> [OW1]",
}


@pytest.mark.parametrize("text", READ)
def test_numbers_are_read_around_what_wetext_cannot_read(text, wetext):
    assert text_normalize(text, words, split=False, normalizer=wetext) == READ[text]


@pytest.mark.parametrize(
    "spot", ["[12]", "5€", "3×4", "→5", "§5", "№5", "5😀", "5ü", "5ñ", "5™", "+49 30", "x²=5", "か5"]
)
@pytest.mark.parametrize("join", [" and ", ". ", ", ", "\n"])
def test_one_spot_spoils_no_other(spot, join, wetext, caplog):
    text = join.join(["On 2024-01-15", spot, "1,000,000 people paid $3.50"])
    with caplog.at_level(logging.WARNING):
        found = text_normalize(text, words, split=False, normalizer=wetext)
    assert found.startswith("On the fifteenth of january twenty twenty four")
    assert found.endswith("one million people paid three point five dollars")
    assert not re.search(r"\d", found)
    assert sum("wetext cannot read" in record.getMessage() for record in caplog.records) <= 1


@pytest.mark.parametrize("before", ["", "3 ", "好3", "x€5 "])
def test_special_tokens_survive_every_step(before, wetext):
    for token in SPECIAL_TOKENS:
        for normalizer in (None, wetext):
            for split_long in (False, True):
                made = text_normalize(f"{before}{token}7", words, False, True, normalizer, split_long)
                assert token in made and made.count("[") == token.count("[")


MISTAKEN = {
    "[Laughter] ha": "[laughter]",
    "【laughter】好": "[laughter]",
    "［breath］ a": "[breath]",
    "[i\u030c]": "[ǐ]",
    "[ah0]": "[AH0]",
    "[quick breath]": "[quick_breath]",
    "<Strong>a": "<strong>",
    "</STRONG>": "</strong>",
    "<laugh>": "<laughter>",
    "[sighs]": "[sigh]",
    "<|EndOfPrompt|>a": "<|endofprompt|>",
}


@pytest.mark.parametrize("text", MISTAKEN)
def test_what_only_looks_like_a_token_is_pointed_out_in_one_line(text, caplog):
    with caplog.at_level(logging.WARNING):
        text_normalize(text, words)
    (record,) = caplog.records
    assert record.getMessage().endswith(f"(nearest: {MISTAKEN[text]})")
    assert "\n" not in record.getMessage()


def test_brackets_that_do_not_look_like_a_token():
    for text in (
        "[12]",
        "[John Smith said]",
        "【公告】好",
        "1 < 2 and 3 > 2",
        "[breath]<strong>a</strong>[ǐ]",
        "[]",
        "f[x+y]",
    ):
        assert mistaken_tokens(text) == {}
    assert len(mistaken_tokens("".join(f"[w{i}]" for i in range(10_000)))) <= 20  # and at once


SILENT = ["❤️", "\u200b", "\ufeff", "👨\u200d👩\u200d👧", "👍🏽", "🇨🇳", "\u2060 \u00ad", "#️⃣", "\u0301", "\x00"]


@pytest.mark.parametrize("text", SILENT)
def test_texts_in_which_nothing_can_be_spoken_are_empty(text):
    assert text_normalize(text, words) == []
    assert text_normalize(f"a<|endofprompt|>{text}", words) == []
    assert text_normalize(f"a{text}", words) == [f"a{text}".strip("\u200b\ufeff") + "."]


def test_the_original_leaves_some_texts_in_one_piece_and_an_option_splits_them():
    """The first three are the original's own law."""
    sentence = "One, two, three, four, five, six, seven, eight, nine and 10 in the kitchen. "
    system = "Be kind.<|endofprompt|>"
    long = {
        system + sentence * 9: "kitchen.",
        "きょうはとてもいいてんきです。" * 30: "です。",
        "ab, " * 300 + "ab": "ab,",
    }
    for text, end in long.items():
        whole = text_normalize(text, list)
        assert len(whole) == 1
        pieces = text_normalize(text, list, split_long=True)
        assert len(pieces) > 2
        assert all(piece.strip().endswith(end.strip()) for piece in pieces[:-1])
        assert all(len(piece.removeprefix(system)) <= 160 for piece in pieces)
        assert all(piece.startswith(system) for piece in pieces) == text.startswith(system)
        joined = "".join(piece.removeprefix(system) for piece in pieces).replace(" ", "")
        assert joined.rstrip(".") == text.removeprefix(system).replace(" ", "").replace("10", "ten").rstrip(".")
    assert text_normalize(system, list, split_long=True) == []
    assert text_normalize(f"{system}4 cats", words, split=False, split_long=True) == f"{system}four cats"
    numbers = text_normalize("共1,234，" * 60, list, split_long=True)
    assert len(numbers) > 3 and all(piece.endswith(("1,234，", "。")) for piece in numbers)


def test_a_zero_width_start_is_not_spoken():
    assert text_normalize("\ufeff4 cats\u200b", words) == ["four cats."]


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
    # Marks that open the text go; of a run of marks the first stays, and every quote in it.
    expected = re.sub(
        rf'({mark}["”]?)((?:{mark}["”]?)*)',
        lambda run: run[1] + re.sub(mark, "", run[2]),
        re.sub(rf"\A{mark}+", "", text),
    )
    assert "".join(split_paragraph(text, words, lang, comma_split=comma_split)) == expected


# Both sides of each limit, the full stop counted: 61 + 19 and 61 + 20 characters for pieces of at most 80, a first
# sentence of 60 and 61, a rest of 19 and 20.
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
