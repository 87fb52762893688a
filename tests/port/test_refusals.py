"""What `CosyVoice3` refuses, one line each and before anything is computed, and the folders it loads from."""

import logging
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from convert.official import TOKENIZER_FOLDER
from parity_tests.speech_support import PROMPT_WORDS, SYSTEM, WORDS, copy_folder, write_voice
from port.cosyvoice3 import CosyVoice3
from port.files.errors import Refused
from port.files.storage import INDEX_FILE, WEIGHTS_FILE
from port.files.voices import FIELDS, VOICES
from port.request import Stream
from reference.cosyvoice3 import CosyVoice3 as Reference

pytestmark = pytest.mark.robust


def refusals(tmp_path):
    long, poor = write_voice(tmp_path / "long.wav", 30.1, 16000), write_voice(tmp_path / "poor.wav", 1, 8000)
    good = write_voice(tmp_path / "good.wav", 1)
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    short, silent = write_voice(tmp_path / "short.wav", 0.05), tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(24000, np.float32), 24000)
    return {
        "longer than 30 s": lambda v: v.inference_zero_shot(WORDS, SYSTEM, long),
        "below 16000 Hz": lambda v: v.inference_cross_lingual(SYSTEM + WORDS, poor),
        "cannot be read": lambda v: v.inference_instruct2(WORDS, SYSTEM, text),
        "short.wav: 0.050 s is too short": lambda v: v.inference_vc(good, short),
        "long.wav: 30.1 s is longer": lambda v: v.inference_vc(long, good),
        "short.wav: 0.050 s": lambda v: v.inference_zero_shot(WORDS, SYSTEM, short),
        "silent.wav: is silent": lambda v: v.inference_cross_lingual(SYSTEM + WORDS, silent),
        "silent.wav: is": lambda v: v.add_zero_shot_spk(SYSTEM, silent, "x"),
        "none.wav: no such file": lambda v: v.inference_zero_shot(WORDS, SYSTEM, tmp_path / "none.wav"),
        "text is empty: nothing": lambda v: v.inference_zero_shot("\ufeff", SYSTEM, good),
        "speed 0 is no tempo": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, speed=0),
        "speed nan is no tempo": lambda v: v.inference_cross_lingual(SYSTEM + WORDS, good, speed=float("nan")),
        "speed '1.5' is no tempo": lambda v: v.inference_vc(good, good, speed="1.5"),
        "speed True is no tempo": lambda v: v.inference_instruct2(WORDS, SYSTEM, good, speed=True),
        "speed inf is no tempo": lambda v: v.inference_vc(good, good, speed=10**400),
        "speed inf": lambda v: v.inference_vc(good, good, speed=10**5000),
        "seed 1.5 is no whole": lambda v: v.inference_cross_lingual(SYSTEM + WORDS, good, seed=1.5),
        "seed 'a' is no whole": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, seed="a"),
        "seed True is no whole": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, seed=True),
        "seed is outside": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, seed=10**5000),
        "stream 'yes' is neither": lambda v: v.inference_vc(good, good, stream="yes"),
        "split_long 'no' is neither": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, split_long="no"),
        "strict_min_length 1 is": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, strict_min_length=1),
        "sampling 3 cannot be called": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, sampling=3),
        "progress 3 cannot be called": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, progress=3),
        "incremental 'no' is neither": lambda v: Stream(incremental="no"),  # type: ignore[arg-type]
        "max_cache_bytes '2G' is no whole number": lambda v: Stream(max_cache_bytes="2G"),  # type: ignore[arg-type]
        "voice ['x'] is not known": lambda v: v.inference_sft(SYSTEM + WORDS, ["x"]),
        "voice 3 is not known": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, zero_shot_spk_id=3),
        "voice name 3 must": lambda v: v.add_zero_shot_spk(SYSTEM, good, 3),
        "speed -inf is no tempo": lambda v: v.inference_sft(SYSTEM + WORDS, "x", speed=-float("inf")),
        "leave out stream or speed": lambda v: v.inference_vc(good, good, stream=True, speed=1.5),
        "text is empty": lambda v: v.inference_zero_shot("  \n", SYSTEM, good),
        "no <|endofprompt|>": lambda v: v.inference_zero_shot(WORDS, PROMPT_WORDS, good, raw_prompt=True),
        "no <|endofprompt|> in": lambda v: v.inference_cross_lingual(WORDS, good, raw_prompt=True),
        "no <|endofprompt|> in the": lambda v: v.inference_instruct2(WORDS, "Slowly.", good, raw_prompt=True),
        "no <|endofprompt|> in the prompt": lambda v: v.inference_zero_shot(iter(WORDS), "", good, raw_prompt=True),
        "no <|endofprompt|> in the prompt text": lambda v: v.add_zero_shot_spk("", good, "x", raw_prompt=True),
        "that still arrives needs a prompt text": lambda v: v.inference_cross_lingual(iter([WORDS]), good),
        "raw_prompt 1 is": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, raw_prompt=1),
        "'nobody' is not known": lambda v: v.inference_zero_shot(WORDS, "", "", zero_shot_spk_id="nobody"),
        "known voices: none": lambda v: v.inference_sft(SYSTEM + WORDS, "nobody"),
        "outside 0..2^64-1": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, seed=-1),
    }


