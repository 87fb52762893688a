"""Which functions a check runs: tried on toys, and on recorded failures, none of which it may rule out."""

import threading

import pytest

from mlx_parity.faults.patch import Fault
from mlx_parity.faults.reach import entered, reaches
from mlx_parity.sides.truth import reference_state
from parity_tests.adapters.own import OwnPort
from parity_tests.cases.llm import CASES
from parity_tests.faults import PACKAGES, catalogue, score

pytestmark = pytest.mark.meta
HERE = ("tests",)


def inner():
    return 1


def outer():
    return inner()


def absent():
    return 3


def fault(name, old="return"):
    return Fault(name, "test", "part", f"tests.judge.test_reach:{name}", old, "return not")


def test_a_function_is_reached_through_others_and_in_a_thread():
    for run in (outer, lambda: [(thread := threading.Thread(target=outer)).start(), thread.join()]):
        with entered(HERE) as places:
            run()
        assert reaches(places, fault("outer"), HERE) and reaches(places, fault("inner"), HERE)
        assert not reaches(places, fault("absent"), HERE)
    absent()
    assert not reaches(places, fault("absent"), HERE), "what runs after the context is not recorded"


def test_a_constant_is_read_anywhere_and_what_is_not_known_is_reached():
    assert reaches(set(), fault("HERE", old=None), HERE)
    assert reaches(None, fault("absent"), HERE)


def test_each_case_that_failed_under_a_fault_reaches_it():
    """Tried on the recorded signatures and the language model's cases."""
    found, known = 0, score.known().signatures
    for case in CASES:
        with entered(PACKAGES) as places:
            OwnPort().run(case.part, case.config, reference_state(case), case.draw(), case.call)
        for planted in catalogue():
            if any(name.startswith(f"{case.name}.") for name in known.get(planted.name, ())):
                found += 1
                assert reaches(places, planted, PACKAGES), (planted.name, case.name)
    assert found > 50
