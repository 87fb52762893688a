"""A new part, case or fault takes one line each: all three are added to a copy of the checkout and run."""

import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.faults.patches import copy_checkout

pytestmark = pytest.mark.meta
# A function that is new in both packages, and what has it judged: file, start of the line that follows, new line.
BOTH = "\n\ndef doubled(x):\n    return 2 * x\n"
PART = ("parity_tests/parts.py", '        part("flow.masks.make_pad_mask"', '        part("flow.masks.doubled"),\n')
CASE = ("parity_tests/cases/flow.py", "    case(", '    case("flow.doubled", "flow.masks.doubled", x=normal(2, 23)),\n')
FAULT = (
    "parity_tests/faults/flow.txt",
    "[",
    "[flow.masks:doubled]\nnot_quite_doubled  constant  2 * x => 1.99 * x\n\n",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    for package in ("port", "reference"):
        path = folder / package / "flow" / "masks.py"
        path.write_text(path.read_text("utf-8") + BOTH, "utf-8")
    for name, before, line in (PART, CASE, FAULT):
        path = folder / name
        head, found, tail = path.read_text("utf-8").partition(f"\n{before}")
        assert found, f"{name} has no line that begins with {before!r}"
        path.write_text(f"{head}\n{line}{found[1:]}{tail}", "utf-8")
    return folder


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_case_of_a_new_part_runs_and_is_found_by_name(checkout):
    printed = run(checkout, "pytest", "-q", "-p", "no:cacheprovider", "parity_tests/test_parts.py", "-k", "doubled")
    assert "1 passed" in printed


def test_a_new_fault_is_caught_in_the_new_part(checkout):
    printed = run(checkout, "parity_tests.faults", "--only", "not_quite", "--jobs", "1")
    assert "caught" in printed and "flow.doubled.y  right" in printed