def test_refusals(voices, tmp_path, monkeypatch):
    """Before any network runs."""
    for part in ("speech_tokenizer", "speaker", "llm", "flow", "vocoder"):
        monkeypatch.setattr(type(getattr(voices.port.model, part)), "__call__", None, raising=False)
    for words, ask in refusals(tmp_path).items():
        voices.port.frontend.spk2info.clear()
        with pytest.raises(ValueError) as error:
            ask(voices.port)
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_text_of_a_wrong_type(voices, recordings):
    """Only strings and iterators of strings are text."""
    prompt = (SYSTEM, recordings[0])
    for text, said in ((["a"], "not list; pass iter"), (None, "not NoneType"), (b"a", "not bytes"), (3, "not int")):
        with pytest.raises(TypeError, match=said):
            voices.port.inference_zero_shot(text, *prompt)
    for words, kind in ((None, "NoneType"), (3, "int"), (b"a", "bytes"), (iter(["a"]), "list_iterator")):
        with pytest.raises(TypeError, match=f"prompt_text must be a string, not {kind}"):
            voices.port.inference_zero_shot(WORDS, words, recordings[0])
        with pytest.raises(TypeError, match=f"prompt_text must be a string, not {kind}"):
            voices.port.add_zero_shot_spk(words, recordings[0], "x")
        with pytest.raises(TypeError, match=f"instruct_text must be a string, not {kind}"):
            voices.port.inference_instruct2(WORDS, words, recordings[0])
    for text, said in (([], "held nothing to speak"), (["", " "], "held nothing"), (["\ufeff", "..."], "held nothing")):
        with pytest.raises(ValueError, match=said):
            list(voices.port.inference_zero_shot(iter(text), *prompt, seed=1))
    with pytest.raises(TypeError, match="a part of the text must be a string, not bytes"):
        list(voices.port.inference_zero_shot(iter(["a", b"b"]), *prompt, seed=1))


def test_long_texts_are_split_on_request(voice, recordings, monkeypatch):
    """By default, as in the original, a text with its instruction is one piece."""
    spoken = []
    monkeypatch.setattr(type(voice.model), "tts", lambda self, prompt, text, **_: spoken.append(text) or iter(()))
    text = SYSTEM + WORDS + " The clock says 12." * 30
    for split_long in (False, True):
        list(voice.inference_cross_lingual(text, recordings[0], split_long=split_long))
    assert len(spoken) > 3
    said = [voice.frontend.tokenizer.decode(tokens[0].tolist(), skip_special_tokens=False) for tokens in spoken]
    assert said[0] == text
    assert all(piece.startswith(SYSTEM) and "12" not in piece for piece in said[1:])


def test_a_text_much_shorter_than_the_prompt_gives_a_warning(voice, recordings, caplog):
    with caplog.at_level(logging.WARNING):
        voice.inference_zero_shot("Hi.", SYSTEM + PROMPT_WORDS, recordings[0])
    assert "much shorter" in caplog.text


# ---- folders


def test_a_converted_folder_speaks(parity, voices, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr("port.cosyvoice3.load_normalizer", lambda: None)
    folder = copy_folder(parity.models, tmp_path / "model")
    loaded = CosyVoice3.from_pretrained(folder)
    assert loaded.sample_rate == 24000
    assert loaded.list_available_spks() == []
    found, expected = (
        [r["tts_speech"].tolist() for r in v.inference_zero_shot(WORDS, SYSTEM, recordings[0], seed=1)]
        for v in (loaded, voices.port)
    )
    assert found == expected
    loaded.add_zero_shot_spk(SYSTEM, recordings[0], "anna")
    loaded.save_spkinfo()
    assert CosyVoice3.from_pretrained(folder, lazy=True).list_available_spks() == ["anna"]
    assert len(load_file(folder / VOICES / "anna.safetensors")) == len(FIELDS)


def test_the_official_folder_speaks_through_the_reference(parity, voices, recordings):
    onnx = {name: getattr(voices.single.model, name).state_dict() for name in ("speech_tokenizer", "speaker")}
    for dtype, expected in ((torch.float32, voices.single), (torch.float64, voices.double)):
        loaded = Reference.from_pretrained(parity.models.source, expected.model.config, onnx, dtype)
        loaded.frontend.normalizer = None
        one, other = (
            [r["tts_speech"].tolist() for r in v.inference_zero_shot(WORDS, SYSTEM, recordings[0], seed=1)]
            for v in (loaded, expected)
        )
        assert one == other


def test_folders_that_are_no_converted_model(parity, tmp_path):
    with pytest.raises(Refused, match="not found; give a folder written by"):
        CosyVoice3.from_pretrained(parity.models.source)
    with pytest.raises(Refused, match="no such folder"):
        CosyVoice3.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(Refused, match="has no revisions"):
        CosyVoice3.from_pretrained(parity.models.folder, revision="main")


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
BYTE_LEVEL = ("vocab.json", "merges.txt")  # instead of tokenizer.json


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        WEIGHTS_FILE,
        INDEX_FILE,
        "tokenizer.json",
        "tokenizer_config.json",
        "voices/x.safetensors",
        *BYTE_LEVEL,
    ],
)
def test_a_git_lfs_pointer_in_a_converted_folder(parity, tmp_path, name):
    """A clone without `git lfs`: every reader says what the file is and what to do."""
    folder = copy_folder(parity.models, tmp_path / "copy")
    if name in BYTE_LEVEL:
        for other in BYTE_LEVEL:
            shutil.copy(parity.models.source / TOKENIZER_FOLDER / other, folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(LFS_POINTER)
    with pytest.raises(Refused, match=rf"^{re.escape(str(folder / name))}: a Git LFS pointer .* `git lfs pull`"):
        CosyVoice3.from_pretrained(folder)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def refuse(*args, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr("port.files.hub.in_cache", lambda *_: None)
    with pytest.raises(
        Refused, match=r"hub cannot be reached \(ConnectionError\); nor is there such a folder here, and the"
    ):
        CosyVoice3.from_pretrained("someone/some-model")
