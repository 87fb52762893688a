"""`compare`: a known error gives a known ratio, and whatever cannot be compared is an error, never a pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_parity.compare import BUDGET, FLOOR, agreement, compare
from mlx_parity.spool import Spool
from mlx_parity.where import error_map

pytestmark = pytest.mark.meta

ORACLE = np.random.default_rng(0).standard_normal((3, 5, 7))
SCALE = np.sqrt(np.mean(ORACLE**2))
ONES = np.ones_like(ORACLE)


def shifted(relative_error: float) -> np.ndarray:
    """The oracle with the same relative error at every element, so that rms and maximum are equal."""
    return ORACLE + relative_error * SCALE * ONES


@given(st.floats(2e-6, 1e-2), st.floats(0.01, 100))
def test_known_error_gives_known_ratio(e_ref, factor):
    reading = compare(shifted(e_ref * factor), shifted(e_ref), ORACLE)
    assert reading.e_ref_rms == pytest.approx(e_ref, rel=1e-6)
    assert reading.ratio_rms == pytest.approx(factor, rel=1e-5)
    assert reading.ratio_max == pytest.approx(factor, rel=1e-5)
    if abs(factor - BUDGET) > 1e-3:
        assert reading.status == ("PASS" if factor < BUDGET else "FAIL")


def test_floor_holds_where_the_reference_is_exact():
    assert compare(shifted(3.9 * FLOOR), ORACLE.copy(), ORACLE).status == "PASS"
    assert compare(shifted(4.1 * FLOOR), ORACLE.copy(), ORACLE).status == "FAIL"


def test_one_bad_element_fails_though_the_rms_passes():
    big, reference = np.random.default_rng(1).standard_normal(100_000), None
    reference = big + 1e-6 * np.random.default_rng(2).standard_normal(big.size)
    port = reference.copy()
    port[77] += 3e-5
    reading = compare(port, reference, big)
    assert reading.ratio_rms < BUDGET < reading.ratio_max
    assert reading.status == "FAIL"
    assert reading.worst["index"] == [77]
    assert sum(reading.histogram["port"]) == big.size


def test_a_good_maximum_never_rescues_a_bad_rms():
    oracle = np.ones(1000)
    reference = oracle.copy()
    reference[0] += 1e-3  # a single error: large maximum, small rms
    assert compare(oracle + 2e-4, reference, oracle).status == "FAIL"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("who", [0, 1, 2])
def test_nan_and_inf_are_errors(bad, who):
    arrays = [ORACLE.copy(), ORACLE.copy(), ORACLE.copy()]
    arrays[who][1, 2, 3] = bad
    assert compare(*arrays).status == "ERROR"


def test_nan_on_all_sides_is_an_error():
    nan = np.full((2, 2), np.nan)
    assert compare(nan, nan.copy(), nan.copy()).status == "ERROR"


def test_masked_scores_may_be_infinite_only_at_the_same_places():
    masked = ORACLE.copy()
    masked[0, 0, 0] = -np.inf
    other = ORACLE.copy()
    other[0, 0, 1] = -np.inf
    assert compare(masked.copy(), masked.copy(), masked, allow_inf=True).status == "PASS"
    assert compare(other, masked.copy(), masked, allow_inf=True).status == "ERROR"
    assert compare(-masked, masked.copy(), masked, allow_inf=True).status == "ERROR"


@pytest.mark.parametrize(
    "port",
    [ORACLE[:2].copy(), ORACLE[None].copy(), np.zeros(ORACLE.shape, np.int64), np.zeros(ORACLE.shape, complex)],
    ids=["shape", "rank", "integer", "complex"],
)
def test_other_shape_or_kind_is_an_error(port):
    assert compare(port, ORACLE.copy(), ORACLE).status == "ERROR"


def test_empty_is_an_error():
    assert compare(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3))).status == "ERROR"


def test_comparing_a_tensor_with_itself_is_an_error():
    assert compare(ORACLE, ORACLE.copy(), ORACLE).status == "ERROR"
    assert compare(ORACLE[...], ORACLE.copy(), ORACLE).status == "ERROR"


def test_zero_oracle_is_vacuous():
    assert compare(np.zeros(4), np.zeros(4), np.zeros(4)).status == "VACUOUS"


def test_integers_must_be_equal():
    tokens = np.arange(12).reshape(3, 4)
    assert compare(tokens.copy(), tokens.copy(), tokens).status == "PASS"
    wrong = tokens.copy()
    wrong[2, 1] += 1
    reading = compare(wrong, tokens.copy(), tokens)
    assert reading.status == "FAIL"
    assert reading.worst["index"] == [2, 1]
    assert compare(wrong.copy(), wrong, tokens).status == "ERROR"


def test_agreement():
    assert agreement(shifted(1e-9), ORACLE) == pytest.approx(1e-9, rel=1e-4)
    assert agreement(ORACLE[:1], ORACLE) == np.inf
    assert agreement(np.zeros(3), np.zeros(3)) == 0.0
    assert agreement(np.ones(3), np.zeros(3)) == np.inf


def test_a_failure_says_where_it_sits():
    port = ORACLE.copy()
    port[1, 4, 2] += 0.5
    port[2, 0, 6] -= 0.25
    reading = compare(port, ORACLE.copy(), ORACLE)
    assert [at["index"] for at in reading.worst_positions[:2]] == [[1, 4, 2], [2, 0, 6]]
    assert reading.worst_positions[0] == reading.worst
    grid = reading.error_map
    assert (grid["row_axis"], grid["column_axis"]) == ("axis 1 (5 long)", "axis 2 (7 long)")
    cells = np.array(grid["rows"])
    assert cells.shape == (5, 7) and [tuple(at) for at in np.argwhere(cells)] == [(0, 6), (4, 2)]
    assert cells[4, 2] == pytest.approx(reading.e_port_max, rel=5e-3)
    passed = compare(ORACLE + 1e-9, ORACLE.copy(), ORACLE)
    assert passed.worst and not passed.error_map and not passed.worst_positions


@pytest.mark.parametrize("shape", [(), (3,), (200,), (1, 1), (9, 33), (2, 50, 3, 64)])
def test_a_map_holds_every_error_in_at_most_8_by_32_cells(shape):
    error = np.abs(np.random.default_rng(3).standard_normal(shape)) + 0.1
    cells = np.array(error_map(error)["rows"])
    assert cells.ndim == 2 and cells.shape[0] <= 8 and cells.shape[1] <= 32
    assert cells.max() == pytest.approx(error.max(), rel=5e-3) and (cells > 0).all()


def test_wrong_integers_are_listed_from_the_first():
    tokens = np.arange(12).reshape(3, 4)
    wrong = np.where(tokens > 5, tokens + 2, tokens)
    reading = compare(wrong, tokens.copy(), tokens)
    assert [at["index"] for at in reading.worst_positions] == [[1, 2], [1, 3], [2, 0], [2, 1], [2, 2]]
    assert reading.worst_positions[0] == {"index": [1, 2], "port": 8, "oracle": 6, "reference": 6}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool, np.int64])
def test_a_spool_returns_what_it_got_and_keeps_equal_content_once(dtype):
    arrays = [np.arange(6).reshape(2, 3).astype(dtype).T, np.array(3).astype(dtype), np.zeros((0, 3), dtype)]
    with Spool() as spool:
        stored = {"a": spool.store(arrays[0]), "b": [spool.store(array) for array in arrays], "c": "flag"}
        size = spool.size
        spool.store(arrays[0].copy())
        assert spool.size == size == 7 * np.dtype(dtype).itemsize
        found = spool.load(stored)
    assert found["c"] == "flag"
    for value, wanted in zip([found["a"], *found["b"]], [arrays[0], *arrays], strict=True):
        assert value.dtype == wanted.dtype and value.shape == wanted.shape and np.array_equal(value, wanted)
