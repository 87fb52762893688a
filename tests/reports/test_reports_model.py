"""What the report refuses, the verdict that follows from it, and the words of a failure."""

import json
import math
import re
from dataclasses import replace

import jsonschema
import pytest

from mlx_parity.report import model, rows, sections
from mlx_parity.report.codec import ReportError, plain, read, schema
from mlx_parity.report.data import Position, Row
from mlx_parity.report.model import Report
from mlx_parity.report.words import failure_sentence, ratio_text
from parity_tests.session import weights_audit
from reports import build, drift
from tests.support.parsed_json import edited
from tests.support.synthetic_report import amended, every_section, make

pytestmark = pytest.mark.meta


@pytest.fixture(scope="module")
def by_schema():
    found = schema(Report)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found).is_valid


def test_strict_json_only(tmp_path, capsys):
    for literal in ("NaN", "Infinity", "-Infinity", "1e999"):
        text = re.sub(r'"error": [0-9.]+e-[^,]+', f'"error": {literal}', json.dumps(plain(make())))
        (tmp_path / "run.json").write_text(text)
        assert build.main([str(tmp_path / "run.json"), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert "null" in error and error.count("\n") == 1
    with pytest.raises(ReportError, match=r"rows\[2\].e_ref_rms: is nan"):
        model.save(amended(make(), "rows", 2, e_ref_rms=math.nan), tmp_path / "new.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json"]


DEEP = b'{"rows": ' + b"[" * 900 + b"]" * 900 + b"}"
OLD = b'{"schema_version": 1, "checkpoints": []}'
LONE = json.dumps({"\ud800": 1}).encode()


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"\xff\xfe", b'"x"', b"[" * 100_000, b"{}", DEEP, LONE, OLD]
)
@pytest.mark.parametrize("command", [build, drift])
def test_unreadable_file_is_one_line(tmp_path, capsys, content, command):
    path, good = tmp_path / "run.json", tmp_path / "good.json"
    if content is not None:
        path.write_bytes(content)
    model.save(make(), good)
    arguments = [path, "--out", tmp_path / "out"] if command is build else [good, path]
    assert command.main(list(map(str, arguments))) == 1
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and str(path) in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


CLIP = {"name": "x", "sample_rate": 24000, "snr_db": 1, "log_mel_distance": 0}
SCHEMA_BREAKS = [
    (("schema_version",), 1),
    (("surprise",), 1),
    (("sur\nprise \x1b[2J",), 1),
    (("verdict", "counts", "PASS"), -1),
    (("verdict", "counts", "XFAIL"), 0),
    (("provenance", "started"), "yesterday"),
    (("provenance", "weights", 0, "sha256"), "abc"),
    (("provenance", "dirty"), 0),
    (("provenance", "seed"), True),
    (("provenance", "versions"), {"mlx": "1", "numpy": "1", "python": "3"}),
    (("rows", 2, "status"), "OK"),
    (("rows", 2, "status"), ["PASS"]),
    (("rows", 2, "e_ref_rms"), "1e-7"),
    (("rows", 2, "e_ref_rms"), -1),
    (("rows", 2, "shape"), [1.5]),
    (("rows", 2, "name"), ""),
    (("rows", 2, "worst"), None),
    (("rows", 3), []),
    (("budget", "floor"), 0),
    (("coverage", "line_percent"), 101),
    (("audio",), [CLIP | {"port_wav": '"><script>'}]),
    (("audio",), [CLIP | {"sample_rate": 0}]),
    (("modules", "flow.layers.GRN", "port"), "port/flow/layers.py"),
    (("modules", ""), {"reference": None, "port": None, "contains": []}),
    (("liveness", 0, "status"), "XFAIL"),
]
CONTRADICTIONS = [
    (("rows", 2, "stage"), "decoder", "stage is decoder"),
    (("rows", 2, "ratio"), 1.0, "rows[2].ratio: is 1.0, the report gives"),
    (("rows", 2, "ratio_max"), 0.001, "its errors give"),
    (("rows", 2, "e_port_max"), 1.0, "its errors give"),
    (("rows", 2, "status"), "FAIL", "does not say why"),
    (("rows", 2, "status"), "ERROR", "does not say why"),
    (("rows", 2, "status"), "SKIP", "does not say why"),
    (("rows", 2, "histogram"), {"edges": [0, 1], "port": [1], "reference": []}, "one edge more"),
    (("rows", 2, "error_map"), {"row_axis": "a", "column_axis": "b", "rows": [[1], [1, 2]]}, "different lengths"),
    (("rows", 2, "name"), "\ud800", "must be UTF-8 text"),
    (("components", 0, "evidence"), [], "PASS without evidence"),
    (("liveness", 2, "reason"), None, "DEAD without a reason"),
    (("verdict", "status"), "FAIL", "verdict.status: is FAIL, the report gives PASS"),
    (("verdict", "counts", "PASS"), 3, "verdict.counts: is"),
    (("verdict", "worst", "ratio"), 0.5, "verdict.worst.ratio: is 0.5"),
    (("verdict", "first_over_budget"), "flow.dit", "verdict.first_over_budget: is flow.dit"),
    (("faults", "score", "total"), 9, "faults.score.total: is 9, the report gives 4"),
    (("faults", "rows", 0, "caught"), False, "faults.score.caught: is 4, the report gives 3"),
    (("faults", "rows", 0, "equivalent"), "proof", "is caught, so it cannot be equivalent"),
    (("weights_audit", "filled"), 600, "weights_audit.filled: is 600, the report gives 640"),
    (("weights_audit", "consumed"), 900, "weights_audit.unused: is 0, the report gives 49"),
]


