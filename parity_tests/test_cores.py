"""Products divided among cores are within the budget, whatever the number of cores."""

import threading
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from convert.quantize import Precision
from mlx_parity.judge import judge
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.cases.flow import FLOW
from parity_tests.cases.llm import LM
from parity_tests.parts import PARTS
from parity_tests.stream_support import run, small_flow, start, utterance
from port.fast import cores, replaced, speed_up
from port.stream.memory import Memory

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
BEFORE = "tables", "attention", "blocks", "polyphase", "products"
COUNTS = pytest.mark.parametrize("number", [2, 3], ids=["two cores", "three cores"])


class InPieces(OwnPort):
    """The port with every product divided, however small, and the pieces of the weights laid out."""

    def __init__(self, precision: Precision, number: int) -> None:
        super().__init__(precision, BEFORE)
        self.number = number

    def as_run(self, built: Any, lazy: bool = False) -> Any:
        fast = super().as_run(built, lazy)
        return speed_up(in_pieces(fast, self.number), ["columns"], lazy) if isinstance(fast, nn.Module) else fast


def in_pieces(model: nn.Module, number: int) -> nn.Module:
    return cores.divided(model, number, least=1)


@COUNTS
@pytest.mark.parametrize("part", [*SOME, "llm.scores"])
def test_parity_in_pieces(parity, part, number):
    (row,) = (case for case in all_cases() if case.name == part)
    adapter = InPieces(parity.adapter.precision, number)
    parity.add(judge(replace(row, name=f"{row.name}.cores.{number}"), adapter))


@COUNTS
def test_a_stream_keeps_its_prompt_in_pieces(number):
    """Its memory is counted by the dtype of keys that no whole projection makes."""
    flow = in_pieces(small_flow(BEFORE), number)
    run(start(flow, utterance(20), memory=Memory()), utterance(20), [11, 3, 8])


@pytest.mark.parametrize(("n", "parts"), [(1, 2), (7, 2), (7, 3), (2, 4), (33, 2)])
def test_pieces_are_all_of_it_once(n, parts):
    found = cores.pieces(n, parts)
    assert [place for first, end in found for place in range(first, end)] == list(range(n))
    assert len(found) <= parts


def test_small_products_stay_whole_and_with_the_caller():
    """A small model takes no longer than without: its streams never meet."""
    few = cores.Cores(2, least=8)
    assert few.pieces(6, 7) == [(0, 6)] and few.pieces(6, 8) == [(0, 3), (3, 6)]
    used: list[Any] = []

    def part() -> mx.array:
        used.append(mx.default_stream(mx.cpu))
        return mx.zeros(1)

    for work in (7, 8):
        few.joined([part, part], 0, work)
    assert used[0] == used[1] == mx.default_stream(mx.cpu)
    assert len({str(stream) for stream in used[1:]}) == 3


def test_small_layers_keep_their_weight():
    model = nn.Sequential(nn.Linear(256, 255), nn.Linear(256, 256))
    assert [type(layer).__name__ for layer in cores.divided(model, 2).layers] == ["Linear", "DividedLinear"]


@COUNTS
def test_each_kind_of_layer_is_divided(number):
    flow = PARTS["flow.matching.CausalConditionalCFM"].build("port", FLOW)
    assert {"DividedLinear", "DividedConv1d"} <= set(replaced(in_pieces(speed_up(flow, BEFORE, lazy=True), number)))


def test_weights_are_views_of_the_whole():
    """Nothing is held twice."""
    model = PARTS["llm.speech_lm.CosyVoice3LM.scores"].build("port", LM)
    mx.eval(model.parameters())
    held = mx.get_active_memory()
    mx.eval(in_pieces(model, 2).parameters())
    assert mx.get_active_memory() <= held


@COUNTS
def test_another_thread_has_streams_of_its_own(number):
    """MLX's streams belong to threads; the model is made in one and used in many."""
    model, found = PARTS["llm.speech_lm.CosyVoice3LM.scores"].build("port", LM), []
    mx.eval(in_pieces(model, number).parameters())
    x = mx.array(
        np.random.default_rng(0).standard_normal((1, 4, model.llm_decoder.parts[0].weight.shape[1])), mx.float32
    )
    mx.eval(x)
    threads = [threading.Thread(target=lambda: found.append(np.array(model.llm_decoder(x)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
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
def test_suits_several_cores_and_a_blas_in_one_thread(found, limit, whole, suits):
    assert cores.gains(cores.count(found, limit), whole) is suits


def test_the_environment_limits_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores.available() == 1 and not cores.suit()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores.available() >= 1
