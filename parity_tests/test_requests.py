"""Requests one after another on one object, of any kind and in any order: each is what it is alone."""

import gc
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.compare import compare
from parity_tests.driver_support import SIDES, Speaker
from parity_tests.parts import swap
from parity_tests.speech_support import small_models
from port.noise import rand_noise

pytestmark = pytest.mark.part("model.CosyVoice3Model", late=1)

STREAM = {"stream": True, "reset_hop": True}
NUDGES = 2  # further float32 runs of the reference: a pitch integrates to a phase, see test_streaming.py


@dataclass(frozen=True)
class Request:
    """What is said with which voice; `port` are options that the reference has not, `chunks` after which it ends."""

    prompt: int  # tokens; a voice of its own for each number
    said: dict[str, Any]
    port: dict[str, Any] = field(default_factory=dict)
    chunks: int | None = None


# The prompt of 40 tokens leaves one chunk of the flow decoder's mask behind, that of 60 two.
REQUESTS = {
    "stream": Request(40, {"tokens": 90, **STREAM}),
    "another text": Request(40, {"tokens": 60, **STREAM, "causal_final": True}),
    "another voice": Request(60, {"tokens": 60, **STREAM}),
    "from text": Request(40, {"text": 12, "seed": 3, "strict_min_length": True, **STREAM}),
    "whole": Request(60, {"tokens": 30}),
    "slowly": Request(0, {"tokens": 20, "speed": 0.8}),
    "without room": Request(60, {"tokens": 60, **STREAM}, {"max_cache_bytes": 0}),
    "little room": Request(40, {"tokens": 90, **STREAM}, {"max_cache_bytes": 1 << 20}),
    "broken off": Request(40, {"tokens": 90, **STREAM}, chunks=1),
    "broken off later": Request(40, {"tokens": 90, **STREAM}, chunks=2),
}
# Each follows what it could be spoiled by: kept prompts, streams that never ended, other voices, memory that was full.
SEQUENCES = (
    ("stream", "another text", "stream", "another text"),
    ("broken off", "another voice", "broken off later", "another voice", "stream"),
    ("little room", "another voice", "without room", "stream", "from text"),
    ("slowly", "from text", "whole", "from text", "slowly"),
)


def noise(error=0.0, run=0):
    """The flow's noise for 300 frames, (1, 80, 300), off by so much."""
    z = np.array(rand_noise(300))
    return z + np.float32(error) * np.random.default_rng(run).standard_normal(z.shape).astype(np.float32)


def ask(side, model, request, z, dtype=torch.float32):
    """Chunks of a request, and what its last chunk has as mel, (1, n, C)."""
    speaker, caches = Speaker(side, model, request.prompt), []
    options = {**request.said, **(request.port if side == "port" else {})}
    if side == "port":
        options["noise"] = mx.array(swap(z))
    else:
        speaker.prompt = {k: v.to(dtype) if v.is_floating_point() else v for k, v in speaker.prompt.items()}
        options["noise"] = torch.from_numpy(z).to(dtype)
    token2wav = model.token2wav
    model.token2wav = lambda *a, cache, **k: (caches.append(cache), token2wav(*a, cache=cache, **k))[1]
    try:
        stream = speaker.stream(**options)
        chunks = [chunk for _, chunk in zip(range(request.chunks or 99), stream, strict=False)]
        stream.close()
    finally:
        del model.token2wav
    mel = np.array(speaker.kit.array(caches[-1].mel))
    return chunks, mel if side == "port" else swap(mel)


@pytest.fixture(scope="module")
def alone():
    """Each request on a fresh object of the reference: in float32, in float64, and in float32 nudged."""
    found = {}

    def give(request):
        key = f"{request.prompt} {request.said}"
        if key not in found:
            said, double = Request(request.prompt, request.said), small_models()[0].double()
            single = ask("reference", small_models()[0], said, noise())
            truth = ask("reference", double, said, noise(), torch.float64)
            spread = np.sqrt(np.mean((single[1] - truth[1]) ** 2))
            nudged = [ask("reference", small_models()[0], said, noise(spread, run)) for run in range(NUDGES)]
            found[key] = single, truth, [chunks for chunks, _ in nudged]
        return found[key]

    return give


@pytest.mark.float32
@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda names: ", ".join(names))
def test_each_of_many_requests_is_what_it_is_alone(alone, sequence):
    """The port against the reference's single request; the reference's own against itself, bit for bit."""
    reference, port = small_models()
    for i, name in enumerate(sequence):
        request = REQUESTS[name]
        (single, single_mel), (truth, true_mel), nudged = alone(request)
        again, _ = ask("reference", reference, request, noise())
        assert all(np.array_equal(a, b) for a, b in zip(again, single, strict=False)), f"reference: {i}. {name}"
        chunks, mel = ask("port", port, request, noise())
        assert [c.shape for c in chunks] == [c.shape for c in truth[: request.chunks]], f"port: {i}. {name}"
        n = mel.shape[1]
        reading = compare(mel, single_mel[:, :n].copy(), true_mel[:, :n].copy())
        assert reading.status == "PASS", f"mel of {i}. {name}: {reading.message}"
        for found, one, oracle, *further in zip(chunks, single, truth, *nudged, strict=False):
            reading = compare(found, one, oracle, further=further)
            assert reading.status == "PASS", f"{i}. {name}: {reading.message}"
    gc.collect()
    kept = port.stream_memory.nbytes
    port.stream_memory.clear()
    assert port.stream_memory.nbytes == 0, f"of {kept} bytes some belong to no prompt"


def test_the_third_request_costs_what_the_second_did():
    """A kept prompt is found again and again, whichever other was used meanwhile."""
    _, model = small_models()
    work = []
    for prompt in (40, 60, 40, 60, 40, 60):
        caches, token2wav = [], model.token2wav
        model.token2wav = lambda *a, cache, to=caches, call=token2wav, **k: (
            to.append(cache),
            call(*a, cache=cache, **k),
        )[1]
        list(Speaker("port", model, prompt).stream(45, **STREAM, causal_final=True))
        del model.token2wav
        work.append(caches[-1].work.frames)
    assert work[2:4] == work[4:6]
    assert work[0] - work[2] == 50 and work[1] - work[3] == 100, "the whole chunks of the prompt"


def test_the_tokens_of_any_request_are_those_of_the_request_alone():
    """The language model draws and keeps its keys anew, on both sides, token by token."""
    seeds = (5, 0, 5, 7, 0)
    for side, model in zip(SIDES, small_models(), strict=True):
        fresh = {s: tokens_of(side, small_models()[SIDES.index(side)], s) for s in set(seeds)}
        assert [tokens_of(side, model, s) for s in seeds] == [fresh[s] for s in seeds]
        assert fresh[0] != fresh[5] != fresh[7]


def tokens_of(side, model, seed):
    """What the driver has to say; the networks that would say it are left out."""
    speaker, seen = Speaker(side, model), []

    def token2wav(token, **_):
        seen.append(token.tolist())
        return speaker.kit.tensor(np.zeros((1, 0), np.float32))

    model.token2wav = token2wav
    try:
        speaker.say(text=20, seed=seed, strict_min_length=True)
    finally:
        del model.token2wav
    return seen[-1]
