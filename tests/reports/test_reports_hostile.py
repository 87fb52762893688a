"""Untrusted texts of a report: none acts on a terminal, a log or a page."""

import json

import pytest

from mlx_parity.report.codec import ReportError, read
from mlx_parity.report.model import Report
from reports import build, drift
from tests.support.parsed_json import edited, leaves

pytestmark = pytest.mark.meta


BITE = "x\n::stop-commands::x\n\x1b[2J\u202e"


def test_no_text_of_a_report_runs_in_a_terminal_a_log_or_a_page(valid, tmp_path, capsys):
    """Each text gets a line break, a command for CI, an escape sequence and a mark of direction."""
    path, taken = tmp_path / "run.json", valid
    texts = [way for way, value in leaves(valid) if isinstance(value, str)]
    ways = {tuple("*" if isinstance(step, int) else step for step in way): way for way in texts}
    for way in ways.values():
        try:
            read(Report, edited(valid, way, BITE))
            taken = edited(taken, way, BITE)
        except ReportError as refusal:
            assert str(refusal).isprintable(), way
    assert json.dumps(taken).count("stop-commands") > len(ways) / 4
    path.write_text(json.dumps(taken), "utf-8")
    assert build.main([str(path), "--out", str(tmp_path / "out"), "--annotations"]) in (0, 1)
    drift.main([str(path), str(path)])
    captured = capsys.readouterr()
    pages = [file.read_text("utf-8") for file in (tmp_path / "out").iterdir()]
    assert len(pages) == 4
    for text in (captured.out, captured.err, *pages):
        assert "\x1b" not in text and "\u202e" not in text
        assert not any(line.startswith("::stop") for line in text.splitlines())


def test_a_stored_sentence_is_not_printed(valid, tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(edited(valid, ("verdict", "sentence"), "FAIL: all is lost")), "utf-8")
    assert build.main([str(path), "--out", str(tmp_path / "out")]) == 0
    said = [capsys.readouterr().out, *(file.read_text("utf-8") for file in (tmp_path / "out").iterdir())]
    assert not any("all is lost" in text for text in said)
