"""What the report refuses, the verdict that follows from its rows, and the words of a failure."""

import copy
import json
import math
import re

import pytest

from parity_tests.synthetic_report import judged, make, sections
from reports import build, drift, model
from reports.words import ratio_text

pytestmark = pytest.mark.meta


def edited(report, path, value):
    report = copy.deepcopy(report)
    *way, last = path
    at = report
    for step in way:
        at = at[step]
    at[last] = value
    return report


def write(folder, report, name="run.json"):
    path = folder / name
    path.write_text(json.dumps(report), "utf-8")
    return path


def test_strict_json_only(tmp_path, capsys):
    for literal in ("NaN", "Infinity", "-Infinity", "1e999"):
        text = re.sub(r'"error": [0-9.]+e-[^,]+', f'"error": {literal}', json.dumps(make()))
        (tmp_path / "run.json").write_text(text)
        assert build.main([str(tmp_path / "run.json"), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert "null" in error and error.count("\n") == 1
    with pytest.raises(model.ReportError, match="NaN"):
        model.save(edited(make(), ("checkpoints", 2, "e_ref_rms"), math.nan), tmp_path / "new.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe", b'"x"', b"[" * 100_000, b"{}"])
@pytest.mark.parametrize("command", [build, drift])
def test_unreadable_file_is_one_line(tmp_path, capsys, content, command):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    good = write(tmp_path, make(), "good.json")
    arguments = [path, "--out", tmp_path / "out"] if command is build else [good, path]
    assert command.main(list(map(str, arguments))) == 1
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and str(path) in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


SCHEMA_BREAKS = [
    (("schema_version",), 2),
    (("surprise",), 1),
    (("verdict", "counts", "PASS"), -1),
    (("provenance", "started"), "yesterday"),
    (("provenance", "weights", 0, "sha256"), "abc"),
    (("checkpoints", 2, "status"), "OK"),
    (("checkpoints", 2, "stage"), "decoder"),
    (("checkpoints", 2, "e_ref_rms"), "1e-7"),
    (("checkpoints", 2, "name"), ""),
    (("components", 0, "evidence"), []),
    (("audio",), [{"name": "x", "sample_rate": 24000, "snr_db": 1, "log_mel_distance": 0, "port_wav": '"><script>'}]),
    (("modules", "flow.layers.GRN", "port"), "port/flow/layers.py"),
    (("llm",), {"tokens_compared": 3, "agreement": 1.5, "first_disagreement": None, "gap": None}),
]
CONTRADICTIONS = [
    (("checkpoints", 2, "ratio"), 1.0, "larger of its two ratios"),
    (("checkpoints", 2, "ratio_rms"), 0.001, "its errors give"),
    (("checkpoints", 2, "e_port_max"), 1.0, "its errors give"),
    (("checkpoints", 2, "status"), "FAIL", "does not say why"),
    (("checkpoints", 2, "status"), "ERROR", "does not say why"),
    (("checkpoints", 2, "status"), "XFAIL", "without a reason"),
    (("checkpoints", 3, "histogram"), {"edges": [0, 1], "port": [1], "reference": []}, "one edge more"),
    (("verdict", "status"), "FAIL", "verdict.status"),
    (("verdict", "counts", "PASS"), 3, "verdict.counts"),
    (("verdict", "worst", "ratio"), 0.5, "verdict.worst"),
    (("verdict", "first_over_budget"), "flow.dit", "first_over_budget"),
    (("faults", "score", "total"), 9, "score"),
    (("faults", "rows", 0, "caught"), False, "score"),
    (("weights_audit", "filled"), 600, "filled and missing"),
    (("weights_audit", "unused"), ["a"], "add up to sources"),
]


@pytest.mark.parametrize(
    ("path", "value"), SCHEMA_BREAKS, ids=lambda v: ".".join(map(str, v)) if type(v) is tuple else ""
)
def test_schema_violations_are_refused(path, value):
    with pytest.raises(model.ReportError) as error:
        model.validate(edited(make(**sections()), path, value))
    assert "\n" not in str(error.value) and (len(path) == 1 or str(path[-1]) in str(error.value))


@pytest.mark.parametrize(
    ("path", "value", "complaint"), CONTRADICTIONS, ids=lambda v: ".".join(map(str, v)) if type(v) is tuple else ""
)
def test_contradictions_are_refused(path, value, complaint):
    with pytest.raises(model.ReportError, match=re.escape(complaint)):
        model.validate(edited(make(**sections()), path, value))


def test_every_required_field_is_required():
    report = make()
    for at in ((), ("verdict",), ("provenance",), ("checkpoints", 2), ("components", 0), ("tests", 0)):
        inner = report
        for step in at:
            inner = inner[step]
        for field in inner.keys() - {"worst_positions", "error_map", "nearest_fault", "fast_forms", "modules"}:
            broken = copy.deepcopy(report)
            place = broken
            for step in at:
                place = place[step]
            del place[field]
            with pytest.raises(model.ReportError, match=field):
                model.validate(broken)


def test_twice_the_same_checkpoint_is_refused():
    report = make()
    report["checkpoints"].append(report["checkpoints"][2])
    with pytest.raises(model.ReportError, match="there twice"):
        model.validate(judged(report))


def test_an_unknown_field_of_a_row_is_refused():
    with pytest.raises(model.ReportError, match="rms"):
        model.checkpoint("a", "flow", "exact", "m", "c", "PASS", reproduce="x", test="t", rms=1.0)


VERDICTS = {
    "test failed": ("FAIL", lambda r: r["tests"][0].update(outcome="failed")),
    "test broken": ("ERROR", lambda r: r["tests"][0].update(outcome="error")),
    "test skipped": ("PASS", lambda r: r["tests"][0].update(outcome="skipped")),
    "not comparable": ("ERROR", lambda r: r["checkpoints"][2].update(status="ERROR", message="shape")),
    "vacuous": ("FAIL", lambda r: r["checkpoints"][2].update(status="VACUOUS", message="zero")),
    "excused": ("PASS", lambda r: r["checkpoints"][2].update(status="XFAIL", reason="issue 7")),
    "fail beats error": (
        "FAIL",
        lambda r: (
            r["checkpoints"][2].update(status="ERROR"),
            r["checkpoints"][0].update(status="FAIL", message="bits"),
        ),
    ),
    "dead tensor": ("FAIL", lambda r: r["liveness"][0].update(status="VACUOUS")),
    "liveness broken": ("ERROR", lambda r: r["liveness"][0].update(status="ERROR")),
    "fault survived": ("FAIL", lambda r: r["faults"].update(score={"caught": 3, "total": 4})),
    "weight missing": ("FAIL", lambda r: r["weights_audit"].update(missing=["flow.x"])),
    "weight unused": ("FAIL", lambda r: r["weights_audit"].update(unused=["x"])),
    "component failed": ("FAIL", lambda r: r["components"][0].update(status="FAIL")),
    "nothing compared": ("ERROR", lambda r: r["checkpoints"].clear()),
    "all skipped": ("ERROR", lambda r: [row.update(status="SKIP", reason="no device") for row in r["checkpoints"]]),
    "all reduced": ("ERROR", lambda r: [row.update(status="REDUCED") for row in r["checkpoints"]]),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name):
    status, change = VERDICTS[name]
    report = make(**sections())
    assert report["verdict"]["status"] == "PASS"
    change(report)
    verdict = judged(report)["verdict"]
    assert verdict["status"] == status
    assert verdict["sentence"].startswith(f"{status}: ") and "\n" not in verdict["sentence"]


def test_first_over_budget_goes_by_the_pipeline_not_by_the_order_of_the_run():
    report = make(broken=True)
    assert report["verdict"]["first_over_budget"] == "flow.attention"
    report["checkpoints"].reverse()
    assert judged(report)["verdict"]["first_over_budget"].startswith("flow.")
    late = next(r for r in report["checkpoints"] if r["stage"] == "llm")
    late.update(status="FAIL", message="bits")
    assert judged(report)["verdict"]["first_over_budget"] == late["name"]


def test_worst_per_stage():
    report = make(broken=True)
    found = model.worst_per_stage(report["checkpoints"])
    assert found["speaker"] == {"status": None, "ratio": None, "checkpoint": None, "total": 0, "passed": 0}
    assert (found["noise"]["status"], found["noise"]["ratio"]) == ("PASS", None)
    flow = [r for r in report["checkpoints"] if r["stage"] == "flow"]
    assert found["flow"]["status"] == "FAIL" and found["llm"]["status"] == "PASS"
    assert found["flow"]["ratio"] == max(r["ratio"] or 0 for r in flow) and found["flow"]["total"] == len(flow)


NAME = "flow.dit.block[07].attn.out"


def sentence(kind="chained", rms=9.3, peak=7.0, isolated=None, alone=NAME, **change):
    base = {"name": NAME, "kind": kind, "status": "FAIL", "message": "", "reason": None}
    base |= {"ratio": max(rms, peak), "ratio_rms": rms, "ratio_max": peak}
    base["worst"] = {"index": [0, 412, 88], "port": 0.18231, "oracle": 0.1819, "reference": 0.1819}
    return model.failure_sentence(base | change, first=True, isolated=isolated and {"ratio": isolated, "name": alone})


def test_failure_sentence():
    start = "flow.dit.block[07].attn.out: 9.3x the reference's own float32 error"
    middle = "(budget 4x). First checkpoint over budget. Worst element [0, 412, 88]: port 0.18231, float64 0.1819."
    end = "Isolated: 9.1x, so the fault is inside this module."
    assert sentence(isolated=9.1) == f"{start} {middle} {end}"
    assert sentence(isolated=0.9).endswith("Isolated: 0.9x, so the fault comes from what feeds it.")
    assert "Isolated (flow.attention, same class): 9.1x, so" in sentence(isolated=9.1, alone="flow.attention")
    assert sentence(kind="isolated").endswith("so the fault is inside this module or a part of it.")
    assert sentence().endswith("Its module was not run in isolation.")
    assert sentence(peak=2.0).startswith(f"{start} in rms (2x in max-abs) (budget 4x)")
    assert "in max-abs (3.99x in rms)" in sentence(rms=3.99, peak=5.0)
    none = {"ratio": None, "ratio_rms": None, "ratio_max": None}
    exact = sentence(kind="exact", message="2 of 9 integers differ", **none)
    assert exact.startswith("flow.dit.block[07].attn.out: 2 of 9 integers differ. First")
    error = sentence(status="ERROR", message="port holds 3 NaN", **none)
    assert error == "flow.dit.block[07].attn.out: could not be compared. port holds 3 NaN"


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (9.3, "9.3x"),
        (4.0, "4x"),
        (4.0004, "4.0004x"),
        (3.9996, "4x"),
        (0.0, "0x"),
        (83.04, "83x"),
        (12345.6, "12346x"),
        (3e6, "3.0e+06x"),
        (0.94, "0.94x"),
        (1e-4, "1.0e-04x"),
        (None, "not measured"),
    ],
)
def test_ratio_text(ratio, text):
    assert ratio_text(ratio) == text


