"""The catalogue of faults: a selection applied in every run, its score, and a runner that cannot be fooled.

The whole catalogue takes some minutes: `make faults`.
"""

import signal
import warnings
from datetime import UTC, datetime

import numpy as np
import pytest

from mlx_parity.judge import judge
from parity_tests.adapters.own import OwnPort
from parity_tests.harness import fault_checks, faults, places, signatures
from parity_tests.harness.fault_catalogue.base import Fault, FaultError, edit
from parity_tests.harness.fault_tests import TESTS
from parity_tests.harness.faults import FAULTS, QUICK, Verdict, section
from reports.cosyvoice3 import STAGES

BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def runner(parity):
    """Examines a fault. Where the port is wrong by itself, a planted fault proves nothing."""
    if parity.config.getoption("--adapter") != "own":
        pytest.skip("faults are planted in this repository's port")
    fault_checks.warm()
    if (broken := fault_checks.baseline()) is not None:
        pytest.skip(f"the port fails without any fault, at {broken.first_failing}")
    return faults.examine


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_caught_in_its_own_module(parity, runner, name):
    verdict = runner(BY_NAME[name])
    parity.keep("faults", [verdict.to_dict()])
    assert verdict.caught, verdict.problem or "survived"
    assert verdict.right_module, f"{verdict.finding.first_failing} was named first"


@pytest.mark.meta
def test_the_catalogue_is_large_and_its_names_are_unique():
    assert len(FAULTS) >= 80
    assert len(BY_NAME) == len(FAULTS)
    assert set(QUICK) <= BY_NAME.keys()
    assert len({fault.family for fault in FAULTS}) >= 20
    assert not [fault.name for fault in FAULTS if not fault.module.startswith(tuple(TESTS))], "nothing would run"


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
    monkeypatch.setattr(fault_checks, "_seconds", lambda by: None)
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
    assert (found.score.caught, found.score.total) == (0, 1)
    assert [row.state for row in found.rows] == ["SURVIVED", "equivalent"]


@pytest.mark.meta
def test_state_of_the_port_does_not_outlive_a_fault(runner):
    from port import noise

    before = np.array(noise.sine_waves(50))
    runner(BY_NAME["fundamental_starts_anywhere"])
    assert np.array_equal(noise.sine_waves(50), before)
    assert noise.rand_ini()[0, 0] == 0


def test_the_score_of_the_whole_catalogue_goes_into_the_report(parity):
    """As it was last recorded, by `make faults`; the report says when, and whether the code has changed since."""
    found = faults.catalogue_section()
    assert found is not None, "no score was recorded: make faults"
    parity.keep("fault_catalogue", [found])


@pytest.mark.meta
def test_nothing_survived_in_the_recorded_score():
    """The record may be older than the catalogue: this says by how much, and `make faults` makes it anew."""
    found = faults.catalogue_section()
    assert found is not None, "no score was recorded: make faults"
    rows = {row["name"]: row for row in found["rows"]}
    if differing := rows.keys() ^ BY_NAME.keys():
        warnings.warn(f"the recorded score lacks or has beside {len(differing)} faults: make faults", stacklevel=1)
    assert rows.keys() & BY_NAME.keys(), "the recorded score is of another catalogue: make faults"
    counted = [row for row in rows.values() if not row["equivalent"]]
    survivors = [row["name"] for row in counted if not row["caught"]]
    assert not survivors, f"survived: {', '.join(survivors)}"
    assert found["score"] == {"caught": len(counted), "total": len(counted)}
    wrong = [row["name"] for row in counted if not row["right_module"]]
    assert len(wrong) <= 0.05 * len(counted), f"another module was named first for {', '.join(wrong)}"


@pytest.mark.meta
def test_a_score_recorded_on_other_code_says_so(tmp_path, monkeypatch):
    path, started = tmp_path / "score.json", datetime.now(UTC)
    path.write_text(faults.record([Verdict(FAULTS[0], None, 0.0), Verdict(FAULTS[1], None, 0.0)], started), "utf-8")
    found = faults.catalogue_section(path)
    assert found["fresh"] is True and found["recorded"]["fingerprint"] == faults.fingerprint(faults.CODE)
    assert [row["name"] for row in found["rows"]] == [fault.name for fault in FAULTS[:2]]
    assert len(path.read_text("utf-8").splitlines()) < 10, "one row a line"
    monkeypatch.setattr(faults, "fingerprint", lambda places: "other")
    assert faults.catalogue_section(path)["fresh"] is False


# ---- faults that never end

