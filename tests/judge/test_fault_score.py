"""Generic faults: every kind can be planted in the toys, is caught, and leaves the model unchanged."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_parity import fault_score
from mlx_parity.sides.mlx import MlxSide
from mlx_parity.sides.mutations import FUNCTIONS, mutations
from tests.judge.toys import ids, toys

pytestmark = pytest.mark.meta

CHANNELS: dict[str, Any] = dict(channels_last=["conv"])
OF_VALUES = {"bias left out", "weight of a square layer transposed", "weight rounded to float16", "level 1 % low"}


@pytest.fixture(scope="module")
def score():
    return fault_score(*toys(), ids(), **CHANNELS)


def test_every_kind_is_planted_and_seen(score):
    kinds = OF_VALUES | {kind for kinds in FUNCTIONS.values() for kind in kinds}
    caught = {verdict.kind for verdict in score.verdicts if verdict.status == "caught"}
    assert kinds - caught == set()


def test_nearly_all_are_caught_and_named(score):
    assert score.total > 30
    assert score.caught == score.total, score
    assert score.right == score.caught, [v for v in score.verdicts if v.status == "caught" and not v.right]


def test_the_table_says_what_survived_and_what_was_not_reached(score):
    assert f"{score.caught} of {score.total} generic faults caught" in str(score)
    assert score.unreached == []


def test_a_fault_without_an_effect_is_no_merit():
    reference, port = toys()
    model: Any
    for model in (reference, port):
        model.first.bias = type(model.first.bias)(0 * model.first.bias)
    score = fault_score(reference, port, ids(), **CHANNELS, only="first")
    assert {v.kind: v.status for v in score.verdicts}["bias left out"] == "no effect"
    assert score.total == len(score.verdicts) - 2  # rounding zeros to float16 has no effect either


def test_models_that_differ_by_themselves_are_refused():
    reference, port = toys()
    port.first.weight = port.first.weight * 1.01
    with pytest.raises(ValueError, match=r"differ without any fault.*first wrong: first"):
        fault_score(reference, port, ids(), **CHANNELS)


def test_a_model_is_as_it_was_when_a_fault_is_gone():
    _, port = toys()
    side, given = MlxSide(port), ((ids(),), dict[str, Any]())
    before, weights = side.again("", given), [np.array(v) for v in dict(tree_flatten(port.parameters())).values()]
    functions = {(owner, name): getattr(owner, name) for owner, name in FUNCTIONS}
    changed = 0
    for mutation in mutations(port, lambda: side.again("", given)):
        with mutation.apply():
            changed += not np.array_equal(side.again("", given)["hidden"], before["hidden"])
        assert np.array_equal(side.again("", given)["hidden"], before["hidden"]), mutation
    assert changed > 30
    assert all(np.array_equal(a, b) for a, (_, b) in zip(weights, tree_flatten(port.parameters()), strict=True))
    assert {place: getattr(*place) for place in functions} == functions
    assert mx.softmax is functions[mx, "softmax"]