def name_of(path):
    return ".".join(str(step) for step in path).encode("ascii", "replace").decode() if type(path) is tuple else ""


@pytest.mark.parametrize(("path", "value"), SCHEMA_BREAKS, ids=name_of)
def test_wrong_types_are_refused_in_one_line_that_names_the_place(valid, by_schema, path, value):
    broken = edited(valid, path, value)
    with pytest.raises(ReportError) as error:
        read(Report, broken)
    said = str(error.value)
    assert said.isprintable() and len(said) < 250
    assert (len(path) == 1 or str(path[-2]) in said) and not by_schema(broken)


@pytest.mark.parametrize(("path", "value", "complaint"), CONTRADICTIONS, ids=name_of)
def test_contradictions_are_refused(valid, path, value, complaint):
    with pytest.raises(ReportError, match=re.escape(complaint)):
        read(Report, edited(valid, path, value))


def test_what_is_written_is_read_again_and_fits_the_schema(by_schema, tmp_path):
    for report in (make(**every_section()), make(broken=True, **every_section())):
        model.save(report, tmp_path / "report.json")
        assert model.load(tmp_path / "report.json") == report and by_schema(plain(report))


MEASURED = {f"{what}_{norm}" for what in ("e_ref", "e_port", "ratio") for norm in ("rms", "max")} | {"ratio", "dtype"}
OPTIONAL = {
    (): {"schema_version", "tests", "components", "modules", "not_checked", "budget", "verdict", "drift"}
    | every_section().keys(),
    ("provenance",): {"fast_forms"},
    ("rows", 0): MEASURED | {"histogram", "error_map", "worst", "nearest_fault", "message", "shape"},
    ("components", 0): set(),
    ("tests", 0): {"reason", "part"},
    ("verdict",): set(),
}


@pytest.mark.parametrize("at", OPTIONAL, ids=name_of)
def test_only_optional_fields_may_be_absent(by_schema, at):
    content = plain(make())
    inner = content
    for step in at:
        inner = inner[step]
    for field in list(inner):
        kept = inner.pop(field)
        assert by_schema(content) == (field in OPTIONAL[at]), field
        if field in OPTIONAL[at]:
            read(Report, {k: v for k, v in content.items() if k != "verdict"})  # the verdict may change
        else:
            with pytest.raises(ReportError, match=field):
                read(Report, content)
        inner[field] = kept


def test_twice_the_same_row_is_refused():
    report = make()
    with pytest.raises(ReportError, match="there twice"):
        model.to_json(replace(report, rows=(*report.rows, report.rows[2])))


def test_a_component_that_passes_on_failing_evidence_is_refused():
    report = make(broken=True)
    with pytest.raises(ReportError, match="rotary is PASS on evidence that is FAIL"):
        model.to_json(amended(report, "components", 0, status="PASS"))


def without_weights(**change):
    return lambda report: replace(report, weights_audit=replace(report.weights_audit, **change))


VERDICTS = {
    "test failed": ("FAIL", lambda r: amended(r, "tests", 0, outcome="failed")),
    "test broken": ("ERROR", lambda r: amended(r, "tests", 0, outcome="error")),
    "test skipped": ("PASS", lambda r: amended(r, "tests", 0, outcome="skipped")),
    "not comparable": ("ERROR", lambda r: amended(r, "rows", 2, status="ERROR", message="shape")),
    "vacuous": ("FAIL", lambda r: amended(r, "rows", 2, status="VACUOUS", message="zero")),
    "fail beats error": (
        "FAIL",
        lambda r: amended(amended(r, "rows", 2, status="ERROR"), "rows", 0, status="FAIL", message="bits"),
    ),
    "tensor without effect": ("FAIL", lambda r: amended(r, "liveness", 0, status="VACUOUS")),
    "fault survived": ("FAIL", lambda r: replace(r, faults=amended(r.faults, "rows", 0, caught=False))),
    "weight missing": ("FAIL", without_weights(parameters=641)),
    "weight unused": ("FAIL", without_weights(sources=952)),
    "weight used twice": ("FAIL", without_weights(sources=950)),
    "component failed": ("FAIL", lambda r: amended(r, "components", 0, status="FAIL")),
    "component not comparable": ("ERROR", lambda r: amended(r, "components", 0, status="ERROR")),
    "quality": ("FAIL", lambda r: amended(r, "quality", 0, status="FAIL")),
    "nothing compared": ("ERROR", lambda r: replace(r, rows=())),
    "all skipped": ("ERROR", lambda r: replace(r, rows=tuple(replace(row, status="SKIP") for row in r.rows))),
    "all reduced": ("ERROR", lambda r: replace(r, rows=tuple(replace(row, status="REDUCED") for row in r.rows))),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name):
    status, change = VERDICTS[name]
    report = make(**every_section())
    assert report.verdict.status == "PASS"
    verdict = change(report).verdict
    assert verdict.status == status
    assert verdict.sentence.startswith(f"{status}: ") and "\n" not in verdict.sentence and "*" not in verdict.sentence


