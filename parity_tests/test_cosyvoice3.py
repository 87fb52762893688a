"""`CosyVoice3` on both sides, from a recording and a text to samples, and the inputs that each network gets."""

from importlib import import_module
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.compare import compare
from mlx_parity.judge import Row
from mlx_parity.sides.orders_pytorch import in_other_orders
from parity_tests.driver_support import watched
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
    """A sampler that favours the only stop token that may end arriving text; random weights rarely choose it."""
    config = voice.model.config.llm
    sampling = import_module(f"{type(voice).__module__.split('.')[0]}.llm.sampling")

    def sample(scores, *arguments):
        end = scores[config.eos] + 6
        scores[config.speech_token_size :] = -np.inf
        scores[config.eos] = end
        return sampling.ras_sampling(scores, *arguments)

    return sample


def request(voice, mode, recordings, flow_noise, **options):
    """Tokens, mel, samples and chunk lengths of one request, in the reference's layout."""
    is_port = isinstance(voice, CosyVoice3)
    given = mx.array(swap(flow_noise)) if is_port else torch.from_numpy(flow_noise).to(voice.frontend.dtype)
    options["stream"] = Stream(reset_hop=True) if options.get("stream") else False
    options["raw_prompt"] = True  # as the original, without the port's conveniences
    with watched(voice.model) as calls:
        results = REQUESTS[mode](voice, *recordings, noise=given, **options)
        chunks = [np.array(result["tts_speech"].tolist()) for result in results]
    tokens, cache = calls[-1]
    mel = swap(np.array(cache.mel)) if is_port else cache.mel.numpy()
    dtype = np.float64 if mel.dtype == np.float64 else np.float32
    wav = np.concatenate(chunks, axis=1).astype(dtype)
    return {"tokens": np.array([tokens]), "mel": mel, "wav": wav, "chunks": np.array([[c.shape[1] for c in chunks]])}


def tokens_said(voice, make):
    """The speech tokens of each piece of a request, without the networks that turn them into sound."""
    silence = mx.zeros((1, 0)) if isinstance(voice, CosyVoice3) else torch.zeros(1, 0)
    with watched(voice.model, silence) as calls:
        list(make())
    return [tokens for tokens, _ in calls]


def test_zero_is_a_seed_like_any_other(voices, recordings):
    """Seed 0 does not mean "no seed": the tokens repeat and are the reference's."""

    def ask(v, seed):
        options = dict(seed=seed, strict_min_length=True)
        return tokens_said(v, lambda: v.inference_zero_shot(WORDS, SYSTEM, recordings[0], **options))

    found = [ask(voices.port, 0) for _ in range(3)]
    assert found[0] == found[1] == found[2], "seed 0 is taken as no seed"
    assert found[0] == ask(voices.single, 0) != ask(voices.port, 1)


@pytest.mark.float32
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("mode", REQUESTS)
def test_from_recording_and_text_to_samples(parity, voices, recordings, mode, stream):
    """Tokens and chunk lengths are equal; mel and samples are as exact as those of the float32 reference."""
    flow_noise = np.array(noise.rand_noise(NOISE_FRAMES))
    options = {"words": LONGER, "stream": stream, "seed": 0}
    if mode != "vc":
        options["strict_min_length"] = True  # long enough for two chunks, and no end inside a bistream round
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
        # A run that drew other tokens has other lengths and cannot be compared.
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
        port, reference = (
            tokens_said(v, lambda v=v, seed=seed: REQUESTS[mode](v, *recordings, seed=seed))
            for v in (voices.port, voices.single)
        )
        assert port == reference, f"seed {seed}"


# ---- inputs of the networks in each mode


def inputs_of(voice, monkeypatch, make):
    """Arguments that `CosyVoice3Model.tts` gets."""
    seen: dict[str, Any] = {}

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
def test_each_mode_passes_its_parts_of_the_prompt(voice, monkeypatch, recordings, mode):
    voice.add_zero_shot_spk(SYSTEM, recordings[0], "saved")
    seen = inputs_of(voice, monkeypatch, lambda: REQUESTS[mode](voice, *recordings, seed=0))
    assert {k for k in seen if k in FIELDS or k == "source_speech_token"} == PARTS_OF_MODE[mode]
    if mode != "sft":
        aligned = mode != "vc"
        assert seen["flow_prompt_speech_token"].shape == (1, 27 if aligned else 28)
        assert seen["prompt_speech_feat"].shape == (1, 54 if aligned else 55, 80)


def test_vc_keeps_the_prompts_extra_frame_unless_it_aligns(voice, recordings):
    """28 tokens have 56 frames and the prompt has 55; as in the original, the missing one is generated and returned."""
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
    reads = mock.Mock(wraps=voice.frontend.extract_speech_token)
    monkeypatch.setattr(voice.frontend, "extract_speech_token", reads)
    results = voice.inference_zero_shot(text, SYSTEM, recordings[0], seed=1)
    assert sum(1 for _ in results) == len(pieces)
    assert reads.call_count == 1


@pytest.mark.float32
def test_pieces_share_one_sequence_of_draws(voices, recordings):
    """The draws of a piece continue those of the piece before, so equal pieces get different tokens."""
    text, sides = "One two three. " * 30, (voices.port, voices.single)
    pieces = voices.port.frontend.text_normalize(text)
    assert len(pieces) == 5 and pieces[1] == pieces[2] == pieces[3], "the pieces differ"
    port, reference = (
        tokens_said(v, lambda v=v: v.inference_zero_shot(text, SYSTEM, recordings[0], seed=2, strict_min_length=True))
        for v in sides
    )
    assert port == reference
    assert len(port) == len(pieces)
    assert port[1] != port[2] != port[3], "a piece restarts the draws"


def test_without_a_seed_requests_differ(voice, recordings):
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


def test_text_of_punctuation_alone_gives_no_speech(voice, recordings):
    assert list(voice.inference_zero_shot("...", SYSTEM, recordings[0])) == []
