"""The verification plan has a line for every part, and every test of the proof is marked with its part."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_parity.report.data import Test
from parity_tests.faults.parts import ASIDE, STAGES, WITHOUT_CASES
from parity_tests.parts import PARTS
from parity_tests.session import PLAN

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[1]
NAMELESS = """
import pytest

class Names:
    def pytest_collection_finish(self, session):
        print("found", len(session.items))
        for item in session.items:
            if item.get_closest_marker("part") is None:
                print("nameless", item.nodeid)

pytest.main(["--collect-only", "-q", "-m", "not meta and not robust", "--full"], plugins=[Names()])
"""
PASSED = Test("parity_tests/test_flow.py::test_rows", "passed", 0.1, part="flow.dit.DiT")


def line(name, tests, **how):
    (found,) = (c for c in PLAN.components([], tests, **how) if c.component == name)
    return found


def test_every_test_of_the_proof_is_marked_with_its_part():
    done = subprocess.run([sys.executable, "-c", NAMELESS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = [line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("found ", "nameless "))]
    assert [name for kind, name in said if kind == "nameless"] == []
    assert int(dict(said)["found"]) > 1000


def test_every_part_has_a_line():
    assert [part for part in (*PARTS, *WITHOUT_CASES, *STAGES, *ASIDE) if PLAN.line_of(part) is None] == []
    parts = [part for planned in PLAN.lines for part in planned.parts]
    assert len(set(parts)) == len(parts)


def test_the_longest_path_counts():
    assert PLAN.line_of("flow.layers.AdaLayerNormZero_Final") == "AdaLN-Zero"
    assert PLAN.line_of("flow.layers.AnythingElse") == "Flow decoder"
    assert PLAN.line_of("walk.vocoder.stream") == "Streaming"
    assert PLAN.line_of("flowers") is None


def test_a_line_takes_its_status_from_the_tests_of_its_parts():
    assert line("DiT", [PASSED]).evidence == (PASSED.nodeid,)
    assert line("DiT", [PASSED]).status == "PASS"
    failed = replace(PASSED, outcome="failed", reason="rows differ")
    assert line("DiT", [failed]).issues == (f"{PASSED.nodeid}: rows differ",)


def test_a_line_without_evidence_is_an_error():
    assert line("Snake", [PASSED]).status == "ERROR"
    assert line("Snake", [PASSED], partial=True).status == "SKIP"
    assert line("Community folders", [PASSED]).status == "SKIP"
    assert line("Community folders", [replace(PASSED, nodeid=f"{PLAN.elsewhere}test_x.py::test_y")]).status == "ERROR"


def test_a_test_of_no_line_is_an_error():
    lost = replace(PASSED, part="nowhere")
    assert line("Elsewhere", [lost]).status == "ERROR"
    assert line("Elsewhere", [lost]).issues == (lost.nodeid,)
