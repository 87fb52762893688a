"""Saved voices: what they say, and the file that keeps them for both sides."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from parity_tests.speech_support import PROMPT_WORDS, SYSTEM, WORDS
from port.files.errors import Refused
from port.files.speakers import SPEAKERS_FILE, load_speakers, save_speakers

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
        # The instruction gives way to the voice's prompt text, as in the original.
        "instruct2": (
            lambda: voice.inference_instruct2(WORDS, SYSTEM + PROMPT_WORDS, prompt, **options),
            lambda: voice.inference_instruct2(WORDS, "Quietly.", "", zero_shot_spk_id="anna", **options),
        ),
    }
    for _ in range(2):  # twice: the original takes parts out of the saved voice when a mode does not need them
        for by_prompt, by_name in asked.values():
            expected, found = ([r["tts_speech"].tolist() for r in make()] for make in (by_prompt, by_name))
            assert found == expected


def test_speaker_files_serve_both_sides(voices, recordings, tmp_path):
    path = tmp_path / SPEAKERS_FILE
    names = ["Anna.2 (tired)", "安娜"]
    for voice in (voices.port, voices.single):
        voice.frontend.spk2info.clear()
        for name in names:
            voice.add_zero_shot_spk(SYSTEM, recordings[0], name)
        voice.save_spkinfo(path)
        config = voice.model.config
        loaded = load_speakers(path, config)
        assert sorted(loaded) == sorted(names)
        again = type(voice.frontend)(
            voice.frontend.tokenizer, voice.model.speech_tokenizer, voice.model.speaker, config, None, loaded
        ).speakers()
        for name, fields in voice.frontend.speakers().items():
            assert all(np.array_equal(again[name][field], value) for field, value in fields.items())
        voice.frontend.spk2info.clear()
    assert [p.name for p in tmp_path.iterdir()] == [SPEAKERS_FILE]


def test_an_embedding_alone_is_a_voice_for_sft(voices, recordings, tmp_path):
    path, config = tmp_path / SPEAKERS_FILE, voices.port.model.config
    embedding = np.random.default_rng(0).standard_normal((1, config.flow.spk_embed_dim)).astype(np.float32)
    save_speakers(path, {"bare": {"flow_embedding": embedding}})
    for voice in (voices.port, voices.single):
        frontend = type(voice.frontend)(
            voice.frontend.tokenizer,
            voice.model.speech_tokenizer,
            voice.model.speaker,
            config,
            speakers=load_speakers(path, config),
        )
        bare = type(voice)(voice.model, frontend)
        assert sum(r["tts_speech"].shape[1] for r in bare.inference_sft(SYSTEM + WORDS, "bare", seed=0)) > 0
        with pytest.raises(Refused, match="no prompt"):
            bare.inference_zero_shot(WORDS, "", "", zero_shot_spk_id="bare")
        with pytest.raises(Refused, match="no folder"):
            bare.save_spkinfo()


def change(fields, **changed):
    return {name: changed.get(name, value) for name, value in fields.items() if changed.get(name, value) is not None}


DAMAGE = {
    "field missing": ("expected flow_embedding alone", lambda f: change(f, prompt_text=None)),
    "dtype": ("prompt_text is int64", lambda f: change(f, prompt_text=f["prompt_text"].astype(np.int64))),
    "rows": ("prompt_text is int32 \\[2", lambda f: change(f, prompt_text=np.repeat(f["prompt_text"], 2, axis=0))),
    "NaN": ("NaN", lambda f: change(f, flow_embedding=f["flow_embedding"] * np.nan)),
    "width": ("numbers, the model takes", lambda f: change(f, flow_embedding=f["flow_embedding"][:, :5])),
    "frames": ("does not fit", lambda f: change(f, prompt_speech_feat=f["prompt_speech_feat"][:, 1:])),
    "text id": ("outside 0", lambda f: change(f, prompt_text=f["prompt_text"] + 10**6)),
    "speech id": ("outside 0", lambda f: change(f, flow_prompt_speech_token=f["flow_prompt_speech_token"] - 10**4)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_speaker_files_are_refused(voices, recordings, tmp_path, damage):
    voices.port.frontend.spk2info.clear()
    voices.port.add_zero_shot_spk(SYSTEM, recordings[0], "x")
    words, harm = DAMAGE[damage]
    path = tmp_path / SPEAKERS_FILE
    save_file({f"x.{k}": np.ascontiguousarray(v) for k, v in harm(voices.port.frontend.speakers()["x"]).items()}, path)
    with pytest.raises(Refused, match=words) as error:
        load_speakers(path, voices.port.model.config)
    assert "\n" not in str(error.value)


def test_files_that_are_no_speaker_files(voices, tmp_path):
    path, config = tmp_path / SPEAKERS_FILE, voices.port.model.config
    assert load_speakers(path, config) == {}
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(Refused, match="not readable"):
        load_speakers(path, config)
    save_file({"model.weight": np.zeros(1, np.float32)}, path)
    with pytest.raises(Refused, match="unknown tensor"):
        load_speakers(path, config)


@pytest.mark.parametrize("name", ["", "a\nb", "\x00"])
def test_speaker_names_that_do_not_print(voice, recordings, name):
    with pytest.raises(Refused, match="printable"):
        voice.add_zero_shot_spk(SYSTEM, recordings[0], name)
