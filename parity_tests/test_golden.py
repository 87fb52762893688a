"""Golden files, recorded from the original: the reference must agree in float64, the port is judged by ratio.

The embedded files cover every module; the full set runs if it is available.
"""

import os
from pathlib import Path

import pytest

from mlx_parity.record import Recorded, describe
from mlx_parity.report.codec import plain
from mlx_parity.sides.liveness import liveness, summarised
from parity_tests.golden import __main__ as golden
from parity_tests.golden.judge import EMBEDDED, GoldenRow, cases_of, judge_file, numbers, report_rows
from parity_tests.golden.table import named_by

# The full set: the folder named by the variable, else the one beside the project.
FULL = Path(os.environ.get("COSYVOICE3_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
FILES = sorted(EMBEDDED.glob("*.safetensors"))
PARTS = {path.stem: named_by(describe(path)[0]) for path in FILES}
CASES = [path for path in FILES if cases_of(path)]


def lines(rows: list[GoldenRow]) -> list[str]:
    return [f"{r.file}.{r.tensor}: {r.status} {r.note or numbers(r)}" for r in rows if r.status not in ("PASS", "SKIP")]


@pytest.mark.part("reference")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_reference_is_the_original(path):
    rows = judge_file(Recorded.read(path), "reference")
    assert rows
    assert not (broken := lines(rows)), broken


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=pytest.mark.part(PARTS[p.stem])) for p in FILES])
def test_the_port_is_the_original(parity, path):
    parity.add(report_rows(path))


@pytest.mark.part("liveness")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_tensor_of_a_recorded_case_matters(parity, path):
    """In at least one of the calls that the file records, with the original's weights and inputs."""
    rows = [row for case in cases_of(path) for row in liveness(case)]
    found = {row.tensor: row for row in sorted(rows, key=lambda row: row.status == "PASS")}
    parity.keep("liveness", map(plain, summarised(found.values(), most=0)))
    dead = [f"{row.tensor} moved {row.moved_budgets:.3g}" for row in found.values() if row.status == "VACUOUS"]
    assert not dead, dead


@pytest.mark.meta
@pytest.mark.skipif(not FULL.is_dir(), reason="the full golden set is not here; name it in COSYVOICE3_GOLDEN")
@pytest.mark.parametrize("side", ["reference", "port"])
def test_the_full_set(side, capsys):
    code = golden.main([str(FULL), "--side", side])
    printed = capsys.readouterr().out
    assert code == 0, [line for line in printed.splitlines() if line.startswith(("FAIL", "ERROR", "VACUOUS"))]


@pytest.mark.meta
def test_the_embedded_files_stay_small():
    assert sum(path.stat().st_size for path in FILES) <= 6_000_000
