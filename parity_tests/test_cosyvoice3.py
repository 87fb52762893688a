"""`CosyVoice3` on both sides, from a recording and a text to samples, and which network gets what."""

from importlib import import_module

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.compare import compare
from mlx_parity.judge import Row
from mlx_parity.sides.orders_pytorch import in_other_orders
from parity_tests.listening import listening
from parity_tests.parts import swap
from parity_tests.speech_support import LONGER, PROMPT_WORDS, SYSTEM, WORDS
from port import noise
from port.cosyvoice3 import CosyVoice3
from port.files.voices import FIELDS
from port.request import Stream

pytestmark = pytest.mark.part("cosyvoice3")

SLOWLY = "Please say this sentence slowly.<|endofprompt|>"
NOISE_FRAMES = 4000


REQUESTS = {
    "zero_shot": lambda v, prompt, source, words=WORDS, **o: v.inference_zero_shot(
        words, SYSTEM + PROMPT_WORDS, prompt, **o
    ),
    "cross_lingual": lambda v, prompt, source, words=WORDS, **o: v.inference_cross_lingual(SYSTEM + words, prompt, **o),
    "instruct2": lambda v, prompt, source, words=WORDS, **o: v.inference_instruct2(words, SLOWLY, prompt, **o),
    "sft": lambda v, prompt, source, words=WORDS, **o: v.inference_sft(SYSTEM + words, "saved", **o),
    "vc": lambda v, prompt, source, words=WORDS, seed=None, **o: v.inference_vc(source, prompt, **o),
    "bistream": lambda v, prompt, source, words=WORDS, **o: v.inference_zero_shot(
        iter([words[:7], words[7:10], words[10:]]), SYSTEM + PROMPT_WORDS, prompt, sampling=likely_to_end(v), **o
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
        options["stream"] = Stream(reset_hop=True) if options.get("stream") else False
        options["raw_prompt"] = True  # what the original does, and nothing for people's sake
        results = REQUESTS[mode](voice, *recordings, noise=given, **options)
        chunks = [np.array(result["tts_speech"].tolist()) for result in results]
    finally:
        del voice.model.token2wav
    tokens, mel = calls[-1]
    mel = swap(np.array(mel)) if is_port else mel.numpy()
    dtype = np.float64 if mel.dtype == np.float64 else np.float32
    wav = np.concatenate(chunks, axis=1).astype(dtype)
    return {"tokens": tokens, "mel": mel, "wav": wav, "chunks": np.array([[c.shape[1] for c in chunks]])}


def tokens_said(voice, make):
    """The speech tokens of each piece of a request; the networks that would say them are left out."""
    said, silent = [], mx.zeros((1, 0)) if isinstance(voice, CosyVoice3) else torch.zeros(1, 0)
    voice.model.token2wav = lambda token, **_: (said.append(token[0].tolist()), silent)[1]
    try:
        list(make())
    finally:
        del voice.model.token2wav
    return said


def test_zero_is_a_seed_like_any_other(voices, recordings):
    """Not the sign for none: the tokens are those of the reference, and always the same."""
    ask = lambda v, seed: tokens_said(  # noqa: E731
        v, lambda: v.inference_zero_shot(WORDS, SYSTEM, recordings[0], seed=seed, strict_min_length=True)
    )
    found = [ask(voices.port, 0) for _ in range(3)]
    assert found[0] == found[1] == found[2], "seed 0 is taken for none"
    assert found[0] == ask(voices.single, 0) != ask(voices.port, 1)


@pytest.mark.float32
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
    others = in_other_orders(lambda: request(voices.single, mode, recordings, flow_noise, **options))
    rows = []
    for output, truth in double.items():
        # Where other tokens were drawn the lengths differ, and there is nothing to compare.
        further = (run[output] for run in others if np.array_equal(run["tokens"], single["tokens"]))
        reading = compare(port[output], single[output], truth, further=further)
        name = f"speech.{mode}.{'stream' if stream else 'whole'}"
        module = "cosyvoice3.CosyVoice3.inference_" + ("zero_shot" if mode == "bistream" else mode)
        rows.append(Row(f"{name}.{output}", "whole", "chained", module, name, reading))
    if (mode, stream) == ("zero_shot", False):
        entry = listening("zero-shot, whole", single["wav"][0], port["wav"][0], voices.port.sample_rate)
        parity.keep("audio", [entry])
    parity.add(rows)


@pytest.mark.float32
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

    def tts(prompt, text=None, **arguments):
        seen.update(prompt.given(), text=text, **arguments)
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


@pytest.mark.float32
def test_pieces_share_one_stream_of_numbers(voices, recordings):
    """A seeded text of several pieces, on both sides token by token: the draws go on where the last piece ended."""
    text, sides = "One two three. " * 30, (voices.port, voices.single)
    pieces = voices.port.frontend.text_normalize(text)
    assert len(pieces) == 5 and pieces[1] == pieces[2] == pieces[3], "no pieces alike"
    port, reference = (
        tokens_said(v, lambda v=v: v.inference_zero_shot(text, SYSTEM, recordings[0], seed=2, strict_min_length=True))
        for v in sides
    )
    assert port == reference
    assert len(port) == len(pieces)
    assert port[1] != port[2] != port[3], "a piece begins the numbers anew"


def test_without_a_seed_every_request_is_new(voice, recordings):
    lengths = {
        sum(
            r["tts_speech"].shape[1]
            for r in voice.inference_zero_shot(WORDS, SYSTEM, recordings[0], strict_min_length=True)
        )
        for _ in range(8)
    }
    assert len(lengths) > 1


def test_an_interrupted_request_leaves_the_object_usable(voice, recordings):
    def say():
        options = {"stream": Stream(reset_hop=True), "seed": 0, "strict_min_length": True}
        return voice.inference_zero_shot(LONGER, SYSTEM, recordings[0], **options)

    expected = [r["tts_speech"].tolist() for r in say()]
    assert len(expected) > 1
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
