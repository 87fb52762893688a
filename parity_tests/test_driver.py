"""The model driver on both sides: chunks, tempo, silence, text that still arrives."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parity.compare import compare
from parity_tests.driver_support import SAMPLES, Speaker, joined, scripted, some_tokens, watched
from parity_tests.parts import swap
from parity_tests.speech_support import SMALL
from port import model as port_driver
from port.request import Prompt
from reference import model as reference_driver

pytestmark = pytest.mark.part("model.CosyVoice3Model")

# ---- chunks


def test_chunk_lengths_of_the_original(speaker):
    """10 prompt tokens and 120 tokens; the lengths are the original's."""
    assert speaker.lengths(120, stream=True) == [34560, 48000, 32640]
    assert speaker.lengths(120) == [115200]


@pytest.mark.parametrize("prompt", [0, 1, 24, 25, 26])
def test_first_chunk_fills_the_prompt_up_to_a_whole_chunk(models, prompt):
    speaker = Speaker("port", models["port"], prompt)
    first = (25 + -prompt % 25) * SAMPLES - 8 * 480  # the vocoder needs 8 frames of context
    assert speaker.lengths(60, stream=True)[0] == first


def test_a_chunk_needs_three_tokens_of_look_ahead(speaker):
    assert len(speaker.lengths(42, stream=True, reset_hop=True)) == 1
    assert len(speaker.lengths(43, stream=True, reset_hop=True)) == 2


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_very_short_speech(speaker, tokens):
    for stream in (False, True):
        assert speaker.lengths(tokens, stream=stream) == [tokens * SAMPLES]


def test_hop_grows_and_stays_as_in_the_original(speaker):
    assert speaker.model.token_hop_len == 25
    first = speaker.lengths(120, stream=True)
    assert speaker.model.token_hop_len == 100
    assert speaker.lengths(120, stream=True) == [115200] != first


def test_reset_hop_makes_streams_equal(speaker):
    first = speaker.say(120, stream=True)
    again = speaker.say(120, stream=True, reset_hop=True)
    assert [c.shape for c in again] == [c.shape for c in first]
    assert np.array_equal(joined(again), joined(first))
    assert speaker.model.token_hop_len == 100, "reset_hop must not change the object"


def test_a_long_remainder_joins_the_last_chunk_as_in_the_original(speaker):
    """With all tokens at hand the original compares with the padded first chunk, with arriving tokens with the hop."""
    hop, pad, tokens = 100, 90, 300
    speaker.model.token_hop_len = hop
    first = (hop + pad) * SAMPLES - 8 * 480
    assert speaker.lengths(tokens, stream=True) == [first, tokens * SAMPLES - first]
    arriving = speaker.lengths(text=20, stream=True, sampling=scripted(some_tokens(tokens)[0]))
    assert arriving == [first, hop * SAMPLES, tokens * SAMPLES - first - hop * SAMPLES]


def test_chunks_do_not_wait_for_more_tokens_than_they_need(speaker):
    seen: list[int] = []
    stream = speaker.stream(text=20, stream=True, sampling=scripted(some_tokens(130)[0], seen))
    needed = [25 + 15 + 3, 25 + 15 + 50 + 3]
    for count in needed:
        next(stream)
        assert len(seen) == count
    assert sum(c.shape[1] for c in stream) > 0
    assert len(seen) == 131


def test_language_model_and_given_tokens_agree(speaker):
    """The same tokens give the same samples, whether the language model or the caller provides them."""
    tokens = some_tokens(120)
    spoken = speaker.say(text=20, stream=True, reset_hop=True, sampling=scripted(tokens[0]))
    given_tokens = speaker.say(120, stream=True, reset_hop=True)
    assert np.array_equal(joined(spoken), joined(given_tokens))


def test_only_the_last_chunk_differs_from_one_streaming_pass(models):
    """As in the original, the last chunk is computed without the chunk mask."""
    model, prompt = models["port"], Speaker("port", models["port"]).prompt
    tokens = some_tokens(120)
    chunked = mels(models, "port", tokens, stream=True, reset_hop=True, causal_final=True)
    quirk = mels(models, "port", tokens, stream=True, reset_hop=True)
    arguments = (tokens, prompt["flow_prompt_speech_token"], prompt["prompt_speech_feat"], prompt["flow_embedding"])
    truth = reference_mel(models["reference"], arguments, torch.float64)
    single = reference_mel(models["reference"], arguments, torch.float32)
    whole = np.array(model.flow.inference(*arguments, streaming=True))
    for found in (chunked, whole):
        reading = compare(np.array(found), single, truth)
        assert reading.status == "PASS", reading.message
    spoken = 2 * (25 + 15 + 50)
    assert compare(quirk[:, :spoken], single[:, :spoken].copy(), truth[:, :spoken].copy()).status == "PASS"
    assert compare(quirk[:, spoken:], single[:, spoken:].copy(), truth[:, spoken:].copy()).status == "FAIL"


