"""Requests of any kind in any order on one object: each gives what it gives alone."""

import gc
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.compare import compare
from parity_tests.driver_support import SIDES, Speaker, watched
from parity_tests.parts import swap
from parity_tests.speech_support import small_models
from port.noise import rand_noise

pytestmark = pytest.mark.part("model.CosyVoice3Model", late=1)

STREAM = {"stream": True, "reset_hop": True}
NUDGES = 2  # further float32 runs of the reference: pitch errors add up in the phase, so one run may be lucky


@dataclass(frozen=True)
class Request:
    """A request: `port` are options that the reference lacks; it is interrupted after `chunks` chunks."""

    prompt: int  # its tokens; each number has its own voice
    said: dict[str, Any]
    port: dict[str, Any] = field(default_factory=dict)
    chunks: int | None = None


# The prompt of 40 tokens fills one chunk of the flow decoder's mask, that of 60 two.
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
# Each follows something that could disturb it: kept prompts, unfinished streams, other voices, full memory.
SEQUENCES = (
    ("stream", "another text", "stream", "another text"),
    ("broken off", "another voice", "broken off later", "another voice", "stream"),
    ("little room", "another voice", "without room", "stream", "from text"),
    ("slowly", "from text", "whole", "from text", "slowly"),
)


def noise(error=0.0, run=0):
    """The flow's noise for 300 frames, (1, 80, 300), plus a random error of this size."""
    z = np.array(rand_noise(300))
    return z + np.float32(error) * np.random.default_rng(run).standard_normal(z.shape).astype(np.float32)


def ask(side, model, request, z, dtype=torch.float32):
    """Chunks of a request, and its mel, (1, n, C)."""
    speaker = Speaker(side, model, request.prompt)
    options = {**request.said, **(request.port if side == "port" else {})}
    if side == "port":
        options["noise"] = mx.array(swap(z))
    else:
        speaker.prompt = {k: v.to(dtype) if v.is_floating_point() else v for k, v in speaker.prompt.items()}
        options["noise"] = torch.from_numpy(z).to(dtype)
    with watched(model) as calls:
        stream = speaker.stream(**options)
        chunks = [chunk for _, chunk in zip(range(request.chunks or 99), stream, strict=False)]
        stream.close()
    mel = np.array(speaker.kit.array(calls[-1][1].mel))
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
def test_each_of_many_requests_gives_what_it_gives_alone(alone, sequence):
    """The port is compared with the reference's request alone; the reference gives equal bits again."""
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
    assert port.stream_memory.nbytes == 0, f"{port.stream_memory.nbytes} of {kept} bytes belong to no kept prompt"


def test_the_third_request_costs_what_the_second_did():
    """A kept prompt is found every time, although another is used in between."""
    _, model = small_models()
    work = []
    for prompt in (40, 60, 40, 60, 40, 60):
        with watched(model) as calls:
            Speaker("port", model, prompt).say(45, **STREAM, causal_final=True)
        work.append(calls[-1][1].work.frames)
    assert work[2:4] == work[4:6]
    assert work[0] - work[2] == 50 and work[1] - work[3] == 100, "the saved work is not the whole chunks of the prompt"


def test_the_tokens_of_a_request_do_not_depend_on_earlier_ones():
    """On both sides the language model starts with new draws and an empty cache."""
    seeds = (5, 0, 5, 7, 0)
    for side, model in zip(SIDES, small_models(), strict=True):
        fresh = {s: tokens_of(side, small_models()[SIDES.index(side)], s) for s in set(seeds)}
        assert [tokens_of(side, model, s) for s in seeds] == [fresh[s] for s in seeds]
        assert fresh[0] != fresh[5] != fresh[7]


def tokens_of(side, model, seed):
    """The speech tokens of a text, without the networks that turn them into sound."""
    speaker = Speaker(side, model)
    with watched(model, speaker.kit.tensor(np.zeros((1, 0), np.float32))) as calls:
        speaker.say(text=20, seed=seed, strict_min_length=True)
    return calls[-1][0]
