"""Change each field of a converted folder's config.json: it is written, read back, and refused or has an effect."""

import json
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest

from parity_tests.driver_support import scripted, some_tokens
from parity_tests.speech_support import SMALL, small_models
from port.config import CosyVoice3Config
from port.files import weights
from port.files.errors import Refused
from port.llm.sampling import SeededDraws, ras_sampling
from port.model import drop_silence
from port.request import Prompt, Stream

pytestmark = pytest.mark.part("config")

# For fields in which a slightly larger value would have no effect.
ALTERNATIVES = {
    "llm.qwen2.rms_norm_eps": 0.1,
    "llm.qwen2.rope_theta": 100.0,
    "llm.sampling.tau_r": 0.3,
    "llm.min_token_text_ratio": 18.0,
    "llm.max_token_text_ratio": 3.0,
    "flow.dit.static_chunk_size": 20,
    "flow.cfm.max_frames": 60,
    "streaming.max_hop_factor": 1,
    "vocoder.nsf_voiced_threshold": 1e4,
    "vocoder.audio_limit": 1e-3,
    "speech_tokenizer.norm_eps": 0.1,
    "speech_tokenizer.rope_theta": 100.0,
    "speaker.norm_eps": 0.1,
    "speaker.segment_frames": 60,
}


def leaves(part, path=""):
    """Path and value of each number of a configuration."""
    for field in fields(part):
        value, here = getattr(part, field.name), f"{path}.{field.name}".lstrip(".")
        if is_dataclass(value):
            yield from leaves(value, here)
        elif isinstance(value, tuple):
            yield from ((f"{here}.{i}", item) for i, item in enumerate(value))
        else:
            yield here, value


def other(path, value):
    """A different value of the same kind."""
    if path in ALTERNATIVES:
        return ALTERNATIVES[path]
    if isinstance(value, tuple):  # one list of a list of lists
        return (value[0] + 1, *value[1:])
    return value + 1 if isinstance(value, int) else 1.5 * value


def put(config, path, value):
    """The configuration with `value` at `path`."""
    name, _, rest = path.partition(".")
    if isinstance(config, tuple):
        items = list(config)
        items[int(name)] = put(items[int(name)], rest, value) if rest else value
        return tuple(items)
    return replace(config, **{name: put(getattr(config, name), rest, value) if rest else value})


FIELDS = dict(leaves(SMALL))
OF_STREAMS = [p for p in FIELDS if p.startswith("streaming")]
FOLLOWED = [pytest.param(p, marks=pytest.mark.part("model.CosyVoice3Model") if p in OF_STREAMS else ()) for p in FIELDS]


def outcome(run):
    """The result of a call as an array; an error message counts as a result."""
    try:
        return np.asarray(run())
    except ValueError as error:
        return np.array(str(error))


def part_of(path):
    return "silence" if "silent" in path else path.partition(".")[0]


