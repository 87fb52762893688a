"""Products divided among cores are within the budget, whatever the number of cores."""

import threading
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_parity.judge import judge
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.cases.flow import FLOW
from parity_tests.cases.llm import LM
from parity_tests.parts import PARTS
from port.fast import cores, replaced, speed_up

pytestmark = pytest.mark.part("fast.cores")
SOME = (
    "flow.attention",
    "flow.attention.blind",
    "flow.conv_pos_embed",
    "flow.dit.full",
    "flow.cfm.chunked",
    "vocoder.decode.end",
    "vocoder.decode.more",
)
FORMS = "tables", "attention", "blocks", "polyphase", "products", "cores", "columns"


@pytest.fixture(params=[2, 3], ids=["two cores", "three cores"])
def divided(request, monkeypatch):
    """Pieces as many as there are cores, of layers and convolutions of any size."""
    monkeypatch.setattr(cores, "count", lambda: request.param)
    monkeypatch.setattr(cores, "LEAST_WEIGHTS", 1)
    monkeypatch.setattr(cores, "LEAST_FRAMES", 1)
    return request.param


@pytest.mark.parametrize("part", [*SOME, "llm.scores"])
def test_parity_in_pieces(parity, part, divided):
    (row,) = (case for case in all_cases() if case.name == part)
    adapter = OwnPort(parity.adapter.precision, FORMS)
    parity.add(judge(replace(row, name=f"{row.name}.cores.{divided}"), adapter))


@pytest.mark.parametrize(
    ("n", "streams", "least"), [(1, 2, 1), (7, 2, 1), (7, 3, 1), (7, 3, 4), (2, 4, 1), (33, 2, 16)]
)
def test_pieces_are_all_of_it_once(n, streams, least):
    found = cores.pieces(n, range(streams), least)
    assert [place for _, first, end in found for place in range(first, end)] == list(range(n))
    assert all(end - first >= least for _, first, end in found[:-1])
    assert len({stream for stream, *_ in found}) == len(found) <= streams


def test_each_kind_of_layer_is_divided(divided):
    flow = PARTS["flow.matching.CausalConditionalCFM"].build("port", FLOW)
    assert {"DividedLinear", "DividedConv1d"} <= set(replaced(speed_up(flow, FORMS, lazy=True)))


def test_weights_are_views_of_the_whole(divided):
    """Nothing is held twice."""
    model = PARTS["llm.speech_lm.CosyVoice3LM.scores"].build("port", LM)
    mx.eval(model.parameters())
    held = mx.get_active_memory()
    speed_up(model, ["cores"])
    assert mx.get_active_memory() <= held


def test_another_thread_has_streams_of_its_own(divided):
    """MLX's streams belong to threads; the model is made in one and used in many."""
    model, found = PARTS["llm.speech_lm.CosyVoice3LM.scores"].build("port", LM), []
    speed_up(model, ["cores"])
    x = mx.array(
        np.random.default_rng(0).standard_normal((1, 4, model.llm_decoder.parts[0].weight.shape[1])), mx.float32
    )
    mx.eval(x)
    run = [threading.Thread(target=lambda: found.append(np.array(model.llm_decoder(x)))) for _ in range(2)]
    for thread in run:
        thread.start()
    for thread in run:
        thread.join()
    expected = np.array(model.llm_decoder(x))
    assert len(found) == 2 and all((one == expected).all() for one in found)


@pytest.mark.parametrize(
    ("found", "limit", "whole", "suits"),
    [
        (2, "", False, True),
        (1, "", False, False),
        (4, "1", False, False),
        (2, "", True, False),
        (2, "all", False, True),
    ],
    ids=["two cores", "one core", "one thread asked for", "a BLAS with threads", "a limit that is no number"],
)
def test_suits_several_cores_and_a_blas_in_one_thread(found, limit, whole, suits, monkeypatch):
    monkeypatch.setattr(cores, "on_cpu", lambda: True)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(found)), raising=False)
    monkeypatch.setattr(cores, "adds_whole_products", lambda device: whole)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert cores.suit() is suits
