"""The picture of a report's head for the README."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_parity.report import page
from reports import picture
from reports.cosyvoice3 import WORDING
from tests.support.synthetic_report import make

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not any(map(shutil.which, picture.BROWSERS)), reason="no Chromium on this machine")
def test_it_shows_the_verdict_and_the_pipeline_in_a_small_file(tmp_path):
    (tmp_path / "report.html").write_text(page.render_html(make(), WORDING), "utf-8")
    assert picture.main([str(tmp_path / "report.html"), str(tmp_path / "head.png")]) == 0
    head = Image.open(tmp_path / "head.png").convert("RGB")
    assert head.width == picture.WIDTH and 300 < head.height < 800
    of_pass = np.abs(np.array(head, int) - (26, 127, 55)).max(axis=2) < 30
    assert of_pass.sum() > 500
    assert max((tmp_path / "head.png").stat().st_size, (ROOT / "docs/report.png").stat().st_size) < 60_000


@pytest.mark.parametrize("browser", ["", "sh"])
def test_what_is_missing_is_one_line(browser, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(picture, "BROWSERS", (browser,))
    assert picture.main([str(tmp_path / "none.html"), str(tmp_path / "head.png")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("none.html" in said) == bool(browser)
