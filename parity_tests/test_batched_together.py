"""Many requests at once: each piece equals the original's result for it alone, even if other requests fail."""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.compare import compare
from mlx_parity.judge import Row
from mlx_parity.sides.orders_pytorch import in_other_orders
from parity_tests.adapters.own import SIDES
from parity_tests.driver_support import scripted, some_tokens
from parity_tests.parts import swap
from parity_tests.speech_support import SMALL
from port.batched import together as batched
from port.batched.rows import Limits
from port.batched.spoken import Piece, Spoken
from port.batched.together import default_batch_size, together
from port.llm.sampling import SeededDraws
from port.noise import rand_noise
from port.request import MOST_ROWS, Options, Prompt

pytestmark = pytest.mark.part("batched.together")

BATCHED = "batched.together"
NOISE = np.array(rand_noise(400))
SILENCE = SMALL.streaming.silent_tokens[0]


@dataclass(frozen=True)
class Asked:
    """Pieces (a text's length, None for a pause, or speech tokens), number of prompt tokens, options."""

    pieces: list
    prompt: int
    options: dict = field(default_factory=dict)


def silences():
    """New options for each run, because a script can be read only once."""
    return {"sampling": scripted([40, *[SILENCE] * 9, 41, 42])}


ASKED = {
    "pieces": Asked([2, None, 1, 1], 4, dict(seed=1, pause=0.01)),
    "faster": Asked([2], 10, dict(seed=1, speed=1.5)),
    "tokens": Asked([some_tokens(7)], 6),
    "silences": Asked([6], 0, dict(silences=True)),
    "no prompt": Asked([1, some_tokens(5)], 0, dict(seed=3)),
    "long": Asked([3], 7, dict(seed=4)),
}


def inputs(asked, side):
    """The prompt, and the arguments of `tts` for each piece, on one side."""
    rng, p = np.random.default_rng(asked.prompt), asked.prompt
    prompt = {
        "flow_embedding": rng.standard_normal((1, 8)).astype(np.float32),
        "prompt_text": np.array([[SMALL.llm.end_of_prompt]], np.int32),
        "llm_prompt_speech_token": rng.integers(0, 81, (1, p)).astype(np.int32),
        "flow_prompt_speech_token": rng.integers(0, 81, (1, p)).astype(np.int32),
        "prompt_speech_feat": rng.standard_normal((1, 2 * p, 80)).astype(np.float32),
    }
    pieces = [
        None
        if piece is None
        else {"text": side.tensor(np.full((1, piece), 5, np.int32))}
        if isinstance(piece, int)
        else {"source_speech_token": side.tensor(piece)}
        for piece in asked.pieces
    ]
    return Prompt(**{name: side.tensor(value) for name, value in prompt.items()}), pieces


def options(asked, noise):
    more = dict(asked.options)
    more |= silences() if more.pop("silences", False) else {}
    return Options(noise=noise, **{"strict_min_length": "sampling" not in more, **more})


def spoken(model, asked, **more):
    prompt, pieces = inputs(asked, SIDES["port"]())
    chosen = options(Asked(asked.pieces, asked.prompt, asked.options | more), mx.array(swap(NOISE)))
    return Spoken(model, prompt, [Piece(piece, f"piece {i}") for i, piece in enumerate(pieces)], chosen, lambda: None)


@pytest.fixture(scope="module")
def reference(models):
    """The original's waves for the pieces of a request, one by one; a pause is silence."""
    doubled = copy.deepcopy(models["reference"]).double()

    def say(name, dtype):
        model, asked = models["reference"] if dtype == torch.float32 else doubled, ASKED[name]
        prompt, pieces = inputs(asked, SIDES["reference"](dtype))
        chosen = options(asked, torch.from_numpy(NOISE).to(dtype))
        draws = SeededDraws(chosen.seed or 0)
        with torch.inference_mode():
            return [
                np.zeros((1, round(24000 * chosen.pause)))
                if piece is None
                else torch.cat(
                    [r["tts_speech"] for r in model.tts(prompt, **piece, **chosen.of_model(draws))], 1
                ).numpy()
                for piece in pieces
            ]

    return say


@pytest.fixture
def one_by_one(monkeypatch):
    """No two pieces share a pass of the flow decoder or the vocoder."""
    for name in ("flow_limits", "vocoder_limits"):
        monkeypatch.setattr(batched, name, lambda: Limits(0, 0))


@pytest.fixture
def all_in_one(monkeypatch):
    """Groups as large as possible, on any device."""
    for name in ("flow_limits", "vocoder_limits"):
        monkeypatch.setattr(batched, name, lambda: Limits(1 << 20, 1 << 20))


def fails(*_):
    raise ZeroDivisionError("by the sampling")


def fails_late(scores, tokens, *_):
    return fails() if len(tokens) > 2 else 40


BROKEN = {
    "prepare": lambda model: fails(),
    "sampling": lambda model: spoken(model, Asked([3, 3], 4), sampling=fails_late),
    "progress": lambda model: spoken(model, Asked([3], 4), progress=fails),
    "tempo": lambda model: spoken(model, Asked([some_tokens(4), 30], 2), speed=1e9),
    "noise": lambda model: spoken(model, Asked([some_tokens(300)], 0)),
    "stream": lambda model: spoken(model, Asked([3], 4), stream=True),
}


