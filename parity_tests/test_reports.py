"""The report page: that it shows the numbers of the JSON, in order, safely, and that it works in a browser."""

import html
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests import synthetic_report
from parity_tests.synthetic_report import judged, make, sections
from reports import build, drift, model, view
from reports.causes import causes_of

pytestmark = pytest.mark.meta

BROWSERS = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
HOSTILE = '</script><script>alert("x")</script><img src=//evil.example/a.png onerror=alert(1)>|`*_\n& 😀'


def write(folder, report, name="run.json"):
    path = folder / name
    path.write_text(json.dumps(report), "utf-8")
    return path


def several_causes():
    """Eight parts of three stages that fail by themselves."""
    report, rng = make(broken=True, **sections()), random.Random(1)
    for stage, units in synthetic_report.UNITS.items():
        for module in units[:2] if stage == "flow" else units[:3]:
            name = f"{stage}.{module.rpartition('.')[2].lower()}"
            places = [i for i, r in enumerate(report["checkpoints"]) if (r["name"], r["kind"]) == (name, "isolated")]
            failing = synthetic_report.row(name, stage, "isolated", module, name, 9.5, rng)
            report["checkpoints"][places[0]] = failing
    return judged(report)


def shown(page, name, kind):
    """The exact numbers of one row of the page's table, by the order of their columns."""
    row = re.search(
        rf'<tr class="r-\w+"[^>]*data-kind="{kind}">((?:(?!</tr>).)*?>{re.escape(name)}</td>.*?)</tr>', page, re.S
    )
    return [float(v) if v else None for v in re.findall(r'data-v="([^"]*)"', row[1])]


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("extra", [{}, sections(), dict.fromkeys(sections())], ids=["absent", "filled", "null"])
def test_builds_all_files(tmp_path, capsys, broken, extra):
    report = make(broken=broken, **extra)
    code = build.main([str(write(tmp_path, report)), "--out", str(tmp_path / "out")])
    assert code == (1 if broken else 0)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
        "summary.md",
    ]
    assert model.load(tmp_path / "out" / "report.json") == report
    assert report["verdict"]["sentence"] in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    for section in ("weights", "llm", "audio", "quality", "faults", "liveness", "coverage"):
        assert (f'id="{section}"' in page) == any(extra.values()), section
    assert ("2 of 3 tensors move the result, 1 cannot" in page) == any(extra.values())


@pytest.mark.parametrize("broken", [False, True])
def test_page_shows_the_numbers_of_the_json(broken):
    report = make(broken=broken)
    page = build.render_html(report)
    assert page.count('<tr class="r-') >= len(report["checkpoints"])
    for order, row in enumerate(report["checkpoints"], 1):
        keys = ("ratio", "e_ref_rms", "e_port_rms", "ratio_rms", "e_ref_max", "e_port_max", "ratio_max")
        assert shown(page, row["name"], row["kind"]) == [*(row[key] for key in keys), order], row["name"]
    for status, n in report["verdict"]["counts"].items():
        assert f'data-count="{status}">{n}<' in page


def test_page_order_and_self_containment():
    page = build.render_html(make(broken=True, **sections()))
    order = "verdict provenance strip ratios errors checkpoints failures modules llm audio quality weights components"
    ids = [page.index(f'id="{name}"') for name in f"{order} faults liveness coverage not-checked".split()]
    assert ids == sorted(ids)
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert not re.search(r"https?:|url\(|@import", re.sub(r'="data:[^"]*"', "", page))


def test_failures_come_first_and_open():
    report = make(broken=True)
    page = build.render_html(report)
    body = page.split('id="table-checkpoints"')[1].split("<tbody>")[1]
    statuses = re.findall(r'<tr class="r-(\w+)"', body.split("</tbody>")[0])
    n = report["verdict"]["counts"]["FAIL"]
    assert set(statuses[:n]) == {"FAIL"} and "FAIL" not in statuses[n:]
    many = several_causes()
    page = build.render_html(many)
    assert page.count('<details class="panel is-FAIL" open>') == view.OPEN_PANELS
    assert page.count('<details class="panel is-FAIL"') == len(causes_of(many["checkpoints"], many["modules"])) == 8
    for cause in causes_of(many["checkpoints"], many["modules"]):
        assert html.escape(cause.row["reproduce"]) in page


