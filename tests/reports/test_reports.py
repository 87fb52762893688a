"""The report page: it shows the numbers of the JSON in order, escapes text, and works in a browser."""

import html
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_parity.report import drift, model, page, view
from mlx_parity.report.codec import plain, read
from mlx_parity.report.data import Gap
from mlx_parity.report.model import Report
from mlx_parity.report.words import Wording
from reports import build
from reports.cosyvoice3 import WORDING
from reports.picture import BROWSERS
from tests.support import synthetic_report
from tests.support.synthetic_report import amended, every_section, make, place_of

pytestmark = pytest.mark.meta

CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
COLUMNS = ("ratio", "e_ref_rms", "e_port_rms", "ratio_rms", "e_ref_max", "e_port_max", "ratio_max")
HOSTILE = '</script><script>alert("x")</script><img src=//evil.example/a.png onerror=alert(1)>|`*_\n& 😀'


def several_causes():
    """Eight parts of three stages that fail by themselves."""
    report, rng = make(broken=True, **every_section()), random.Random(1)
    rows = list(report.rows)
    for stage, units in synthetic_report.UNITS.items():
        for module in units[:2] if stage == "flow" else units[:3]:
            name = f"{stage}.{module.rpartition('.')[2].lower()}"
            rows[place_of(report, name)] = synthetic_report.row(name, stage, "isolated", module, name, 9.5, rng)
    return replace(report, rows=tuple(rows), components=())


def html_of(report):
    return page.render_html(report, WORDING)


def markdown_of(report, **summary):
    return page.render_markdown(report, WORDING, **summary)


def shown(page, name, kind):
    """The exact numbers of one row of the page's table, by the order of their columns."""
    row = re.search(
        rf'<tr class="r-\w+"[^>]*data-kind="{kind}">((?:(?!</tr>).)*?>{re.escape(name)}</td>.*?)</tr>', page, re.S
    )
    return [float(v) if v else None for v in re.findall(r'data-v="([^"]*)"', row[1])]


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("extra", [{}, every_section()], ids=["absent", "filled"])
def test_builds_all_files(tmp_path, capsys, broken, extra):
    report, out = make(broken=broken, **extra), tmp_path / "out"
    model.save(report, tmp_path / "run.json")
    assert build.main([str(tmp_path / "run.json"), "--out", str(out)]) == (1 if broken else 0)
    assert {p.name for p in out.iterdir()} == {"report.html", "report.json", "report.md", "summary.md"}
    assert model.load(out / "report.json") == report
    assert report.verdict.sentence in capsys.readouterr().out
    text = (out / "report.html").read_text("utf-8")
    for section in ("weights", "audio", "quality", "faults", "liveness", "coverage"):
        assert (f'id="{section}"' in text) == bool(extra), section
    for said in (
        "2 of 3 tensors move the result, 1 cannot",
        "949 of 951 source tensors consumed, 2 dropped on purpose; 640 of 640 port parameters filled, 506,123,456",
        "tensors 8; elements 2,000; ignored epoch, step",
    ):
        assert (said in text) == bool(extra)


@pytest.mark.parametrize("broken", [False, True])
def test_page_shows_the_numbers_of_the_json(broken):
    report = make(broken=broken)
    text = html_of(report)
    assert text.count('<tr class="r-') >= len(report.rows)
    for order, row in enumerate(report.rows, 1):
        assert shown(text, row.name, row.kind) == [*(getattr(row, key) for key in COLUMNS), order], row.name
    for status, n in report.verdict.counts.items():
        assert f'data-count="{status}">{n}<' in text


def test_page_order_and_self_containment():
    text = html_of(make(broken=True, **every_section()))
    order = "verdict provenance strip ratios errors rows failures modules audio quality weights components"
    ids = [text.index(f'id="{name}"') for name in f"{order} faults liveness coverage not-checked".split()]
    assert ids == sorted(ids)
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert not re.search(r"https?:|url\(|@import", re.sub(r'="data:[^"]*"', "", text))


def test_a_report_without_wording_has_a_page():
    text = page.render_html(make(broken=True, **every_section()), Wording())
    assert "Model parity report" in text and ">whole<" in text and "CosyVoice 3" not in text


def test_failures_come_first_and_open():
    report = make(broken=True)
    body = html_of(report).split('id="table-rows"')[1].split("<tbody>")[1]
    statuses = re.findall(r'<tr class="r-(\w+)"', body.split("</tbody>")[0])
    n = report.verdict.counts["FAIL"]
    assert set(statuses[:n]) == {"FAIL"} and "FAIL" not in statuses[n:]
    many = several_causes()
    text = html_of(many)
    assert text.count('<details class="panel is-FAIL" open>') == view.OPEN_PANELS
    assert text.count('<details class="panel is-FAIL"') == len(many.causes) == 8
    for cause in many.causes:
        assert html.escape(cause.row.reproduce) in text


