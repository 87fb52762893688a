"""The preamble that nobody should have to type, and the warning about a transcript that cannot fit."""

import numpy as np
import pytest

from parity_tests.speech_support import PROMPT_WORDS, SYSTEM, WORDS, write_voice
from port.frontend.special_tokens import END_OF_PROMPT, PREAMBLE
from port.frontend.transcript import syllables, warn_of_transcript
from tests.support.cli_support import heard, say

pytestmark = pytest.mark.part("cosyvoice3")


@pytest.fixture
def port(voices):
    """The port, without the voices that another test added."""
    voices.port.frontend.spk2info.clear()
    return voices.port


def given(voice, ask):
    """(prompt text or None, text) of each piece of a request, as the model gets it."""
    found, decode = [], lambda ids: voice.frontend.tokenizer.decode(ids[0].tolist(), skip_special_tokens=False)

    def tts(prompt, text, **_):
        before = None if prompt.prompt_text is None else decode(prompt.prompt_text)
        found.append((before, decode(text) if isinstance(text, np.ndarray) else "".join(map(decode, text))))
        return iter(())

    voice.model.tts = tts
    try:
        list(ask())
    finally:
        del voice.model.tts
    return found


MODES = {
    "zero-shot": (
        lambda v, wav, **o: v.inference_zero_shot(WORDS, PROMPT_WORDS, wav, **o),
        lambda v, wav, **o: v.inference_zero_shot(WORDS, SYSTEM + PROMPT_WORDS, wav, **o),
    ),
    "zero-shot, text that arrives": (
        lambda v, wav, **o: v.inference_zero_shot(iter(WORDS), PROMPT_WORDS, wav, **o),
        lambda v, wav, **o: v.inference_zero_shot(iter(WORDS), SYSTEM + PROMPT_WORDS, wav, **o),
    ),
    "cross-lingual": (
        lambda v, wav, **o: v.inference_cross_lingual(WORDS, wav, **o),
        lambda v, wav, **o: v.inference_cross_lingual(SYSTEM + WORDS, wav, **o),
    ),
    "instruct": (
        lambda v, wav, **o: v.inference_instruct2(WORDS, " Slowly.", wav, **o),
        lambda v, wav, **o: v.inference_instruct2(WORDS, f"{PREAMBLE} Slowly.{END_OF_PROMPT}", wav, **o),
    ),
    "instruct, preamble written": (
        lambda v, wav, **o: v.inference_instruct2(WORDS, f"{PREAMBLE} Slowly.", wav, **o),
        lambda v, wav, **o: v.inference_instruct2(WORDS, f"{PREAMBLE} Slowly.{END_OF_PROMPT}", wav, **o),
    ),
    "no instruction": (
        lambda v, wav, **o: v.inference_instruct2(WORDS, "", wav, **o),
        lambda v, wav, **o: v.inference_instruct2(WORDS, SYSTEM, wav, **o),
    ),
    "sft": (
        lambda v, wav, **o: v.inference_sft(WORDS, "saved", **o),
        lambda v, wav, **o: v.inference_sft(SYSTEM + WORDS, "saved", **o),
    ),
    "saved voice": (
        lambda v, wav, **o: v.inference_zero_shot(WORDS, "", "", "short", **o),
        lambda v, wav, **o: v.inference_zero_shot(WORDS, "", "", "saved", **o),
    ),
    "saved voice, cross-lingual": (
        lambda v, wav, **o: v.inference_cross_lingual(WORDS, "", "short", **o),
        lambda v, wav, **o: v.inference_cross_lingual(SYSTEM + WORDS, "", "saved", **o),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_preamble_is_put_where_people_would_type_it(port, recordings, mode):
    short, written = MODES[mode]
    port.add_zero_shot_spk(PROMPT_WORDS, recordings[0], "short")
    port.add_zero_shot_spk(SYSTEM + PROMPT_WORDS, recordings[0], "saved", raw_prompt=True)
    expected = given(port, lambda: written(port, recordings[0], raw_prompt=True))
    assert given(port, lambda: short(port, recordings[0])) == expected
    assert given(port, lambda: written(port, recordings[0])) == expected  # what is written stays as it is
    assert "".join(filter(None, expected[0])).count(END_OF_PROMPT) == 1


def test_the_reference_adds_no_preamble(voices, recordings):
    with pytest.raises(ValueError, match=r"no <\|endofprompt\|>"):
        voices.single.inference_cross_lingual(WORDS, recordings[0])


def test_what_people_wrote_is_still_read_and_cut(port, recordings):
    """The preamble is added afterwards: added before, it would stop spelling out and cutting, as in the original."""
    text = "The clock in the kitchen says 12. " * 20
    pieces = given(port, lambda: port.inference_cross_lingual(text, recordings[0]))
    assert len(pieces) > 1
    assert all(piece.startswith(SYSTEM) and "twelve" in piece and "12" not in piece for _, piece in pieces)
    [(before, said)] = given(port, lambda: port.inference_zero_shot("It is 3.", "How many? 7.", recordings[0]))
    assert (before, said) == (SYSTEM + "How many? seven.", "It is three.")
    [(before, said)] = given(port, lambda: port.inference_cross_lingual("It is 3.", recordings[0], text_frontend=False))
    assert said == SYSTEM + "It is 3."


def test_a_text_with_special_tokens(port, recordings):
    """Text with `<|...|>` is spoken as it is, as in the original; its own instruction serves the whole request."""
    ask = lambda text: given(port, lambda: port.inference_zero_shot(text, PROMPT_WORDS, recordings[0]))  # noqa: E731
    assert ask("It is <|im_end|> 3.") == [(SYSTEM + PROMPT_WORDS, "It is <|im_end|> 3.")]
    assert ask("Slowly.<|endofprompt|>It is 3.") == [(PROMPT_WORDS, "Slowly.<|endofprompt|>It is 3.")]


def test_punctuation_alone_says_nothing(port, recordings):
    assert given(port, lambda: port.inference_cross_lingual("...", recordings[0])) == []


def test_at_the_command_line(run, model, wavs, tmp_path):
    """The preamble need not be typed, and flags may have the names that other tools give them."""
    words = ("--text", WORDS, "--seed", 3, "-o")
    short = ("--prompt-text", PROMPT_WORDS), ("--ref-text", PROMPT_WORDS), ("--ref-text", SYSTEM + PROMPT_WORDS)
    for name, more in zip("abc", (*short[:2], (*short[2], "--raw-prompt")), strict=True):
        assert run(*say(model, wavs, *more, *words, tmp_path / f"{name}.wav"))[0] == 0
    assert len({heard(tmp_path / f"{name}.wav").tobytes() for name in "abc"}) == 1
    assert "--ref-audio" in (out := run("say", "--help")[1])
    assert "--voice" in out


# ---- transcripts

READ_IN_FOUR_SECONDS = {
    "Mandarin": "希望你以后能够做的比我还好呦。今天天气很好。",
    "Japanese": "おはようございます。きょうはいいてんきですね、さんぽにいきましょう。",
    "Korean": "안녕하세요. 오늘은 날씨가 정말 좋네요. 산책하러 갑시다.",
    "English": "Good morning. The weather is lovely today, so let us go for a walk.",
    "Russian": "Доброе утро. Сегодня прекрасная погода, пойдёмте гулять.",
    "German": "Guten Morgen. Das Wetter ist heute wunderschön, gehen wir spazieren.",
}


@pytest.mark.parametrize("language", READ_IN_FOUR_SECONDS)
def test_only_a_transcript_that_cannot_fit_gives_a_warning(language, caplog):
    text = READ_IN_FOUR_SECONDS[language]
    for seconds, said in ((1.2, "more than can be said in it"), (4, ""), (7, ""), (30, "too few for it, so words")):
        caplog.clear()
        warn_of_transcript(SYSTEM + text, np.zeros((1, round(25 * seconds))))
        assert [said in line for line in caplog.messages] == [True] * bool(said), (language, seconds)


def test_the_prompt_of_the_original_gives_no_warning(caplog):
    """Its zero_shot_prompt.wav has 3.5 s."""
    warn_of_transcript("希望你以后能够做的比我还好呦。", np.zeros((1, 87)))
    assert not caplog.messages


def test_tokens_and_digits_in_a_transcript():
    assert syllables("<strong>重</strong>[breath] 12") == 1 + 2 + 3 / 2.5


def test_a_transcript_is_checked_wherever_one_is_given(run, model, wavs, tmp_path, port, caplog, no_voices_left):
    long = write_voice(tmp_path / "long.wav", 12)
    port.inference_zero_shot(WORDS, PROMPT_WORDS, long)
    port.add_zero_shot_spk(PROMPT_WORDS, long, "x")
    said = "the recording has 12.0 s and its transcript about 5 syllables, too few for it"
    assert [line.startswith(said) for line in caplog.messages] == [True, True]
    code, _, err = run(*say(model, wavs, "--ref-text", WORDS * 5, "--text", WORDS * 5, "-o", tmp_path / "o.wav"))
    assert code == 0
    assert err.count("\n") == 1
    assert "so the speech may begin with what is left of them" in err