def test_isolated_run_of_a_chained_row():
    rows = make(broken=True)["checkpoints"]
    chained = [r for r in rows if r["kind"] == "chained"]
    same = next(r for r in chained if r["name"].endswith("blocks.1.attn@step0"))
    assert model.isolated_of(same, rows)["name"] == same["name"]
    other = next(r for r in chained if r["name"].endswith("blocks.1.attn@step2"))
    assert model.isolated_of(other, rows)["module"] == other["module"]
    assert model.isolated_of(other | {"module": "nowhere"}, rows) is None


def test_weights_section_of_an_audit():
    file = {
        "name": "llm.pt",
        "sha256": "0" * 64,
        "bytes": 9,
        "tensors": 3,
        "elements": 12,
        "ignored": ("epoch", "step"),
    }
    audit = {
        "sources": 3,
        "source_elements": 12,
        "consumed": 2,
        "dropped": {"lm_head": "tied"},
        "transforms": {"same": 2},
    }
    audit |= {"parameters": 2, "parameter_elements": 8, "parameters_by_part": {"llm": 2}, "files": {"llm": file}}
    section = model.weights_section(audit)
    page = build.render_html(model.validate(make(weights_audit=section)))
    assert "2 of 3 source tensors consumed, 1 dropped on purpose; 2 of 2 port parameters filled, 8 elements" in page
    assert "tensors 3; elements 12; ignored epoch, step" in page


def test_what_a_killed_run_left_beside_goes(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.Path, "replace", killed)
        patch.setattr(model.Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            model.write_atomically(tmp_path / "report.html", "half")
    assert len(list(tmp_path.iterdir())) == 1
    model.write_atomically(tmp_path / "report.html", "whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
