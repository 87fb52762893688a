"""What counts as a change between two runs, and as a regression; the ledger."""

import copy
import json

import pytest

from parity_tests.synthetic_report import changed, judged, make, sections
from reports import build, drift, model

pytestmark = pytest.mark.meta

GRN = "flow.grn"


def compared(change, before=None):
    before = before or make(**sections())
    after = copy.deepcopy(before)
    change(after)
    return drift.compare(before, judged(after))


def row_of(report, name=GRN, kind="isolated"):
    return next(r for r in report["checkpoints"] if (r["name"], r["kind"]) == (name, kind))


def test_equal_runs_show_nothing():
    found = compared(lambda r: None)
    assert not any(found[key] for key in ("regressions", "new_failures", "fixed", "moved", "gained", "lost", "changes"))


def test_new_failure_and_fixed():
    good, bad = make(), make(broken=True)
    found = drift.compare(good, bad)
    n = bad["verdict"]["counts"]["FAIL"]
    assert len(found["new_failures"]) == n and not found["fixed"] and len(found["moved"]) >= n
    assert len(found["regressions"]) == n + 1 and "verdict was PASS" in found["regressions"][-1]
    back = drift.compare(bad, good)
    assert len(back["fixed"]) == n and not back["regressions"] and not back["new_failures"]


@pytest.mark.parametrize(
    ("start", "end", "moved", "regression"),
    [
        (1.0, 1.9, 0, 0),
        (1.0, 2.1, 1, 0),
        (2.1, 1.0, 1, 0),
        (0.0, 0.3, 1, 0),
        (3.0, 4.1, 0, 2),
        (5.0, 9.0, 0, 0),
        (5.0, 11.0, 1, 1),
        (11.0, 5.0, 1, 0),
        (1.0, 50.0, 1, 2),
    ],
)
def test_moved_ratio(start, end, moved, regression):
    before = changed(make(), GRN, "isolated", start)
    found = drift.compare(before, changed(before, GRN, "isolated", end))
    assert (len(found["moved"]), len(found["regressions"])) == (moved, regression)


@pytest.mark.parametrize(
    ("status", "key", "regression"),
    [("SKIP", "weakened", 1), ("XFAIL", "weakened", 1), ("REDUCED", "weakened", 1), ("ERROR", "new_failures", 2)],
)
def test_passing_row_that_no_longer_passes(status, key, regression):
    found = compared(lambda r: row_of(r).update(status=status, reason="why", message="why"))
    assert len(found[key]) == 1 and len(found["regressions"]) == regression


def test_gained_and_lost():
    found = compared(lambda r: r["checkpoints"].remove(row_of(r)))
    assert [r["name"] for r in found["lost"]] == ["flow.grn (isolated) [flow.grn]"] and len(found["regressions"]) == 1
    found = compared(lambda r: r["checkpoints"].append(row_of(r) | {"case": "another"}))
    assert len(found["gained"]) == 1 and not found["regressions"]
    bad = make(broken=True)
    found = compared(lambda r: r["checkpoints"].append(row_of(bad, "flow.dit") | {"case": "another"}))
    assert len(found["gained"]) == len(found["new_failures"]) == 1 and found["regressions"]
    skipped = compared(lambda r: r["checkpoints"].remove(row_of(r, "flow.metal")))
    assert len(skipped["lost"]) == 1 and not skipped["regressions"]


def test_tests_faults_and_liveness_count():
    assert compared(lambda r: r["tests"].pop())["regressions"]
    assert compared(lambda r: r["tests"][0].update(outcome="failed"))["new_failures"]
    assert compared(lambda r: r["tests"][0].update(outcome="skipped"))["weakened"]
    assert compared(lambda r: r["liveness"][0].update(status="VACUOUS"))["new_failures"]

    def survive(report):
        report["faults"]["rows"][0]["caught"] = False
        report["faults"]["score"]["caught"] -= 1

    assert "caught" in compared(survive)["new_failures"][0]["name"]
    assert any("weights exercised" in text for text in compared(lambda r: r.update(liveness=None))["regressions"])


def test_surroundings():
    def other(report):
        about = report["provenance"]
        about["precision"]["port"] |= {"regime": "ten bits", "error": 3e-4}
        about["precision"]["tf32_flag"] = "1"
        about["versions"]["mlx"] = "0.31.2"
        about["device"] = "Device(gpu, 0)"
        about["weights"][0]["sha256"] = "0" * 64
        del about["versions"]["numpy"]
        report["budget"] |= {"floor": report["budget"]["floor"] / 2}

    found = compared(other)
    changes = {row["what"]: (row["before"], row["after"]) for row in found["changes"]}
    assert changes["arithmetic of the port"] == ("float32", "ten bits") and "arithmetic of the reference" not in changes
    assert changes["mlx version"] == ("0.32.4", "0.31.2")
    assert changes["device"][1] == "Device(gpu, 0)" and changes["numpy version"] == ("2.4.1", None)
    assert "weights llm.pt" in changes and not found["regressions"]
    wider = compared(lambda r: r["budget"].update(ratio=8.0))
    assert wider["regressions"] == ["the budget's ratio grew to 8"]


def test_command(tmp_path, capsys):
    good, bad = make(**sections()), make(broken=True, **sections())
    paths = []
    for name, report in (("a", good), ("b", bad)):
        paths.append(str(tmp_path / f"{name}.json"))
        model.save(report, paths[-1])
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "drift.json"
    assert drift.main([*paths, "--ledger", str(ledger), "--json", str(output)]) == 1
    text = capsys.readouterr().out
    assert "New failures" in text and "flow.attention" in text and "regressions:" in text
    assert json.loads(output.read_text()) == drift.compare(good, bad)
    assert drift.main([*paths[::-1], "--ledger", str(ledger)]) == 0
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["PASS", "FAIL"] and lines[1]["counts"] == bad["verdict"]["counts"]
    ledger.write_text("no ledger\n")
    capsys.readouterr()
    assert drift.main([*paths, "--ledger", str(ledger)]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and ledger.read_text() == "no ledger\n"


def test_page_shows_drift(tmp_path):
    good, bad = make(), make(broken=True)
    model.save(good, tmp_path / "a.json")
    model.save(bad, tmp_path / "b.json")
    out = tmp_path / "out"
    assert build.main([str(tmp_path / "b.json"), "--against", str(tmp_path / "a.json"), "--out", str(out)]) == 1
    assert model.load(out / "report.json")["drift"] == drift.compare(good, bad)
    page = (out / "report.html").read_text("utf-8")
    assert 'id="drift"' in page and f"New failures ({bad['verdict']['counts']['FAIL']})" in page


def test_a_long_list_is_cut_in_the_table_only():
    found = drift.compare(make(), make(broken=True))
    found["moved"] = found["new_failures"] * 30
    lines = drift.table(found).splitlines()
    first = lines.index(next(line for line in lines if line.startswith("Ratio moved")))
    assert lines[first + drift.SHOWN + 1] == f"  and {len(found['moved']) - drift.SHOWN} more: --json FILE lists all"