def waves(results):
    return [np.array(result["tts_speech"]) for result in results]


@pytest.mark.parametrize("size", [2, 8])
def test_each_request_is_as_it_is_alone(models, one_by_one, size):
    """Bit for bit if no two share a pass, even with requests in the batch that fail at every stage."""
    model = models["port"]
    counts, alone = ({name: list[int]() for name in ASKED} for _ in range(2))
    calls = [(name, partial(spoken, model, asked, progress=counts[name].append)) for name, asked in ASKED.items()]
    broken = [(name, partial(make, model)) for name, make in BROKEN.items()]
    mixed = [call for pair in zip(calls, broken, strict=True) for call in pair]
    made: dict[str, Any] = dict(together(model, iter([*mixed, ("empty", partial(spoken, model, Asked([], 4)))]), size))
    assert len(made) == len(ASKED) + len(BROKEN) + 1
    assert made["empty"] == []
    assert {name for name, results in made.items() if isinstance(results, Exception)} == BROKEN.keys()
    for name, asked in ASKED.items():
        expected = list(spoken(model, asked, progress=alone[name].append))
        assert counts[name] == alone[name], name
        assert [(r["piece"], r["text"]) for r in made[name]] == [(r["piece"], r["text"]) for r in expected]
        for found, wave in zip(waves(made[name]), waves(expected), strict=True):
            assert np.array_equal(found, wave), name


@pytest.mark.float32
def test_pieces_of_one_pass_are_what_the_original_says_of_each_alone(parity, models, reference, all_in_one):
    made = dict(together(models["port"], [(n, partial(spoken, models["port"], a)) for n, a in ASKED.items()], 8))
    found = []
    for name, asked in ASKED.items():
        others = in_other_orders(partial(reference, name, torch.float32))  # made only if one is in doubt
        single, double = (reference(name, dtype) for dtype in (torch.float32, torch.float64))
        for i, wave in enumerate(waves(made[name])):
            if asked.pieces[i] is not None:
                reading = compare(wave, single[i], double[i], further=(run[i] for run in others))
                case = f"{BATCHED}.{name.replace(' ', '_')}.{i}"
                found.append(Row(f"{case}.wav", "whole", "chained", BATCHED, case, reading))
    parity.add(found)


def test_a_group_that_fails_is_taken_apart(models, all_in_one):
    """Two requests share a pass, and the tempo of one fails."""
    model, asked = models["port"], Asked([some_tokens(6)], 3)
    slow = partial(spoken, model, asked, speed=1e-9)
    made = dict(together(model, [("one", partial(spoken, model, asked)), ("slow", slow)], 2))
    assert "speed 1e-09" in str(made["slow"])
    assert np.array_equal(*(waves(results)[0] for results in (made["one"], spoken(model, asked))))


def test_one_by_one_is_the_same_calls(models):
    model = models["port"]
    made: dict[str, Any] = dict(together(model, [(name, partial(spoken, model, a)) for name, a in ASKED.items()], 1))
    for name, asked in ASKED.items():
        for one, other in zip(made[name], spoken(model, asked), strict=True):
            assert np.array_equal(np.array(one["tts_speech"]), np.array(other["tts_speech"])), name


def test_requests_are_taken_as_rows_get_free(models):
    """A manifest may be long: finished requests are returned before more are taken."""
    model, taken = models["port"], []

    def requests():
        for i in range(9):
            taken.append(i)
            yield i, partial(spoken, model, ASKED["tokens" if i % 2 else "no prompt"])

    running, most = together(model, requests(), 2), 0
    for given, _ in enumerate(running, start=1):
        most = max(most, len(taken) - given)
    assert given == 9 and most <= 4  # two rows, and two pieces that wait for a group


def test_a_request_that_is_closed_leaves_the_decoder(models):
    """Whether it was read or not. A request queues its next piece before it returns the finished one."""
    model = models["port"]
    decoder = batched.Decoder(model.llm, 3)
    one, two = (spoken(model, ASKED["pieces"], decoder=decoder) for _ in range(2))
    unread = one._begun
    decoder.step()
    assert len(decoder._active) == 2
    one.close()
    del unread
    decoder.step()
    assert len(decoder._active) == 1
    next(two), next(two)
    assert len(decoder._waiting) == 1
    two.close()
    decoder.step()
    assert not decoder._active


def test_the_default_size_follows_device_and_memory(monkeypatch):
    config = SMALL.__class__()
    device = mx.default_device().type.name
    assert 1 <= default_batch_size(config) <= MOST_ROWS[device]
    monkeypatch.setattr(batched, "default_cache_bytes", lambda: 3 * 4096 * 24 * 2 * 2 * 64 * 4)
    assert default_batch_size(config) == 3
    monkeypatch.setattr(batched, "default_cache_bytes", lambda: 1)
    assert default_batch_size(config) == 1
