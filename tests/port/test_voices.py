"""Saved voices: how they speak, and their files, which both sides read."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from parity_tests.speech_support import PROMPT_WORDS, SYSTEM, WORDS
from port.files.errors import Refused
from port.files.voices import FIELDS, VOICES, Voice, check_name, load_voices, read_voice, save_voice, write_voice

pytestmark = pytest.mark.part("files")


def test_a_saved_voice_speaks_as_its_prompt(voice, recordings):
    prompt = recordings[0]
    assert voice.add_zero_shot_spk(SYSTEM + PROMPT_WORDS, prompt, "anna")
    assert voice.list_available_spks() == ["anna"]
    options = {"seed": 3}
    asked = {
        "zero_shot": (
            lambda: voice.inference_zero_shot(WORDS, SYSTEM + PROMPT_WORDS, prompt, **options),
            lambda: voice.inference_zero_shot(WORDS, "", "", zero_shot_spk_id="anna", **options),
        ),
        "cross_lingual": (
            lambda: voice.inference_cross_lingual(SYSTEM + WORDS, prompt, **options),
            lambda: voice.inference_cross_lingual(SYSTEM + WORDS, "", zero_shot_spk_id="anna", **options),
        ),
        # As in the original, the voice's prompt text replaces the instruction.
        "instruct2": (
            lambda: voice.inference_instruct2(WORDS, SYSTEM + PROMPT_WORDS, prompt, **options),
            lambda: voice.inference_instruct2(WORDS, "Quietly.", "", "anna", raw_prompt=True, **options),
        ),
    }
    for _ in range(2):  # twice: the original takes parts out of the saved voice when a mode does not need them
        for by_prompt, by_name in asked.values():
            expected, found = ([r["tts_speech"].tolist() for r in make()] for make in (by_prompt, by_name))
            assert found == expected


def test_an_instruction_takes_the_place_of_a_saved_prompt_text(voices, recordings):
    """As with the recording itself; the language model then gets no speech of the prompt."""
    port = voices.port
    port.frontend.spk2info.clear()
    port.add_zero_shot_spk(PROMPT_WORDS, recordings[0], "anna")
    by_prompt, by_name, other = (
        [r["tts_speech"].tolist() for r in port.inference_instruct2(WORDS, said, *whose, seed=3)]
        for said, whose in (("Slowly.", (recordings[0],)), ("Slowly.", ("", "anna")), ("Loudly.", ("", "anna")))
    )
    assert by_prompt == by_name != other


def test_voices_serve_both_sides(voices, recordings, tmp_path):
    names, config = ["Anna.2 (tired)", "安娜"], voices.port.model.config
    for one, other in ((voices.port, voices.single), (voices.single, voices.port)):
        one.frontend.spk2info.clear()
        for name in names:
            one.add_zero_shot_spk(SYSTEM, recordings[0], name)
        one.save_spkinfo(tmp_path)
        assert sorted(path.name for path in (tmp_path / VOICES).iterdir()) == [f"{name}.safetensors" for name in names]
        loaded = load_voices(tmp_path, config)
        held = again(other, loaded).frontend.spk2info
        assert list(loaded) == list(held) == names
        for name, voice in one.frontend.spk2info.items():
            assert loaded[name].text == held[name].text == SYSTEM
            for field, array in voice.given().items():
                assert np.array_equal(loaded[name].given()[field], np.asarray(array))
                assert np.array_equal(held[name].given()[field], np.asarray(array))
        one.frontend.spk2info.clear()


def again(side, saved):
    """The same model with the voices that were saved."""
    frontend, model = side.frontend, side.model
    made = type(frontend)(frontend.tokenizer, model.speech_tokenizer, model.speaker, model.config, voices=saved)
    return type(side)(model, made)


def test_an_embedding_alone_is_a_voice_for_sft(voices, recordings, tmp_path):
    config = voices.port.model.config
    embedding = np.random.default_rng(0).standard_normal((1, config.flow.spk_embed_dim)).astype(np.float32)
    save_voice(tmp_path, "bare", Voice(embedding), config)
    for voice in (voices.port, voices.single):
        bare = again(voice, load_voices(tmp_path, config))
        assert sum(r["tts_speech"].shape[1] for r in bare.inference_sft(SYSTEM + WORDS, "bare", seed=0)) > 0
        with pytest.raises(Refused, match="no prompt"):
            bare.inference_zero_shot(WORDS, "", "", zero_shot_spk_id="bare")
        with pytest.raises(Refused, match="no folder"):
            bare.save_spkinfo()


@pytest.fixture(scope="module")
def saved(voices, recordings):
    """A whole voice, as a file holds it."""
    prompt = voices.port.frontend.frontend_zero_shot(SYSTEM, recordings[0])
    arrays = {field: np.array(array) for field, array in prompt.given().items()}
    return Voice(**arrays, text=SYSTEM, licence="CC0")


def write(path, config, arrays, **notes):
    """Write a voice's file with any tensors and notes."""
    write_voice(path, Voice(np.ones((1, config.flow.spk_embed_dim), np.float32)), config)
    with safe_open(path, "np") as file:
        said = file.metadata() | notes
    save_file({field: np.ascontiguousarray(array) for field, array in arrays.items()}, path, said)


DAMAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "field missing": ("expected flow_embedding alone", dict(prompt_text=None)),
    "dtype": ("prompt_text is int64", dict(prompt_text=lambda array: array.astype(np.int64))),
    "rows": ("prompt_text is int32 \\[2", dict(prompt_text=lambda array: np.repeat(array, 2, axis=0))),
    "NaN": ("NaN", dict(flow_embedding=lambda array: array * np.nan)),
    "width": ("numbers, the model takes", dict(flow_embedding=lambda array: array[:, :5])),
    "frames": ("does not fit", dict(prompt_speech_feat=lambda array: array[:, 1:])),
    "text id": ("outside 0", dict(prompt_text=lambda array: array + 10**6)),
    "speech id": ("outside 0", dict(flow_prompt_speech_token=lambda array: array - 10**4)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_voices_are_refused(voices, saved, tmp_path, damage):
    """When they are read, and before they are written."""
    (words, change), config = DAMAGE[damage], voices.port.model.config
    ((field, harm),) = change.items()
    arrays = saved.given()
    harmed = arrays | {field: harm(arrays[field])} if harm else {f: a for f, a in arrays.items() if f != field}
    write(tmp_path / "x", config, harmed)
    with pytest.raises(Refused, match=words) as error:
        read_voice(tmp_path / "x", config)
    assert "\n" not in str(error.value)
    if damage != "dtype":  # which is converted
        with pytest.raises(Refused, match=words):
            write_voice(tmp_path / "y", Voice(**dict.fromkeys(FIELDS) | harmed), config)
        assert not (tmp_path / "y").exists()


def test_the_notes_of_a_voice_are_checked(voices, saved, tmp_path):
    config, arrays, path = voices.port.model.config, saved.given(), tmp_path / "x"
    wider = json.dumps(
        {"text_tokens": 5, "speech_tokens": 6561, "mel_bins": 80, "frames_of_a_token": 2, "embedding": 8}
    )
    for words, notes in {
        "not a voice, its format is 'x'": {"format": "x"},
        "has version '2' of the format": {"version": "2"},
        "made by another model: text_tokens is 5 there": {"sizes": wider},
        "does not say the sizes": {"sizes": "[" * 5000},
        "does not say the sizes of": {"sizes": "{}"},
        "more than 10000 characters": {"licence": "x" * 10_001},
    }.items():
        write(path, config, arrays, **notes)
        with pytest.raises(Refused, match=words):
            read_voice(path, config)
    write(path, config, arrays | {"model.weight": np.zeros(1, np.float32)})
    with pytest.raises(Refused, match="unknown tensor"):
        read_voice(path, config)


def test_files_that_are_no_voices(voices, tmp_path):
    config, path = voices.port.model.config, tmp_path / VOICES / "x.safetensors"
    assert load_voices(tmp_path, config) == {}
    path.parent.mkdir()
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(Refused, match="not readable"):
        load_voices(tmp_path, config)
    save_file({"flow_embedding": np.zeros((1, 192), np.float32)}, path)
    with pytest.raises(Refused, match="not a voice"):
        load_voices(tmp_path, config)
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(Refused, match="larger than 64 MiB"):
        load_voices(tmp_path, config)
    path.rename(path.with_name("con.safetensors"))
    with pytest.raises(Refused, match=r"con\.safetensors: voice name 'con'"):
        load_voices(tmp_path, config)


UNSAFE = ["", "a\nb", "\x00", "../x", "a/b", "a\\b", "C:x", ".x", "-x", " x", "x.", "x ", "NUL", "com1.x", "x?", 3]


@pytest.mark.parametrize("name", [*UNSAFE, "é" * 101], ids=ascii)
def test_names_that_some_system_does_not_take(voice, recordings, name):
    with pytest.raises(Refused, match=r"voice name .*(safe as a file name|bytes)"):
        voice.add_zero_shot_spk(SYSTEM, recordings[0], name)


def test_a_name_is_one_however_its_accents_are_written(tmp_path, voices):
    config = voices.port.model.config
    bare = Voice(np.ones((1, config.flow.spk_embed_dim), np.float32))
    assert check_name("Ame\u0301lie") == "Am\u00e9lie"
    save_voice(tmp_path, "Ame\u0301lie", bare, config)
    save_voice(tmp_path, "Am\u00e9lie", bare, config)
    with pytest.raises(Refused, match="many file systems treat it as 'Amélie'"):
        save_voice(tmp_path, "AMÉLIE", bare, config)
    assert list(load_voices(tmp_path, config)) == ["Amélie"]