def mels(models, side, tokens, **options):
    """The mel of a whole request, (1, n, C)."""
    speaker = Speaker(side, models[side])
    with watched(speaker.model) as calls:
        speaker.say(tokens.shape[1], **options)
    return calls[-1][1].mel


def reference_mel(model, arguments, dtype):
    token, prompt_token, prompt_feat, embedding = (torch.from_numpy(np.array(a)) for a in arguments)
    flow = model.flow.to(dtype)
    try:
        feat = flow.inference(token, prompt_token, prompt_feat.to(dtype), embedding.to(dtype), streaming=True)
    finally:
        model.flow.float()
    return swap(feat.numpy())


# ---- tempo


@pytest.mark.part("model.interpolate")
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 120))
def test_interpolation_equals_torch(frames, size):
    mel = np.random.default_rng(frames * 121 + size).standard_normal((1, 3, frames)).astype(np.float32)
    single = reference_driver.interpolate(torch.from_numpy(mel), size).numpy()
    double = reference_driver.interpolate(torch.from_numpy(mel).double(), size).numpy()
    found = swap(np.array(port_driver.interpolate(mx.array(swap(mel)), size)))
    reading = compare(found, single, double)
    assert reading.status == "PASS", reading.message


@pytest.mark.parametrize(("speed", "frames"), [(1.25, 32), (0.8, 50), (3.0, 13), (0.501, 79)])
def test_speed_changes_the_length(speaker, speed, frames):
    assert speaker.lengths(20, speed=speed) == [frames * 480]


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf"), 1e9, 1e-9])
def test_impossible_speeds_are_refused(speaker, speed):
    with pytest.raises(ValueError, match="speed"):
        speaker.say(20, speed=speed)


def test_a_stream_has_no_speed(speaker):
    with pytest.raises(ValueError, match=r"speed 1\.5.*stream"):
        speaker.say(20, speed=1.5, stream=True)


def test_speed_of_a_chunk_is_refused(speaker):
    token = speaker.kit.tensor(some_tokens(20))
    cache = speaker.kit.get("model.SynthesisCache")()
    with pytest.raises(ValueError, match="speed"):
        speaker.model.token2wav(token, Prompt(**speaker.prompt), 0, cache, finalize=False, speed=1.5)


# ---- the language model's tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_without_speech_tokens_is_refused(speaker, stream):
    with pytest.raises(ValueError, match="no speech tokens"):
        speaker.say(text=4, stream=stream, sampling=scripted([]))


@pytest.mark.part("model.drop_silence")
def test_long_silences_are_shortened_unless_the_tokens_are_given(speaker):
    silent = [1, 2, 28, 29, 55, 1, 2, 28]  # eight in a row; five are kept
    tokens = [40, *silent, 41, *silent[:6], 42]
    assert speaker.lengths(text=4, sampling=scripted(tokens)) == [(3 + 5 + 5) * SAMPLES]
    given_tokens = speaker.kit.tensor(np.array([tokens], np.int32))
    (speech,) = speaker.model.tts(Prompt(**speaker.prompt), source_speech_token=given_tokens)
    assert speech["tts_speech"].shape[1] == len(tokens) * SAMPLES


def test_arriving_text_is_read_to_its_end(speaker):
    """As in the original: a round from the instruction alone, one from five text tokens, then the remaining text."""
    taken, kit = [], speaker.kit

    def text():
        for i in range(7):
            taken.append(i)
            yield kit.tensor(np.array([[5]], np.int32))

    fill, words = SMALL.llm.fill_token, list(some_tokens(60)[0])
    script = scripted([*words[:14], fill, *words[14:20], fill, *words[20:23]])
    prompt_text = kit.tensor(np.array([[SMALL.llm.end_of_prompt]], np.int32))
    result = list(speaker.model.tts(Prompt(**speaker.prompt, prompt_text=prompt_text), text(), sampling=script))
    assert [r["tts_speech"].shape[1] for r in result] == [23 * SAMPLES]
    assert taken == list(range(7))
