"""Numbers as read by the wetext that the original pins, special tokens, silent texts and long texts."""

import logging
import re

import pytest

from port.frontend.normalizer import MAX_STRETCH, WeTextNormalizer, stretches
from port.frontend.special_tokens import SPECIAL_TOKENS, mistaken_tokens
from port.frontend.text import text_normalize

pytestmark = pytest.mark.part("frontend.text")


def words(text):
    """Replaces the tokenizer."""
    return re.findall(r"\w+|[^\w\s]", text)


@pytest.fixture(scope="module")
def wetext():
    pytest.importorskip("wetext", reason="wetext is not installed (extra 'text')")
    return WeTextNormalizer()


# The original's result; where the original raises, everything readable is read.
READ = {
    "The value of π is 3.14159.": "The value of pi is three point one four one five nine.",
    "5 µm and $3.50": "five µm and three point five dollars",
    "ʻOkina in 2024": "ʻOkina in twenty twenty four",
    "Я родился в 1985": "Я родился в nineteen eighty five",
    "かな and $3.50": "かな and three point five dollars",
    "Dr. Smith & co": "Dr. Smith & co",  # wetext 0.0.4 does not change a text without digits
    "2024": "twenty twenty four",  # 0.1.8 reads it in Chinese, 0.0.4 did not
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
def test_numbers_are_read_beside_text_that_wetext_cannot_read(text, wetext):
    assert text_normalize(text, words, split=False, normalizer=wetext) == READ[text]


@pytest.mark.parametrize(
    "spot", ["[12]", "5€", "3×4", "→5", "§5", "№5", "5😀", "5ü", "5ñ", "5™", "+49 30", "x²=5", "か5"]
)
@pytest.mark.parametrize("join", [" and ", ". ", ", ", "\n"])
def test_an_unreadable_spot_does_not_affect_other_numbers(spot, join, wetext, caplog):
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


@pytest.mark.parametrize(
    "text", ["In 2024, 12 men, " * 200, "He paid $3.50. " * 200, "5" * 1200, "共3.5元。" * 300, "a b " * 400 + "7"]
)
def test_a_long_text_is_read_in_stretches(text, wetext):
    """wetext needs 7 s for 10 000 characters at once. The cuts do not change how a sentence is read."""
    parts = stretches(text)
    assert "".join(parts) == text
    assert max(map(len, parts)) <= MAX_STRETCH
    assert len(parts) <= 2 * len(text) // MAX_STRETCH + 1
    if "." in text:
        sentence = text[: text.index("。" if "。" in text else ". ") + 1]
        one = text_normalize(sentence, words, split=False, normalizer=wetext)
        whole = text_normalize(text, words, split=False, normalizer=wetext)
        assert whole.replace(" ", "") == one.replace(" ", "") * text.count(sentence)


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
def test_a_misspelt_special_token_gives_one_warning(text, caplog):
    for split_long in (False, True):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            text_normalize(text, words, split_long=split_long)
        (record,) = caplog.records
    assert record.getMessage().endswith(f"(nearest: {MISTAKEN[text]})")
    assert "\n" not in record.getMessage()


def test_ordinary_brackets_give_no_warning():
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
    for between in ("", "[breath]"):
        assert len(mistaken_tokens("".join(f"[w{i}]{between}" for i in range(10_000)))) <= 20  # and without delay


SILENT = [
    "❤️",
    "\u200b",
    "\ufeff",
    "👨\u200d👩\u200d👧",
    "👍🏽",
    "🇨🇳",
    "\u2060 \u00ad",
    "#️⃣",
    "\u0301",
    "\x00",
    "\u3164",
    "\u115f\u1160\uffa0",
]


@pytest.mark.parametrize("text", SILENT)
def test_texts_without_anything_to_speak_give_no_piece(text):
    assert text_normalize(text, words) == []
    assert text_normalize(f"a<|endofprompt|>{text}", words) == []
    assert text_normalize(f"a{text}", words) == [f"a{text}".strip("\u200b\ufeff") + "."]


def test_split_long_splits_texts_that_the_original_keeps_whole():
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


WITHOUT_ENGLISH_MARKS = {
    "Arabic": ("قطار الصباح متأخر ؟ ", "؟"),
    "Arabic commas": ("قطار الصباح متأخر، ", "،"),
    "Urdu": ("صبح کی ٹرین دیر سے ہے۔ ", "۔"),
    "Hindi": ("सुबह की ट्रेन देर से है। ", "।"),
    "a poem": ("the train is late and so am I\n", ","),
    "a Chinese poem": ("床前明月光疑是地上霜\n", "，"),
    "no marks": ("the train is late and so am I ", ("the", "train", "is", "late", "and", "so", "am", "I")),
    "no blanks": ("วันนี้อากาศดีมาก", ""),
}


@pytest.mark.parametrize("kind", WITHOUT_ENGLISH_MARKS)
def test_long_texts_of_any_kind_are_split_on_request(kind):
    """The original keeps each in one piece; the option splits at the best marks in it."""
    part, end = WITHOUT_ENGLISH_MARKS[kind]
    for system in ("", "Be kind.<|endofprompt|>"):
        assert len(text_normalize(system + part * 30, list)) == 1
        pieces = [piece.removeprefix(system) for piece in text_normalize(system + part * 30, list, split_long=True)]
        assert all(len(piece) <= 100 for piece in pieces)
        assert all(piece.strip().endswith(end) for piece in pieces[:-1])
        joined, whole = ("".join(t.split()).rstrip(".。") for t in ("".join(pieces), part * 30))
        assert joined.replace(",", "").replace("，", "") == whole


def test_no_token_or_accented_letter_is_split():
    units = ["[breath]", "e\u0301", "<strong>", "👨\u200d👩\u200d👧"]
    pieces = text_normalize("".join(units) * 30, list, split_long=True)
    assert len(pieces) > 3
    assert all(piece.startswith(tuple(units)) for piece in pieces)


def test_a_short_text_of_several_lines_is_not_split():
    text = "The train\nis late. So\nam I."
    assert text_normalize(text, list, split_long=True) == text_normalize(text, list) == [text]


def test_a_zero_width_start_is_not_spoken():
    assert text_normalize("\ufeff4 cats\u200b", words) == ["four cats."]
