"""`CosyVoice3` on both sides, from a recording and a text to samples, and its saved voices."""

import logging
from importlib import import_module

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file, save_file

from parity_tests.harness.compare import compare
from parity_tests.harness.judge import Row
from parity_tests.harness.listening import listening
from parity_tests.harness.targets import swap
from parity_tests.speech_support import copy_folder, sides, write_voice
from port import noise
from port.config import ConfigError
from port.cosyvoice3 import CosyVoice3
from port.frontend.audio import AudioError
from port.speakers import FIELDS, SPEAKERS_FILE, SpeakerError, load_speakers, save_speakers
from port.storage import WeightsError

SYSTEM = "You are a helpful assistant.<|endofprompt|>"
WORDS, PROMPT_WORDS = "The morning train is late.", "How many people?"
LONGER = "The morning train is late, and the rain stopped."  # for two chunks
SLOWLY = "Please say this sentence slowly.<|endofprompt|>"
NOISE_FRAMES = 4000
NUDGES = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small lose more to waking a second thread than it computes, many times over on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def voices(parity):
    return sides(parity.models)


@pytest.fixture(params=["port", "single"], ids=["port", "reference"])
def voice(request, voices):
    """One side, without the voices that another test added."""
    chosen = getattr(voices, request.param)
    chosen.frontend.spk2info.clear()
    chosen.model.token_hop_len = chosen.model.config.streaming.token_hop_len
    return chosen


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A prompt whose frames do not fit its tokens (110 mel frames at 16 kHz, 27 tokens and a half), and a source."""
    folder = tmp_path_factory.mktemp("recordings")
    return write_voice(folder / "prompt.wav", 1.1, 22050), write_voice(folder / "source.wav", 2.6, 16000, 190)


REQUESTS = {
    "zero_shot": lambda v, prompt, source, words=WORDS, **o: v.inference_zero_shot(
        words, SYSTEM + PROMPT_WORDS, prompt, **o
    ),
    "cross_lingual": lambda v, prompt, source, words=WORDS, **o: v.inference_cross_lingual(SYSTEM + words, prompt, **o),
    "instruct2": lambda v, prompt, source, words=WORDS, **o: v.inference_instruct2(words, SLOWLY, prompt, **o),
    "sft": lambda v, prompt, source, words=WORDS, **o: v.inference_sft(SYSTEM + words, "saved", **o),
    "vc": lambda v, prompt, source, words=WORDS, seed=None, **o: v.inference_vc(source, prompt, **o),
    "bistream": lambda v, prompt, source, words=WORDS, **o: v.inference_zero_shot(
        iter([words[:7], words[7:10], words[10:]]),
        SYSTEM + PROMPT_WORDS,
        prompt,
        sampling=likely_to_end(v),
        **o,
    ),
}


def likely_to_end(voice):
    """Random weights would hardly ever choose the one stop token that may end arriving text; this sampler does."""
    config = voice.model.config.llm

    def sample(scores, *arguments):
        end = scores[config.eos] + 6
        scores[config.speech_token_size :] = -np.inf
        scores[config.eos] = end
        return voice_module(voice, "llm.sampling").ras_sampling(scores, *arguments)

    return sample


def voice_module(voice, name):
    return import_module(f"{type(voice).__module__.split('.')[0]}.{name}")


def request(voice, mode, recordings, flow_noise, **options):
    """Tokens, mel and samples of one request, arrays in the reference's layout, and the lengths of its chunks."""
    calls, original, is_port = [], voice.model.token2wav, isinstance(voice, CosyVoice3)

    def watched(token, **arguments):
        speech = original(token, **arguments)
        calls.append((np.array(token.tolist()), arguments["cache"].mel))
        return speech

    voice.model.token2wav = watched
    given = mx.array(swap(flow_noise)) if is_port else torch.from_numpy(flow_noise).to(voice.frontend.dtype)
    try:
        results = REQUESTS[mode](voice, *recordings, noise=given, reset_hop=True, **options)
        chunks = [np.array(result["tts_speech"].tolist()) for result in results]
    finally:
        del voice.model.token2wav
    tokens, mel = calls[-1]
    mel = swap(np.array(mel)) if is_port else mel.numpy()
    dtype = np.float64 if mel.dtype == np.float64 else np.float32
    wav = np.concatenate(chunks, axis=1).astype(dtype)
    return {"tokens": tokens, "mel": mel, "wav": wav, "chunks": np.array([[c.shape[1] for c in chunks]])}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("mode", REQUESTS)
