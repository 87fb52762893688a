"""Every isolated case: one part of the port, fed what the reference is fed. `pytest -k` finds a part by its words."""

import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.cases import all_cases, marked
from parity_tests.parts import PARTS

ROOT = Path(__file__).parents[1]
# What people look for; each finds parity cases. The sampler is judged by recorded draws alone.
WORDS = (
    *("rotary", "grn", "adaln-zero", "AdaLN-Zero", "snake", "sinegen2", "causal_padding", "stft", "istft"),
    *("cfg", "euler", "kv_cache", "f0", "ras", "mel", "fbank", "resample"),
)
COUNT = """
import sys
import pytest

class Count:
    def pytest_collection_finish(self, session):
        names = [item.nodeid for item in session.items]
        print("found", sum("test_parity[" in name or "test_the_port_is_the_original[" in name for name in names))

for word in sys.argv[1:]:
    files = ["parity_tests/test_parts.py", "parity_tests/test_golden.py"]
    pytest.main(["--collect-only", "-q", "-k", word, *files], plugins=[Count()])
"""


@pytest.mark.parametrize("case", marked(all_cases()))
def test_parity(parity, case):
    parity.check(case)


@pytest.mark.meta
def test_each_part_has_a_case():
    assert {path for path, part in PARTS.items() if part.at or part.witness} <= {c.part.path for c in all_cases()}


@pytest.mark.meta
def test_a_word_finds_the_cases_of_its_part():
    done = subprocess.run([sys.executable, "-c", COUNT, *WORDS], cwd=ROOT, capture_output=True, text=True, check=True)
    counts = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("found ")]
    found = dict(zip(WORDS, counts, strict=True))
    assert all(0 < count < len(all_cases()) / 2 for count in found.values()), found