def test_hostile_strings_stay_text(tmp_path):
    report = make(broken=True, **sections())
    for row in (*report["checkpoints"][3:8], report["checkpoints"][-1]):
        row |= {
            "case": HOSTILE + row["name"],
            "message": HOSTILE,
            "reason": HOSTILE,
            "module": HOSTILE,
            "reproduce": HOSTILE,
        }
    report["checkpoints"][8]["name"] = HOSTILE
    report["components"][0] |= {"component": HOSTILE, "issues": [HOSTILE], "evidence": [HOSTILE]}
    report["provenance"] |= {"command": HOSTILE, "adapter": HOSTILE, "machine": HOSTILE}
    report["audio"][0]["name"] = report["faults"]["rows"][0]["name"] = report["liveness"][0]["case"] = HOSTILE
    report["tests"][0] |= {"nodeid": HOSTILE, "outcome": "failed", "reason": HOSTILE}
    report["not_checked"].append({"what": HOSTILE, "why": HOSTILE})
    report["exceptions"].append({"checkpoint": HOSTILE, "reason": HOSTILE, "cause": HOSTILE})
    report = model.validate(judged(report))
    report["drift"] = drift.compare(make(), report)
    page, text = build.render_html(model.validate(report)), build.render_markdown(report)
    assert page.count("<script") == page.count("</script") == 1
    code_spans = r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)"
    for written in (text, build.render_markdown(report, summary=True)):
        assert "<img src=//" not in page and "<img src=//" not in re.sub(code_spans, "", written)
    assert "Fast forms: tables, attention" in text and "Fast forms</dt><dd>tables, attention" in page
    assert "own, commit" not in text and "mlx 0.32.4, torch 2.13.0, " in text
    for line in text.splitlines():
        if line.startswith("| FAIL"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 11, line
    for line in build.annotations(report):
        assert "\n" not in line and re.match(r"::(error file=[^:]*,line=\d+,title=[^:]*|notice)::", line), line


def test_long_run_stays_small():
    """A thousand checkpoints, all failing: the page stays of a size to mail, the summary within GitHub's limit."""
    rng = random.Random(0)
    report = make()
    report["checkpoints"] = [
        synthetic_report.row(
            f"flow.block.{i}@step{i % 10}",
            "flow",
            "chained",
            f"flow.layers.Attention{i}",
            f"{i}" + "x" * 500,
            5.0 + i,
            rng,
        )
        for i in range(1000)
    ]
    report["components"] = []
    report = model.validate(judged(report))
    page, summary = build.render_html(report), build.render_markdown(report, summary=True)
    assert len(page) < 8e6 and page.count('<details class="panel') == view.PANELS
    assert len(summary.encode()) < build.SUMMARY_BYTES and "980 more parts" in summary
    assert len(build.annotations(report)) == build.ANNOTATIONS + 1


def test_summary_is_cut_at_a_line(monkeypatch):
    monkeypatch.setattr(build, "SUMMARY_BYTES", 1000)
    summary = build.render_markdown(make(broken=True), summary=True)
    assert len(summary.encode()) < 1000 and summary.endswith("report.html.\n")


def test_reports_import_neither_model():
    code = (
        "import sys; import reports.build, reports.drift; "
        "print([m for m in ('torch', 'mlx', 'port', 'reference', 'numpy', 'parity_tests') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert found.stdout.strip() == "[]"


PROBE = """<script>
const table = document.getElementById("table-checkpoints"), heads = table.tHead.rows[0].cells, found = {};
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
const label = (row) => row.cells[2].textContent + " " + row.cells[3].textContent;
found.rows = Object.fromEntries([...table.tBodies[0].rows].map((r) => [label(r), shown(r)]));
found.panel = {
  name: closed.querySelector("summary .name").textContent, kind: closed.querySelector("summary .kind").textContent,
  numbers: [...closed.querySelectorAll("summary .num, dl.facts dd .num")].map((e) => e.dataset.v),
  worst: [...closed.querySelectorAll("table.compact tbody tr")].map(shown), text: closed.innerText,
};
found.open = [...document.querySelectorAll("#failures > details.panel")].map((d) => d.open);
found.plots = document.querySelectorAll("svg.plot").length;
found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.dataset.found = JSON.stringify(found);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH, and CHROMIUM names none")
def test_page_in_a_browser(tmp_path):
    report = several_causes()
    path = tmp_path / "report.html"
    path.write_text(build.render_html(report).replace("</body>", PROBE + "</body>"), "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --window-size=500,900 --user-data-dir={tmp_path / 'profile'}"
    run = subprocess.run(
        [CHROMIUM, *flags.split(), "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = json.loads(html.unescape(re.search(r'<body data-found="([^"]*)"', run.stdout)[1]))
    ratios = [r["ratio"] for r in report["checkpoints"]]
    measured = sorted((r for r in ratios if r is not None), reverse=True)
    missing = [""] * ratios.count(None)
    assert [float(v) if v else "" for v in found["descending"]] == measured + missing
    assert [float(v) if v else "" for v in found["ascending"]] == measured[::-1] + missing
    assert found["again"] == found["page"]
    wanted = [r["name"] for r in report["checkpoints"] if r["kind"] == "isolated" and "blocks.2" in r["name"]]
    assert sorted(found["filtered"]) == sorted(wanted) and found["count"] == f"{len(wanted)} of {len(ratios)}"
    assert found["opened"] and found["plots"] > 2 and not found["wide"]
    assert found["open"][: view.OPEN_PANELS + 1] == [True] * (view.OPEN_PANELS + 1)  # the last one by the click

    def numbers(row, *keys):
        return ["" if row[key] is None else row[key] for key in keys]

    def read(values):
        return [float(v) if v else "" for v in values]

    keys = ("ratio", "e_ref_rms", "e_port_rms", "ratio_rms", "e_ref_max", "e_port_max", "ratio_max")
    for order, row in enumerate(report["checkpoints"], 1):
        assert read(found["rows"][f"{row['name']} {row['kind']}"]) == [*numbers(row, *keys), order]
    panel = found["panel"]
    (row,) = (r for r in report["checkpoints"] if (r["name"], r["kind"]) == (panel["name"], panel["kind"]))
    errors = ("e_port_rms", "e_ref_rms", "ratio_rms", "e_port_max", "e_ref_max", "ratio_max")
    assert read(panel["numbers"])[:7] == numbers(row, "ratio", *errors)
    assert [read(at) for at in panel["worst"]] == [
        numbers(at, "port", "oracle", "reference") for at in row["worst_positions"]
    ]
    assert row["nearest_fault"] in panel["text"] and row["reproduce"] in panel["text"]


def test_the_catalogue_is_shown_with_its_age_and_its_survivors_first():
    report = make(**sections())
    page, text = build.render_html(report), build.render_markdown(report)
    assert "4 of 4 caught in this run" in page and "4 of 5 caught" in page and "STALE" in page and "STALE" in text
    table = page.partition("Whole catalogue, survivors first")[2]
    assert re.search(r'class="name">(fault \d)', table)[1] == "fault 5"
    report["fault_catalogue"]["fresh"] = True
    page, text = build.render_html(report), build.render_markdown(report)
    assert "on the very code of this run" in page and "STALE" not in page + text
    assert report["verdict"]["status"] == "PASS", "what was not measured in this run judges nothing"


def test_a_run_is_compared_with_the_last_one_where_there_is_one(tmp_path, capsys):
    run, last, ledger = write(tmp_path, make()), tmp_path / "last.json", tmp_path / "ledger.jsonl"
    command = [str(run), "--out", str(tmp_path / "out"), "--last", str(last), "--ledger", str(ledger)]
    assert build.main(command) == 0 and not capsys.readouterr().err
    assert model.load(tmp_path / "out" / "report.json").get("drift") is None
    last.write_text("{}")
    assert build.main(command) == 0 and "compared with no earlier run" in capsys.readouterr().err
    write(tmp_path, make(broken=True), "last.json")
    assert build.main(command) == 0
    found = model.load(tmp_path / "out" / "report.json")["drift"]
    assert found["fixed"] and not found["regressions"]
    assert len(ledger.read_text().splitlines()) == 1