ENDLESS = edit("flow.masks:make_pad_mask", "np.asarray(lengths)", "all(iter(lambda: 1, 0)) and np.asarray(lengths)")
PAD_MASK = Fault("endless", "test", "flow.masks.make_pad_mask", ENDLESS)


@pytest.mark.meta
def test_a_fault_that_never_ends_is_caught_by_the_time_limit(runner, monkeypatch):
    monkeypatch.setattr(fault_checks, "LIMIT", 5.0)
    verdict = runner(PAD_MASK)
    assert verdict.caught, verdict.problem
    assert verdict.right_module and verdict.finding.endless
    assert verdict.to_dict()["by"] == f"{verdict.finding.by} (did not end)"
    assert verdict.seconds < 30


@pytest.mark.meta
def test_a_check_that_takes_as_long_without_the_fault_catches_nothing(runner, monkeypatch):
    monkeypatch.setattr(fault_checks, "LIMIT", 1.0)
    monkeypatch.setattr(fault_checks, "_seconds", lambda by: 0.5)
    verdict = runner(PAD_MASK)
    assert not verdict.caught and "takes 0 s without the fault too" in verdict.problem


@pytest.mark.meta
def test_a_test_that_never_ends_is_stopped(runner, monkeypatch):
    """Inside pytest the time limit is a failure of the test that runs, and the next fault finds the clock stopped."""
    monkeypatch.setattr(fault_checks, "LIMIT", 2.0)
    monkeypatch.setattr(fault_checks, "_seconds", lambda by: 0.1)
    endless = edit("noise:rand_noise", "_FIXED.lock", "(all(iter(lambda: 1, 0)) and _FIXED.lock)")
    verdict = runner(Fault("endless", "test", "noise", endless))
    assert verdict.finding.endless and "test_noise.py::" in verdict.finding.by, verdict
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# ---- the nearest known fault


def nearest(fault):
    """What the report calls the failures under a fault."""
    with fault_checks.clean(), fault.patch():
        rows = [row.entry("t", "x") for case in fault_checks.cases(fault.module) for row in judge(case, OwnPort())]
    rows = signatures.name_nearest(rows, places.describe(row.module for row in rows), STAGES)
    named = [row for row in rows if row.nearest_fault]
    assert len(named) <= 1 and all(row.status != "PASS" for row in named)
    return named[0].nearest_fault if named else None


# Mistakes of a known kind, at a size or place that the catalogue does not have.
VARIATIONS = {
    "adaln_eps_1e-5": edit("flow.layers:AdaLayerNormZero.__init__", "eps=LAYER_NORM_EPS", "eps=1e-4"),
    "guidance_rate_off_by_a_thousandth": edit(
        "flow.matching:CausalConditionalCFM.velocity", "rate = self.config.inference_cfg_rate", "rate = 0.714"
    ),
    "stage_slope_0.01": edit(
        "vocoder.generator:CausalHiFTGenerator.spectrum", "(x, config.lrelu_slope)", "(x, config.lrelu_slope / 2)"
    ),
    "resampler_rolloff_0.95": edit("frontend.audio:resample_kernel", "= 6, 0.99", "= 6, 0.9"),
    "qwen2_rope_theta_off_by_a_thousandth": edit(
        "llm.qwen2:Qwen2RotaryEmbedding.__init__", "power(theta,", "power(theta * 1.01,"
    ),
}


@pytest.mark.meta
def test_an_unseen_variation_of_a_known_fault_is_named_after_it_or_not_at_all():
    named = 0
    for name, patch in VARIATIONS.items():
        known = BY_NAME[name]
        words = nearest(Fault("unseen", "test", known.module, patch))
        named += words is not None
        assert words is None or (f"{name} ({known.family})" in words and f"in {known.module}: likeness" in words)
    assert named >= 3, "it says too little"


@pytest.mark.meta
def test_likeness_is_one_for_the_same_and_falls_with_shape_faster_than_with_size():
    known = {"a": 3.0, "b": 2.0, "c": 1.0}
    weight = signatures.weights([known, {"c": 1.0}, {"d": 5.0}])
    assert weight["a"] > weight["c"]
    assert signatures.likeness(known, known, weight) == 1.0
    larger = {name: value + 1 for name, value in known.items()}
    smaller = {
        name: value - 1 for name, value in known.items() if value - 1 > signatures.LEAST
    }  # the others fell within budget
    for other in (larger, smaller):
        for pair in ((other, known), (known, other)):
            assert signatures.likeness(*pair, weight) == pytest.approx(0.8)
    another = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert signatures.likeness(another, known, weight) < 0.5
    assert signatures.likeness({"d": 5.0}, known, weight) == 0.0