def results(model, part):
    """Outputs of one part of the model, by name."""
    rng, nothing = np.random.default_rng(0), np.zeros((1, 0), np.int32)
    text, prompt = rng.integers(10, 40, (1, 6)).astype(np.int32), np.array([[5, SMALL.llm.end_of_prompt, 7]], np.int32)
    scores = np.log(rng.dirichlet(np.full(81, 0.3))).astype(np.float32)
    repeated = np.tile(np.argsort(-scores)[:6], 2).tolist()
    mel, frames = (mx.array(rng.standard_normal((1, n, c)).astype(np.float32)) for n, c in ((203, 128), (20, 80)))
    voice = some_tokens(10), frames, mx.array(rng.standard_normal((1, 8)).astype(np.float32))
    silence = [1] * 4 + [2] * 3 + [40, 28, 29, 30] + [2] * 7
    llm = model.llm

    def likeliest(scores, *_):
        return int(scores[: SMALL.llm.speech_token_size].argmax())

    def chosen():
        said = (repeated[: seed % 12] for seed in range(99))
        return [llm.sampling_ids(scores.copy(), s, SeededDraws(i), ras_sampling, False) for i, s in enumerate(said)]

    def streamed():
        chunks = model.tts(Prompt(voice[2]), source_speech_token=some_tokens(110), stream=Stream())
        return [chunk["tts_speech"].shape[1] for chunk in chunks]

    calls = {
        "llm": {
            "scores": lambda: llm.step(llm.embed_text(np.tile(text, 4)), llm.qwen2.make_cache()),
            "tokens": lambda: list(llm.inference(text, prompt, nothing, SeededDraws(0), strict_min_length=True)),
            "longest": lambda: list(llm.inference(text, prompt, nothing, None, lambda *_: 3)),
            "rounds": lambda: list(
                islice(llm.inference_bistream(iter([text] * 4), prompt, nothing, None, likeliest, True), 80)
            ),
            "choices": chosen,
        },
        "flow": {
            "mel": lambda: model.flow.inference(some_tokens(30), *voice),
            "streamed": lambda: model.flow.inference(some_tokens(30), *voice, streaming=True),
        },
        "vocoder": {"speech": lambda: model.vocoder.inference(frames)[0]},
        "speech_tokenizer": {"codes": lambda: model.speech_tokenizer.activations(mel, mx.array([203]))[0]},
        "speaker": {"x-vector": lambda: model.speaker(mel[:, :, :80])},
        "streaming": {"chunks": streamed},
        "silence": {
            "said": lambda: list(model.llm_job(text, prompt, nothing, None, scripted(silence))),
            "every": lambda: list(drop_silence(np.repeat(np.arange(2400), 9).tolist(), model.config.streaming)),
        },
        "sample_rate": {},  # refused: it must be the vocoder's
    }
    return {name: outcome(run) for name, run in calls[part].items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "out"
    weights.save(folder, small_models(forms=())[1], SMALL)
    return folder


@pytest.fixture(scope="module")
def heard(folder):
    """The outputs of each part, with the unchanged folder."""
    model = weights.load(folder)
    return {part: results(model, part) for part in set(map(part_of, FIELDS))}


def test_the_outputs_repeat_and_are_no_errors(folder, heard):
    model = weights.load(folder)
    for part, found in heard.items():
        again = results(model, part)
        assert all(np.array_equal(found[name], again[name]) for name in found)
        assert not [value for value in found.values() if value.dtype.kind == "U"]


@pytest.mark.parametrize("path", FIELDS)
def test_a_field_is_written_and_read(tmp_path, path):
    config = put(SMALL, path, other(path, FIELDS[path]))
    assert config != SMALL
    weights.save_config(tmp_path, config)
    content = json.loads((tmp_path / "config.json").read_text())
    for name in path.split("."):
        content = content[int(name) if name.isdigit() else name]
    assert content == json.loads(json.dumps(other(path, FIELDS[path])))
    with suppress(Refused):  # a size that does not fit the others
        assert CosyVoice3Config.load(tmp_path) == config


@pytest.mark.parametrize("path", FOLLOWED)
def test_a_changed_field_is_refused_or_changes_the_output(folder, heard, tmp_path, path):
    """The weights stay the same."""
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    weights.save_config(tmp_path, put(SMALL, path, other(path, FIELDS[path])))
    try:
        model = weights.load(tmp_path)
    except Refused as error:
        assert "\n" not in str(error)
        return
    part = part_of(path)
    found = results(model, part)
    assert any(not np.array_equal(found[name], value) for name, value in heard[part].items()), f"{path} changes nothing"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("llm.qwen2", {"num_attention_heads": 7, "num_key_value_heads": 1}),
        ("flow.dit", {"heads": 8, "dim_head": 128}),
        ("speech_tokenizer", {"heads": 10}),
    ],
)
def test_other_heads_at_the_official_width_are_refused(part, change):
    content = CosyVoice3Config().to_dict()
    assert CosyVoice3Config.from_dict(content) == CosyVoice3Config()
    place = content
    for name in part.split("."):
        place = place[name]
    place.update(change)
    with pytest.raises(Refused, match=f"{part}: the official width has the official heads"):
        CosyVoice3Config.from_dict(content)