def test_from_recording_and_text_to_samples(parity, voices, recordings, mode, stream):
    """Tokens and chunks equal; mel and samples as near to the truth as the float32 reference's own."""
    flow_noise = np.array(noise.rand_noise(NOISE_FRAMES))
    options = {"words": LONGER, "stream": stream, "seed": 0}
    if mode != "vc":
        options["strict_min_length"] = True  # long enough for two chunks, and no end in the middle of a bistream round
    if mode == "sft":
        for voice in (voices.port, voices.single, voices.double):
            voice.add_zero_shot_spk(SYSTEM, recordings[0], "saved")
    port, single, double = (
        request(voice, mode, recordings, flow_noise, **options) for voice in (voices.port, voices.single, voices.double)
    )
    assert port["chunks"].shape[1] > 1 or not stream
    # A pitch integrates to a phase: further float32 runs tell how far apart equally exact waveforms are.
    spread = np.sqrt(np.mean((single["mel"] - double["mel"]) ** 2))
    nudged = []
    for run in range(NUDGES):
        error = np.random.default_rng(run).standard_normal(flow_noise.shape).astype(np.float32)
        nudged.append(request(voices.single, mode, recordings, flow_noise + spread * error, **options))
    rows = []
    for output, truth in double.items():
        further = [run[output] for run in nudged] if output == "wav" else ()
        reading = compare(port[output], single[output], truth, nudged=further)
        name = f"speech.{mode}.{'stream' if stream else 'whole'}"
        module = "cosyvoice3.CosyVoice3.inference_" + ("zero_shot" if mode == "bistream" else mode)
        rows.append(Row(f"{name}.{output}", "whole", "chained", module, name, reading))
    if (mode, stream) == ("zero_shot", False):
        entry = listening("zero-shot, whole", single["wav"][0], port["wav"][0], voices.port.sample_rate)
        parity.sections.setdefault("audio", []).append(entry)
    parity.add(rows)


@pytest.mark.parametrize("mode", ["zero_shot", "cross_lingual", "instruct2"])
def test_tokens_are_equal_for_many_seeds(voices, recordings, mode):
    for seed in range(1, 4):
        lengths = [
            [result["tts_speech"].shape[1] for result in REQUESTS[mode](voice, *recordings, seed=seed)]
            for voice in (voices.port, voices.single)
        ]
        assert lengths[0] == lengths[1], f"seed {seed}"


# ---- what a mode gives to which network


def inputs_of(voice, monkeypatch, make):
    """What `CosyVoice3Model.tts` is called with."""
    seen = {}

    def tts(**arguments):
        seen.update(arguments)
        return iter(())

    monkeypatch.setattr(voice, "model", type("Model", (), {"tts": staticmethod(tts), "config": voice.model.config})())
    list(make())
    return seen


PARTS_OF_MODE = {
    "zero_shot": {*FIELDS},
    "cross_lingual": {*FIELDS} - {"prompt_text", "llm_prompt_speech_token"},
    "instruct2": {*FIELDS} - {"llm_prompt_speech_token"},
    "sft": {"flow_embedding"},
    "vc": {*FIELDS} - {"prompt_text", "llm_prompt_speech_token"} | {"source_speech_token"},
}


@pytest.mark.parametrize("mode", PARTS_OF_MODE)
def test_parts_of_the_prompt(voice, monkeypatch, recordings, mode):
    voice.add_zero_shot_spk(SYSTEM, recordings[0], "saved")
    seen = inputs_of(voice, monkeypatch, lambda: REQUESTS[mode](voice, *recordings, seed=0))
    assert {k for k in seen if k in FIELDS or k == "source_speech_token"} == PARTS_OF_MODE[mode]
    if mode != "sft":
        aligned = mode != "vc"
        assert seen["flow_prompt_speech_token"].shape == (1, 27 if aligned else 28)
        assert seen["prompt_speech_feat"].shape == (1, 54 if aligned else 55, 80)


