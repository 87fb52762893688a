"""The catalogue of faults: a selection applied in every run, its score, and a runner that cannot be fooled.

The whole catalogue takes some minutes: `python -m parity_tests.harness.faults --json reports/out/faults.json`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from parity_tests.harness import fault_checks, faults
from parity_tests.harness.fault_catalogue.base import Fault, FaultError, edit
from parity_tests.harness.faults import FAULTS, QUICK, section

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "reports" / "out" / "faults.json"
BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def runner():
    fault_checks.warm()
    assert fault_checks.baseline() is None
    return faults.examine


@pytest.fixture(scope="module")
def verdicts(parity):
    """Verdicts of the tests below; they reach the report together unless the whole catalogue is there."""
    found = []
    yield found
    if found:
        parity.sections.setdefault("faults", section(found))


@pytest.mark.meta
@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_caught_in_its_own_module(runner, verdicts, name):
    verdicts.append(runner(BY_NAME[name]))
    verdict = verdicts[-1]
    assert verdict.caught, verdict.problem or "survived"
    assert verdict.right_module, f"{verdict.finding.first_failing} was named first"


@pytest.mark.meta
def test_the_catalogue_is_large_and_its_names_are_unique():
    assert len(FAULTS) >= 80
    assert len(BY_NAME) == len(FAULTS)
    assert set(QUICK) <= BY_NAME.keys()
    assert len({fault.family for fault in FAULTS}) >= 20


@pytest.mark.meta
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_code_and_leaves_no_trace(fault):
    """A piece of source that is no longer there makes the row an error, and undoing restores the very same code."""
    from port.noise import rand_noise

    before = rand_noise.__code__
    with fault.patch():
        pass
    assert rand_noise.__code__ is before


@pytest.mark.meta
@pytest.mark.parametrize(
    ("where", "old", "message"),
    [
        ("flow.masks:subsequent_chunk_mask", "no such text", "0 times"),
        ("flow.masks:subsequent_chunk_mask", "frames", "times"),
        ("flow.dit:DiT.__init__", "super().__init__()", "does not fit"),
    ],
)
def test_a_fault_that_does_not_fit_is_refused(where, old, message):
    with pytest.raises(FaultError, match=message), edit(where, old, "pass")():
        pass


@pytest.mark.meta
def test_an_edit_that_only_crashes_is_no_merit(runner):
    broken = edit("flow.masks:make_pad_mask", "np.asarray(lengths)", "no_such_name(lengths)")
    verdict = runner(Fault("broken", "test", "flow.masks.make_pad_mask", broken))
    assert not verdict.caught
    assert "the edit is broken: ERROR: NameError" in verdict.problem


@pytest.mark.meta
def test_a_test_that_fails_anyway_catches_nothing(runner, monkeypatch):
    monkeypatch.setattr(fault_checks, "look", lambda module: fault_checks.Finding("test_x.py::test", "x", module, "no"))
    monkeypatch.setattr(fault_checks, "_passes", lambda nodeid: False)
    verdict = runner(Fault("nothing", "test", "noise", edit("noise:rand_noise", "_FIXED.lock", "_FIXED.lock")))
    assert not verdict.caught
    assert "fails without the fault too" in verdict.problem


@pytest.mark.meta
def test_a_part_that_contains_the_fault_is_the_wrong_module(runner):
    rotary = BY_NAME["rope_half_split"]
    verdict = runner(Fault("elsewhere", "test", "flow.layers.Attention", rotary.patch))
    assert verdict.caught and verdict.right_module is False


@pytest.mark.meta
def test_a_survivor_and_an_equivalent_fault_count_as_such(runner, monkeypatch):
    monkeypatch.setattr(fault_checks, "look", lambda module: None)
    monkeypatch.setattr(fault_checks, "look_everywhere", lambda: None)
    same = edit("flow.masks:make_pad_mask", "np.asarray(lengths)", "np.asarray(lengths) + 0")
    survivor = runner(Fault("survivor", "test", "flow.masks.make_pad_mask", same))
    proved = runner(Fault("proved", "test", "flow.masks.make_pad_mask", same, equivalent="adding zero"))
    found = section([survivor, proved])
    assert found["score"] == {"caught": 0, "total": 1}
    assert [row["caught"] for row in found["rows"]] == [False, False]


@pytest.mark.meta
def test_state_of_the_port_does_not_outlive_a_fault(runner):
    from port import noise

    before = np.array(noise.sine_waves(50))
    runner(BY_NAME["fundamental_starts_anywhere"])
    assert np.array_equal(noise.sine_waves(50), before)
    assert noise.rand_ini()[0, 0] == 0


def test_the_score_of_the_whole_catalogue_goes_into_the_report(parity):
    """Found apart; older than the code or the cases, it counts for nothing."""
    folders = ("port", "convert", "parity_tests/cases", "parity_tests/harness")
    newest = max(path.stat().st_mtime for folder in folders for path in (ROOT / folder).rglob("*.py"))
    if not OUTPUT.is_file() or OUTPUT.stat().st_mtime < newest:
        pytest.skip("no score for this code: run python -m parity_tests.harness.faults --json reports/out/faults.json")
    parity.sections["faults"] = json.loads(OUTPUT.read_text("utf-8"))
