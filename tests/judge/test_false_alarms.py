"""Equal models on simulated machines: numbers differ, none gives a false alarm, and a fault still fails."""

from typing import Any

import pytest

from mlx_parity import compare_models, false_alarms
from tests.judge.toys import ids, toys

pytestmark = pytest.mark.meta

CHANNELS: dict[str, Any] = dict(channels_last=["conv"])


def test_equal_models_give_none():
    reference, port = toys()
    found = false_alarms(reference, port, ids(), machines=5, **CHANNELS)
    assert found.alarms == 0
    assert "0 of" in str(found)
    assert all(len(row) == 5 for row in found.ratios.values())
    assert len(set(found.ratios["attention"])) == 5, "two machines gave the same numbers"
    assert compare_models(reference, port, ids(), **CHANNELS).passed


def test_a_port_that_is_wrong_shows_on_every_machine():
    reference, port = toys()
    port.norm.weight = port.norm.weight * 1.0001
    assert false_alarms(reference, port, ids(), machines=2, **CHANNELS).alarms >= 2