def test_vc_keeps_what_the_prompt_has_too_much(voice, recordings):
    """55 frames against 28 tokens: as in the original, the frame that is missing is made and given out."""
    prompt, source = recordings
    plain, aligned = (
        sum(result["tts_speech"].shape[1] for result in voice.inference_vc(source, prompt, align_prompt=align))
        for align in (False, True)
    )
    assert (plain, aligned) == (65 * 960 + 480, 65 * 960)


def test_a_prompt_is_read_once_for_all_pieces(voice, monkeypatch, recordings):
    text = "One, two, three, four, five, six, seven, eight and nine in the kitchen with fresh bread. " * 4
    pieces = voice.frontend.text_normalize(text)
    assert len(pieces) > 1
    calls, original = [], voice.frontend.extract_speech_token
    monkeypatch.setattr(voice.frontend, "extract_speech_token", lambda wav: calls.append(wav) or original(wav))
    results = voice.inference_zero_shot(text, SYSTEM, recordings[0], seed=1)
    assert sum(1 for _ in results) == len(pieces)
    assert len(calls) == 1


def test_pieces_share_one_stream_of_numbers(voice, recordings):
    text = "One two three. " * 30
    first, second = (
        [np.array(r["tts_speech"].tolist()) for r in voice.inference_zero_shot(text, SYSTEM, recordings[0], seed=2)]
        for _ in range(2)
    )
    assert len(first) == len(second) > 1
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    if voice.frontend.text_normalize(text)[0] == voice.frontend.text_normalize(text)[1]:
        assert first[0].shape != first[1].shape or not np.array_equal(first[0], first[1])


def test_without_a_seed_every_request_is_new(voice, recordings):
    lengths = {
        sum(r["tts_speech"].shape[1] for r in voice.inference_zero_shot(WORDS, SYSTEM, recordings[0])) for _ in range(8)
    }
    assert len(lengths) > 1


def test_an_interrupted_request_leaves_the_object_usable(voice, recordings):
    def say():
        return voice.inference_zero_shot(WORDS, SYSTEM, recordings[0], stream=True, seed=0, reset_hop=True)

    expected = [r["tts_speech"].tolist() for r in say()]
    broken = say()
    next(broken)
    broken.close()
    assert [r["tts_speech"].tolist() for r in say()] == expected


def test_text_frontend_off_speaks_the_text_as_it_is(voice, monkeypatch, recordings):
    for text_frontend, words in ((True, "It is seven."), (False, "It is 7")):
        seen = inputs_of(
            voice,
            monkeypatch,
            lambda on=text_frontend: voice.inference_zero_shot("It is 7", SYSTEM, recordings[0], text_frontend=on),
        )
        monkeypatch.undo()
        assert voice.frontend.tokenizer.decode(seen["text"][0].tolist()) == words


def test_text_of_marks_alone_says_nothing(voice, recordings):
    assert list(voice.inference_zero_shot("...", SYSTEM, recordings[0])) == []


# ---- saved voices


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
        with pytest.raises(SpeakerError, match="no prompt"):
            bare.inference_zero_shot(WORDS, "", "", zero_shot_spk_id="bare")
        with pytest.raises(SpeakerError, match="no folder"):
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
    with pytest.raises(SpeakerError, match=words) as error:
        load_speakers(path, voices.port.model.config)
    assert "\n" not in str(error.value)


def test_files_that_are_no_speaker_files(voices, tmp_path):
    path, config = tmp_path / SPEAKERS_FILE, voices.port.model.config
    assert load_speakers(path, config) == {}
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(SpeakerError, match="not readable"):
        load_speakers(path, config)
    save_file({"model.weight": np.zeros(1, np.float32)}, path)
    with pytest.raises(SpeakerError, match="unknown tensor"):
        load_speakers(path, config)


@pytest.mark.parametrize("name", ["", "a\nb", "\x00"])
def test_speaker_names_that_do_not_print(voice, recordings, name):
    with pytest.raises(SpeakerError, match="printable"):
        voice.add_zero_shot_spk(SYSTEM, recordings[0], name)