def test_hostile_strings_stay_text():
    report = make(broken=True, **every_section())
    for i in (*range(3, 8), -1):
        texts = dict.fromkeys(("message", "module", "reproduce"), HOSTILE)
        report = amended(report, "rows", i, case=HOSTILE + report.rows[i].name, **texts)
    report = amended(report, "rows", 8, name=HOSTILE)
    report = amended(report, "components", 0, component=HOSTILE, issues=(HOSTILE,), evidence=(HOSTILE,))
    report = amended(report, "tests", 0, nodeid=HOSTILE, outcome="failed", reason=HOSTILE)
    report = amended(amended(report, "audio", 0, name=HOSTILE), "liveness", 0, case=HOSTILE)
    about = replace(report.provenance, command=HOSTILE, adapter=HOSTILE, machine=HOSTILE)
    faults = amended(report.faults, "rows", 0, name=HOSTILE)
    gaps = (*report.not_checked, Gap(HOSTILE, HOSTILE))
    report = replace(report, provenance=about, faults=faults, not_checked=gaps)
    report = replace(report, drift=drift.compare(make(), report))
    again = read(Report, plain(report))  # what does not print is escaped once
    assert read(Report, plain(again)) == again
    written, text = html_of(report), markdown_of(report)
    assert written.count("<script") == written.count("</script") == 1
    code_spans = r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)"
    assert "<img src=//" not in written
    for shown_text in (text, markdown_of(report, summary=True)):
        assert "<img src=//" not in re.sub(code_spans, "", shown_text)
    assert "Fast forms: tables, attention" in text and "Fast forms</dt><dd>tables, attention" in written
    assert "own, commit" not in text and "mlx 0.32.4, torch 2.13.0, " in text
    for line in text.splitlines():
        if line.startswith("| FAIL"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 11, line
    for line in page.annotation_lines(report, WORDING):
        assert "\n" not in line and re.match(r"::(error file=[^:]*,line=\d+,title=[^:]*|notice)::", line), line


def test_long_run_stays_small():
    """A thousand tensors, all failing: the page stays small enough to mail, the summary within GitHub's limit."""
    rng, long = random.Random(0), "x" * 500
    rows = [
        synthetic_report.row(f"flow.{i}@step{i % 10}", "flow", "chained", f"flow.X{i}", f"{i}{long}", 5.0 + i, rng)
        for i in range(1000)
    ]
    report = replace(make(), rows=tuple(rows), components=())
    text, summary = html_of(report), markdown_of(report, summary=True)
    assert len(text) < 8e6 and text.count('<details class="panel') == view.PANELS
    assert len(summary.encode()) < page.SUMMARY_BYTES and "980 more parts" in summary
    assert len(page.annotation_lines(report, WORDING)) == page.ANNOTATIONS + 1


def test_summary_is_cut_at_a_line(monkeypatch):
    monkeypatch.setattr(page, "SUMMARY_BYTES", 1000)
    summary = markdown_of(make(broken=True), summary=True)
    assert len(summary.encode()) < 1000 and summary.endswith("report.html.\n")


def test_the_report_imports_no_model_and_nothing_of_this_repository():
    code = (
        "import sys; import mlx_parity.report.page, mlx_parity.report.drift; "
        "own = ('torch', 'mlx', 'numpy', 'jsonschema', 'port', 'reference', 'convert', 'parity_tests', 'reports'); "
        "print([m for m in own if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert found.stdout.strip() == "[]"


PROBE = """<script>
const table = document.getElementById("table-rows"), heads = table.tHead.rows[0].cells, found = {};
const names = () => [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[2].textContent);
const values = () => [...table.tBodies[0].rows].map((r) => r.cells[1].dataset.v);
const click = (i) => heads[i].querySelector("button").click();
found.page = values(); click(1); found.descending = values(); click(1);
found.ascending = values(); click(1); found.again = values();
const form = document.querySelector("form.filter");
form.elements.kind.value = "isolated"; form.elements.text.value = "BLOCKS.2";
form.dispatchEvent(new Event("input")); found.filtered = names();
found.count = form.querySelector("output").textContent;
const closed = document.querySelector("#failures > details.panel:not([open])");
closed.querySelector("summary").click(); found.opened = closed.open;
const shown = (row) => [...row.querySelectorAll("td.num")].map((cell) => cell.dataset.v);
found.panel = {
  name: closed.querySelector("summary .name").textContent, kind: closed.querySelector("summary .kind").textContent,
  numbers: [...closed.querySelectorAll("summary .num, dl.facts dd .num")].map((e) => e.dataset.v),
  worst: [...closed.querySelectorAll("table.compact tbody tr")].map(shown), text: closed.textContent,
};
found.open = [...document.querySelectorAll("#failures > details.panel")].map((d) => d.open);
found.plots = document.querySelectorAll("svg.plot").length;
found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
parent.document.body.dataset.found = JSON.stringify(found);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH, and CHROMIUM names none")
def test_page_in_a_browser_as_wide_as_a_phone(tmp_path):
    report, path = several_causes(), tmp_path / "report.html"
    inside = html.escape(html_of(report).replace("</body>", PROBE + "</body>"))
    path.write_text(f'<body><iframe width="390" height="900" srcdoc="{inside}"></iframe></body>', "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'}"
    run = subprocess.run(
        [CHROMIUM, *flags.split(), "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = json.loads(html.unescape(re.search(r'<body data-found="([^"]*)"', run.stdout)[1]))
    ratios = [r.ratio for r in report.rows]
    measured = sorted((r for r in ratios if r is not None), reverse=True)
    missing = [""] * ratios.count(None)
    assert [float(v) if v else "" for v in found["descending"]] == measured + missing
    assert [float(v) if v else "" for v in found["ascending"]] == measured[::-1] + missing
    assert found["again"] == found["page"]
    wanted = [r.name for r in report.rows if r.kind == "isolated" and "blocks.2" in r.name]
    assert sorted(found["filtered"]) == sorted(wanted) and found["count"] == f"{len(wanted)} of {len(ratios)}"
    assert found["opened"] and found["plots"] > 2 and not found["wide"]
    assert found["open"][: view.OPEN_PANELS + 1] == [True] * (view.OPEN_PANELS + 1)  # the last one by the click

    def numbers(row, *keys):
        return ["" if getattr(row, key) is None else getattr(row, key) for key in keys]

    def floats(values):
        return [float(v) if v else "" for v in values]

    panel = found["panel"]
    row = report.rows[place_of(report, panel["name"], panel["kind"])]
    errors = ("e_port_rms", "e_ref_rms", "ratio_rms", "e_port_max", "e_ref_max", "ratio_max")
    assert floats(panel["numbers"])[:7] == numbers(row, "ratio", *errors)
    assert [floats(at) for at in panel["worst"]] == [numbers(at, "port", "oracle", "reference") for at in row.worst]
    assert row.nearest_fault in panel["text"] and row.reproduce in panel["text"]


def test_the_catalogue_is_shown_with_its_age_and_its_survivors_first():
    report = make(**every_section())
    written, text = html_of(report), markdown_of(report)
    assert "4 of 4 caught in this run" in written and "4 of 5 caught" in written
    assert "STALE" in written and "STALE" in text
    table = written.partition("Whole catalogue, survivors first")[2]
    assert re.search(r'class="name">(fault \d)', table)[1] == "fault 5"
    report = replace(report, fault_catalogue=replace(report.fault_catalogue, fresh=True))
    written, text = html_of(report), markdown_of(report)
    assert "on the very code of this run" in written and "STALE" not in written + text
    assert report.verdict.status == "PASS", "another run's measurement must not change the verdict"


def test_a_stale_record_is_one_line_and_no_failure(tmp_path, capsys):
    path, given = tmp_path / "run.json", every_section()
    for fresh in (True, False):
        catalogue = replace(given["fault_catalogue"], fresh=fresh)
        model.save(make(**given | {"fault_catalogue": catalogue}), path)
        assert build.main([str(path), "--out", str(tmp_path / "out")]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "make record" in line]
        assert len(lines) == (not fresh)


def test_a_run_is_compared_with_the_last_one_where_there_is_one(tmp_path, capsys):
    run, last, ledger = (tmp_path / name for name in ("run.json", "last.json", "ledger.jsonl"))
    model.save(make(), run)
    command = [str(run), "--out", str(tmp_path / "out"), "--last", str(last), "--ledger", str(ledger)]
    assert build.main(command) == 0 and not capsys.readouterr().err
    assert model.load(tmp_path / "out" / "report.json").drift is None
    last.write_text("{}")
    assert build.main(command) == 0 and "compared with no earlier run" in capsys.readouterr().err
    model.save(make(broken=True), last)
    assert build.main(command) == 0
    found = model.load(tmp_path / "out" / "report.json").drift
    assert found == drift.compare(model.load(last), make()) and found.fixed and not found.regressions
    assert f"Fixed ({len(found.fixed)})" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert len(ledger.read_text().splitlines()) == 1
    assert build.main([str(last), *command[1:3], "--against", str(run)]) == 1
    assert f"New failures ({len(found.fixed)})" in (tmp_path / "out" / "report.html").read_text("utf-8")
