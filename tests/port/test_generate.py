"""`generate`: the speech of the `inference_*` methods, in results like those of mlx-audio."""

import mlx.core as mx
import numpy as np
import pytest

from parity_tests.speech_support import LONGER, PROMPT_WORDS, SYSTEM, WORDS
from port.generate import generate

pytestmark = pytest.mark.part("app")

INSTRUCTION = "Please speak slowly.<|endofprompt|>"


@pytest.fixture
def voice(voices):
    voices.port.frontend.spk2info.clear()
    return voices.port


def test_each_combination_of_arguments_is_a_mode(voice, recordings):
    prompt = recordings[0]
    voice.add_zero_shot_spk(SYSTEM + PROMPT_WORDS, prompt, "me")
    for asked, method in (
        (
            generate(voice, WORDS, ref_audio=prompt, ref_text=SYSTEM + PROMPT_WORDS, seed=1),
            voice.inference_zero_shot(WORDS, SYSTEM + PROMPT_WORDS, prompt, seed=1),
        ),
        (
            generate(voice, WORDS, ref_audio=prompt, instruct=INSTRUCTION, seed=1),
            voice.inference_instruct2(WORDS, INSTRUCTION, prompt, seed=1),
        ),
        (generate(voice, WORDS, "me", seed=1), voice.inference_zero_shot(WORDS, "", "", "me", seed=1)),
    ):
        (found,), (expected,) = asked, method
        assert np.array_equal(np.array(found.audio), np.array(expected["tts_speech"])[0])
        assert not found.is_streaming_chunk


def test_the_fields_of_a_result(voice, recordings):
    """Of each chunk of a stream."""
    voice.add_zero_shot_spk(SYSTEM + PROMPT_WORDS, recordings[0], "me")
    counted: list[int] = []
    results = list(generate(voice, LONGER, "me", stream=True, seed=1, strict_min_length=True, progress=counted.append))
    assert [result.segment_idx for result in results] == list(range(len(results)))
    assert len(results) > 1
    for result in results:
        assert result.is_streaming_chunk
        assert result.audio.shape == (result.samples,) and result.audio.dtype == mx.float32
        assert result.sample_rate == voice.sample_rate
        seconds = result.samples / result.sample_rate
        assert result.audio_duration == f"00:00:{seconds:06.3f}"
        assert result.real_time_factor == pytest.approx(result.processing_time_seconds / seconds)
        assert result.prompt["tokens"] == result.token_count
        assert result.audio_samples["samples"] == result.samples
        assert result.peak_memory_usage > 0
    assert sum(result.token_count for result in results) == len(counted)
    assert 960 * len(counted) == sum(result.samples for result in results)  # 40 ms a token


def test_one_voice(voice, recordings):
    for given in ({}, {"voice": "me", "ref_audio": recordings[0]}):
        with pytest.raises(ValueError, match="needs one voice"):
            generate(voice, WORDS, **given)
    with pytest.raises(ValueError, match="'nobody' is not known"):
        generate(voice, WORDS, "nobody")