# ---- refusals, one line each, before anything is computed


def refusals(tmp_path):
    long, poor = write_voice(tmp_path / "long.wav", 30.1, 16000), write_voice(tmp_path / "poor.wav", 1, 8000)
    good = write_voice(tmp_path / "good.wav", 1)
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    silence = tmp_path / "short.wav"
    soundfile.write(silence, np.zeros(200, np.float32), 24000)
    return {
        "longer than 30 s": lambda v: v.inference_zero_shot(WORDS, SYSTEM, long),
        "below 16000 Hz": lambda v: v.inference_cross_lingual(SYSTEM + WORDS, poor),
        "cannot be read": lambda v: v.inference_instruct2(WORDS, SYSTEM, text),
        "too short": lambda v: v.inference_vc(good, silence),
        "prompt of 30.1 s": lambda v: v.inference_vc(long, good),
        "text is empty": lambda v: v.inference_zero_shot("  \n", SYSTEM, good),
        "no <|endofprompt|>": lambda v: v.inference_zero_shot(WORDS, PROMPT_WORDS, good),
        "no <|endofprompt|> in": lambda v: v.inference_cross_lingual(WORDS, good),
        "no <|endofprompt|> in the": lambda v: v.inference_instruct2(WORDS, "Slowly.", good),
        "no <|endofprompt|> in the prompt": lambda v: v.inference_zero_shot(iter([WORDS]), "", good),
        "no <|endofprompt|> in the prompt text": lambda v: v.add_zero_shot_spk("", good, "x"),
        "'nobody' is not known": lambda v: v.inference_zero_shot(WORDS, "", "", zero_shot_spk_id="nobody"),
        "known speakers: none": lambda v: v.inference_sft(SYSTEM + WORDS, "nobody"),
        "outside 0..2^64-1": lambda v: v.inference_zero_shot(WORDS, SYSTEM, good, seed=-1),
    }


def test_refusals(voices, tmp_path):
    for words, ask in refusals(tmp_path).items():
        voices.port.frontend.spk2info.clear()
        with pytest.raises(ValueError) as error:
            ask(voices.port)
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_audio_errors_have_a_type_of_their_own(voices, tmp_path):
    with pytest.raises(AudioError):
        voices.port.inference_cross_lingual(SYSTEM + WORDS, tmp_path / "missing.wav")


def test_a_text_much_shorter_than_the_prompt_is_pointed_out(voice, recordings, caplog):
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
        [r["tts_speech"].tolist() for r in v.inference_zero_shot(WORDS, SYSTEM, recordings[0], seed=0)]
        for v in (loaded, voices.port)
    )
    assert found == expected
    loaded.add_zero_shot_spk(SYSTEM, recordings[0], "anna")
    loaded.save_spkinfo()
    assert CosyVoice3.from_pretrained(folder, lazy=True).list_available_spks() == ["anna"]
    assert len(load_file(folder / SPEAKERS_FILE)) == len(FIELDS)


def test_the_official_folder_speaks_through_the_reference(parity, voices, recordings):
    from reference.cosyvoice3 import CosyVoice3 as Reference

    onnx = {name: getattr(voices.single.model, name).state_dict() for name in ("speech_tokenizer", "speaker")}
    for dtype, expected in ((torch.float32, voices.single), (torch.float64, voices.double)):
        loaded = Reference.from_pretrained(parity.models.source, expected.model.config, onnx, dtype)
        loaded.frontend.normalizer = None
        one, other = (
            [r["tts_speech"].tolist() for r in v.inference_zero_shot(WORDS, SYSTEM, recordings[0], seed=0)]
            for v in (loaded, expected)
        )
        assert one == other


def test_folders_that_are_no_converted_model(parity, tmp_path):
    with pytest.raises(ConfigError, match="not found; give a folder written by"):
        CosyVoice3.from_pretrained(parity.models.source)
    with pytest.raises(WeightsError, match="no such folder"):
        CosyVoice3.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="has no revisions"):
        CosyVoice3.from_pretrained(parity.models.folder, revision="main")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def refuse(*args, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(WeightsError, match=r"the hub answers: no route$"):
        CosyVoice3.from_pretrained("someone/some-model")
