"""Configurations of mlx-community's folders: sizes are the official ones, heads included, and no setting is ignored."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from port.config import CosyVoice3Config
from port.files import community_config as community
from port.files.errors import Refused
from tests.support import official_tensors
from tests.support.parsed_json import put

pytestmark = pytest.mark.part("files.community")

# As the converter of mlx-audio-plus 0.1.8 writes it for the official checkpoint.
PUBLISHED = json.loads((Path(__file__).parents[2] / "parity_tests" / "data" / "community_config.json").read_text())


@pytest.fixture(scope="module")
def official_arrays():
    """Every parameter at its official size, by shape alone: nothing is allocated."""
    every = [entry for part in official_tensors.PARTS for entry in official_tensors.entries(part)]
    return {entry.target: mx.zeros(entry.shape()) for entry in every if entry.target}


@pytest.mark.parametrize("hearing", [{}, {"n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 12}])
def test_the_published_folder_has_the_official_sizes(official_arrays, hearing):
    found = community.read_config(PUBLISHED, official_arrays, hearing)
    assert found == CosyVoice3Config()
    assert (found.llm.qwen2.num_attention_heads, found.llm.qwen2.num_key_value_heads) == (14, 2)
    assert (found.flow.dit.heads, found.flow.dit.dim_head, found.speech_tokenizer.heads) == (16, 64, 20)


@pytest.mark.parametrize(
    ("changes", "hearing", "said"),
    [
        ({"flow.dit.heads": 8, "flow.dit.dim_head": 128}, {}, "flow.dit: the official width has the official heads"),
        ({"llm.num_attention_heads": 7, "llm.num_key_value_heads": 1}, {}, "llm.qwen2: the official width"),
        ({}, {"n_audio_head": 10}, "speech_tokenizer: the official width has the official heads"),
        ({}, {"n_audio_head": "20"}, "speech_tokenizer.heads"),
        ({}, {"n_audio_layer": 6}, "n_audio_layer is 6, the weights have 12"),
        ({"llm.llm_input_size": 1024}, {}, "llm.llm_input_size"),
        ({"flow.dit.qk_norm": "rms"}, {}, "flow.dit.qk_norm: unknown setting"),
        ({"flow.output_type": "wav"}, {}, "flow.output_type: 'wav' is not supported"),
        ({"hifigan.causal": False}, {}, "hifigan.causal: False is not supported"),
        ({"hifigan.sampling_rate": 22050}, {}, "sampling_rate must be sample_rate"),
        ({"sample_rate": 22050}, {}, "sampling_rate must be sample_rate"),
        ({"llm.sampling_rate": 1}, {}, "llm.sampling_rate: unknown setting"),
        ({"flow.dit": 3}, {}, "dit: expected an object"),
    ],
)
def test_settings_that_do_not_fit(official_arrays, changes, hearing, said):
    with pytest.raises(Refused, match=said):
        community.read_config(put(PUBLISHED, changes), official_arrays, hearing)


def test_every_published_setting_is_followed(official_arrays):
    """Each number, when changed, changes the configuration or is refused."""
    for section in ("llm", "flow", "flow.dit", "hifigan"):
        place = PUBLISHED
        for name in section.split("."):
            place = place[name]
        for key, value in place.items():
            if isinstance(value, dict):
                continue
            other = value + 1 if isinstance(value, int) else [value[0] * 2, *value[1:]]
            content = put(PUBLISHED, {f"{section}.{key}": other})
            try:
                found = community.read_config(content, official_arrays, {})
            except Refused:
                continue
            assert found != CosyVoice3Config(), f"{section}.{key}"
