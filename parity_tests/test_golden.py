"""Numbers made by running the original: the reference proved in float64, the port judged by ratio.

The files here cover every module and travel with the project; the whole set runs where it is at hand.
"""

import os
import shlex
from glob import escape
from pathlib import Path

import pytest

from mlx_parity.compare import Reading
from mlx_parity.judge import Row
from mlx_parity.record import Recorded, describe
from parity_tests import golden
from parity_tests.golden import EMBEDDED, GoldenRow, judge_file
from parity_tests.harness.golden_table import named_by

ROOT = Path(__file__).parents[1]
COMMAND = ("python", "-m", "parity_tests.golden")
# The full set lies beside the project where it was developed; anyone else names it.
FULL = Path(os.environ.get("COSYVOICE3_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
FILES = sorted(EMBEDDED.glob("*.safetensors"))
PARTS = {path.stem: named_by(path.stem, describe(path)[0]) for path in FILES}
STAGES = {"llm": "llm", "sampling": "llm", "mel": "frontend", "resample": "frontend", "upstream": "noise"}
VOCODER = ("causal", "snake", "resblock", "f0", "sinegen2", "source", "stft", "istft", "hift")


def stage_of(name: str) -> str:
    if name.startswith(("model", "silent")):
        return "whole"
    if name.startswith("causal_conv_pos"):
        return "flow"
    return STAGES.get(name.split("_")[0], "vocoder" if name.startswith(VOCODER) else "flow")


def report_row(row: GoldenRow, folder: Path) -> Row:
    reading = row.reading or Reading(row.status, row.note or _numbers(row))
    return Row(
        name=f"golden.{row.file}.{row.tensor}",
        stage=stage_of(row.file),
        kind="golden",
        module=PARTS.get(row.file) or row.file,
        case=row.file,
        reading=reading,
        reproduce=shlex.join([*COMMAND, str(folder), "--side", "port", "--only", escape(row.file)]),
    )


def _numbers(row: GoldenRow) -> str:
    return "" if row.value is None else f"{row.measure}: {row.value:.3g}, limit {row.limit:.3g}"


def lines(rows: list[GoldenRow]) -> list[str]:
    return [
        f"{r.file}.{r.tensor}: {r.status} {r.note or _numbers(r)}" for r in rows if r.status not in ("PASS", "SKIP")
    ]


@pytest.mark.part("reference")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_reference_is_the_original(path):
    rows = judge_file(Recorded.read(path), "reference")
    assert rows
    assert not (broken := lines(rows)), broken


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=pytest.mark.part(PARTS[p.stem])) for p in FILES])
def test_the_port_is_the_original(parity, path):
    parity.add(report_row(row, EMBEDDED.relative_to(ROOT)) for row in judge_file(Recorded.read(path), "port"))


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
