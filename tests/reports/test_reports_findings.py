"""docs/findings.md: every number comes from a run's files, and every example is on the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_parity.report.data import Component
from mlx_parity.report.model import save
from reports import findings
from tests.support.synthetic_report import make

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]
CAUSE = "Wrong pad: zeros for |reflected| samples."


def part(name, status, *issues):
    return Component(component=name, status=status, checked="some rows", evidence=("noise.sine_waves",), issues=issues)


@pytest.fixture
def folder(tmp_path):
    """Results of a port that diverges in two parts for one cause."""
    parts = (
        part("stft", "FAIL", CAUSE),
        part("decode", "FAIL", f"{findings.FOLLOWS}padding.", CAUSE),
        part("f0", "PASS"),
    )
    found = make(broken=True, components=(*parts, part("text", "SKIP")))
    save(replace(found, provenance=replace(found.provenance, adapter="port_of_x")), tmp_path / "report.json")
    (tmp_path / "shipped.json").write_text(json.dumps({"status": "REDUCED", "regime": "ten bits"}))
    (tmp_path / "score.json").write_text(json.dumps({"a": {"caught": 3, "total": 4}, "b": {"caught": 5, "total": 5}}))
    return tmp_path


def test_the_page_says_what_the_files_say(folder):
    out = folder / "page.md"
    assert findings.main([str(folder), "--out", str(out)]) == 0
    page = out.read_text()
    said = " ".join(page.split())
    (line,) = [line for line in page.splitlines() if line.startswith("| port_of_x |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:5] == ["1", "2", "1"] and cells[6:] == ["1", "REDUCED (ten bits)", "8 of 9"]
    assert 0 < float(cells[5].removesuffix("x")) <= 4
    assert said.count("Wrong pad: zeros for \\|reflected\\| samples. In: stft, decode.") == 1
    assert findings.FOLLOWS not in said


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert findings.main([str(tmp_path / "none"), "--out", str(tmp_path / "page.md")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "page.md").exists()


def test_every_example_is_on_the_page():
    said = (ROOT / "docs" / "findings.md").read_text("utf-8")
    programs = [path.relative_to(ROOT).as_posix() for path in (ROOT / "examples" / "ports").glob("*.py")]
    assert programs and not [program for program in programs if f"run {program} " not in said]
    assert "parity_tests.audit mlx_audio_plus" in said
