"""Every isolated case: one part of the port gets the reference's inputs. `pytest -k` finds a part by its words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.cases import all_cases, marked
from parity_tests.parts import PARTS

ROOT = Path(__file__).parents[1]
# Words that people search for; each finds cases. For the sampler these are recorded draws.
WORDS = (
    *("rotary", "grn", "adaln-zero", "AdaLN-Zero", "snake", "sinegen2", "causal_padding", "stft", "istft"),
    *("cfg", "euler", "kv_cache", "f0", "ras", "mel", "fbank", "resample"),
)
NAMES = """
import json
import pytest

class Names:
    def pytest_collection_finish(self, session):
        names = {item.nodeid: [item.name, *item.listextrakeywords()] for item in session.items}
        print("found", json.dumps(names))

pytest.main(["--collect-only", "-q", "parity_tests/test_parts.py", "parity_tests/test_golden.py"], plugins=[Names()])
"""


@pytest.mark.parametrize("case", marked(all_cases()))
def test_parity(parity, case):
    parity.check(case)


@pytest.mark.meta
def test_each_part_has_a_case():
    assert {path for path, part in PARTS.items() if part.at or part.witness} <= {c.part.path for c in all_cases()}


@pytest.mark.meta
def test_a_word_finds_the_cases_of_its_part():
    """As `-k` searches: in a test's name and keywords, ignoring case."""
    done = subprocess.run([sys.executable, "-c", NAMES], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("found "))
    names = json.loads(line.removeprefix("found "))
    cases = [words for test, words in names.items() if "test_parity[" in test or "test_the_port_is_" in test]
    assert len(cases) > 200
    for word in WORDS:
        found = sum(any(word.lower() in name.lower() for name in words) for words in cases)
        assert 0 < found < len(cases) / 2, word
