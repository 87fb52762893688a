"""Rows of a decoder: when they enter and leave, that an error stays in its row, and requests that share a decoder."""

from itertools import islice

import numpy as np
import pytest

from parity_tests.driver_support import Speaker
from parity_tests.speech_support import SMALL
from port.batched.decoder import Decoder
from port.llm.sampling import SeededDraws
from port.request import Chance, Prompt

pytestmark = pytest.mark.part("batched.decoder")
PROMPT = np.array([[SMALL.llm.end_of_prompt]], np.int32)


@pytest.fixture(scope="module")
def llm(models):
    return models["port"].llm


@pytest.fixture
def sizes(llm, monkeypatch):
    """Positions and rows of each call of the network."""
    seen, plain = [], type(llm.qwen2).__call__
    monkeypatch.setattr(type(llm.qwen2), "__call__", lambda *a: (seen.append(a[1].shape[1::-1]), plain(*a))[1])
    return seen


def endless(scores, *_):
    return int(scores[: SMALL.llm.speech_token_size].argmax())


def asked(text=5, speech=4, sampling=endless, draws=None):
    """Arguments of a request."""
    rng = np.random.default_rng((text, speech))
    words, spoken = (rng.integers(10, 40, (1, count)).astype(np.int32) for count in (text, speech))
    return words, PROMPT, spoken, draws, sampling


def test_rows_wait_until_they_are_asked_for_and_there_is_room(llm, sizes):
    decoder = Decoder(llm, 2)
    rows = [decoder.inference(*asked(text, speech)) for text, speech in ((1, 4), (2, 0), (2, 3))]
    assert not sizes, "a request that only waits computes something"
    assert isinstance(next(rows[2]), int)
    assert rows[0].done and [len(row.tokens) for row in rows] == [20, 21, 1]  # 20 speech tokens for each text token
    assert sizes == [(7, 1), (4, 1), *[(1, 2)] * 20, (7, 1), (1, 2)]


@pytest.mark.parametrize("leave", ["close", "let go"])
def test_a_row_that_nobody_reads_leaves(llm, sizes, leave):
    decoder = Decoder(llm, 4)
    rows = [decoder.inference(*asked(5, speech)) for speech in (4, 9, 2)]
    waiting = decoder.inference(*asked(3))
    decoder.step()
    for at in (1, 0):
        if leave == "close":
            rows[at].close()
        del rows[at]
    decoder.step()
    assert sizes[-2:] == [(1, 4), (1, 2)] and waiting.tokens
    assert list(islice(rows[0], 30)) == list(islice(llm.inference(*asked(5, 2)), 30))
    waiting.close()
    rows[0].close()
    assert list(rows[0]) == [] and not decoder._cache.lengths, "keys and values that no row needs"


@pytest.mark.parametrize("broken", ["sampling", "scores", "prompt"])
def test_an_error_of_a_row_is_that_row_s_alone(llm, broken):
    def fails(scores, decoded_tokens, *_):
        if len(decoded_tokens) == 3:
            if broken == "sampling":
                raise RuntimeError("this row")
            llm.sampling_ids(np.full_like(scores, np.nan), [], None, endless, False)
        return endless(scores)

    decoder = Decoder(llm, 3)
    bad = decoder.inference(*asked(4, sampling=fails))
    good = [decoder.inference(*asked(6)) for _ in range(2)]
    if broken == "prompt":
        bad.lm_input = bad.lm_input[..., :1]  # of another width than the network's
    assert [len(list(islice(row, 9))) for row in good] == [9, 9]
    assert len(bad.tokens) == (0 if broken == "prompt" else 3) and bad.done
    assert list(islice(bad, len(bad.tokens))) == bad.tokens
    with pytest.raises((RuntimeError, ValueError), match=r"this row|no numbers|rms_norm"):
        next(bad)
    assert list(bad) == []


def test_a_step_that_fails_ends_the_rows_that_were_in_it(llm, monkeypatch):
    decoder = Decoder(llm, 2)
    rows = [decoder.inference(*asked()) for _ in range(3)]
    decoder.step()
    with monkeypatch.context() as patch:
        patch.setattr(llm, "scores", lambda hidden: hidden / None)
        decoder.step()
    for row in rows[:2]:
        assert isinstance(next(row), int)
        with pytest.raises(TypeError):
            next(row)
    assert list(rows[2]) == list(llm.inference(*asked()))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"prompt_text": np.array([[3]])}, "endofprompt"), ({"text": np.array([[5, 4000]])}, "text tokens")],
)
def test_a_request_is_checked_at_once(llm, change, message):
    names = ("text", "prompt_text", "prompt_speech_token", "draws", "sampling")
    decoder = Decoder(llm, 1)
    with pytest.raises(ValueError, match=message):
        decoder.inference(**dict(zip(names, asked(), strict=True)) | change)
    with pytest.raises(ValueError, match="max_rows"):
        Decoder(llm, 0)


def test_requests_of_the_driver_decode_together(models, sizes):
    """From the call of `tts` on, read in any order; each is as long as alone."""
    speaker = Speaker("port", models["port"])
    prompt, text = Prompt(**speaker.prompt, prompt_text=PROMPT), np.full((1, 4), 5, np.int32)

    def requests(**shared):
        how = {"strict_min_length": True, **shared}
        return [speaker.model.tts(prompt, text, chance=Chance(SeededDraws(seed)), **how) for seed in range(3)]

    alone = [[speech["tts_speech"].shape for speech in request] for request in requests()]
    steps = len(sizes)
    chunks = requests(decoder=Decoder(speaker.model.llm, 3))
    together = {at: [speech["tts_speech"].shape for speech in chunks[at]] for at in (2, 0, 1)}
    assert [together[at] for at in range(3)] == alone
    assert (1, 3) in sizes[steps:] and len(sizes) - steps < steps