def test_first_over_budget_goes_by_the_pipeline_not_by_the_order_of_the_run():
    report = make(broken=True)
    assert report.verdict.first_over_budget == "flow.attention"
    report = replace(report, rows=report.rows[::-1])
    assert report.verdict.first_over_budget.startswith("flow.")
    late = next(i for i, r in enumerate(report.rows) if r.stage == "llm")
    report = amended(report, "rows", late, status="FAIL", message="bits")
    assert report.verdict.first_over_budget == report.rows[late].name


def test_worst_of_each_stage():
    report = make(broken=True)
    found = rows.by_stage(report.rows, report.stages)
    assert found["speaker"] == rows.Stage(None, None, 0, 0)
    assert (found["noise"].status, found["noise"].ratio) == ("PASS", None)
    flow = [r for r in report.rows if r.stage == "flow"]
    assert found["flow"].status == "FAIL" and found["llm"].status == "PASS"
    assert found["flow"].ratio == max(r.ratio or 0 for r in flow) and found["flow"].total == len(flow)


NAME = "flow.dit.block[07].attn.out"
ROW = Row(NAME, "flow", "chained", "m", "c", "FAIL", "x", "t", worst=(Position((0, 412, 88), 0.18231, 0.1819, 0.1819),))


def sentence(rms=9.3, peak=7.0, isolated=None, alone=NAME, **change):
    beside = replace(ROW, name=alone, ratio_rms=isolated, ratio_max=isolated) if isolated else None
    return failure_sentence(replace(ROW, ratio_rms=rms, ratio_max=peak, **change), first=True, isolated=beside)


def test_failure_sentence():
    start = "flow.dit.block[07].attn.out: 9.3x the reference's own float32 error"
    middle = "(budget 4x). First tensor over budget. Worst element [0, 412, 88]: port 0.18231, float64 0.1819."
    end = "Isolated: 9.1x, so the fault is inside this module."
    assert sentence(isolated=9.1) == f"{start} {middle} {end}"
    assert sentence(isolated=0.9).endswith("Isolated: 0.9x, so the fault comes from what feeds it.")
    assert "Isolated (flow.attention, same class): 9.1x, so" in sentence(isolated=9.1, alone="flow.attention")
    assert sentence(kind="isolated").endswith("so the fault is inside this module or a part of it.")
    assert sentence().endswith("Its module was not run in isolation.")
    assert sentence(peak=2.0).startswith(f"{start} in rms (2x in max-abs) (budget 4x)")
    assert "in max-abs (3.99x in rms)" in sentence(rms=3.99, peak=5.0)
    exact = sentence(None, None, kind="exact", message="2 of 9 integers differ")
    assert exact.startswith("flow.dit.block[07].attn.out: 2 of 9 integers differ. First")
    error = sentence(None, None, status="ERROR", message="port holds 3 NaN")
    assert error == "flow.dit.block[07].attn.out: could not be compared. port holds 3 NaN"


RATIOS = {9.3: "9.3x", 4.0: "4x", 4.0004: "4.0004x", 3.9996: "4x", 0.0: "0x", 83.04: "83x", 12345.6: "12346x"}
RATIOS |= {3e6: "3.0e+06x", 0.94: "0.94x", 1e-4: "1.0e-04x", None: "not measured"}


@pytest.mark.parametrize(("ratio", "text"), RATIOS.items())
def test_ratio_text(ratio, text):
    assert ratio_text(ratio) == text


def test_the_converters_audit_is_accounted_for():
    file = {"name": "llm.pt", "sha256": "0" * 64, "bytes": 9, "tensors": 3, "elements": 12, "ignored": ("epoch",)}
    audit = {"sources": 3, "source_elements": 12, "consumed": 2, "dropped": {"lm_head": "tied"}, "parameters": 2}
    audit |= {"transforms": {"same": 2}, "parameter_elements": 8, "parameters_by_part": {"llm": 2}}
    found = weights_audit(audit | {"files": {"llm": file}})
    assert (found.filled, found.unused, found.missing, found.elements) == (2, 0, 0, 8)
    assert found.files == {"llm.pt": sections.SourceFile(3, 12, ("epoch",))}


def test_leftovers_of_a_killed_run_are_removed(tmp_path, monkeypatch):
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
