"""What counts as a change between two runs, and as a regression; the ledger."""

import json
from dataclasses import replace

import pytest

from mlx_parity.report import drift, model
from mlx_parity.report.codec import plain
from mlx_parity.report.data import Arithmetic
from tests.support.synthetic_report import amended, changed, every_section, make, place_of

pytestmark = pytest.mark.meta

GRN = "flow.grn"


def compared(change):
    before = make(**every_section())
    return drift.compare(before, change(before))


def without(report, section, i):
    entries = getattr(report, section)
    return replace(report, **{section: (*entries[:i], *entries[i + 1 :])})


def test_equal_runs_show_nothing():
    found = plain(compared(lambda r: r))
    assert not any(entries for key, entries in found.items() if key not in ("before", "after"))


def test_new_failure_and_fixed():
    good, bad = make(), make(broken=True)
    found = drift.compare(good, bad)
    n = bad.verdict.counts["FAIL"]
    assert len(found.new_failures) == n and not found.fixed and len(found.moved) >= n
    assert len(found.regressions) == n + 1 and "verdict was PASS" in found.regressions[-1]
    back = drift.compare(bad, good)
    assert len(back.fixed) == n and not back.regressions and not back.new_failures


MOVES = [(1.0, 1.9, 0, 0), (1.0, 2.1, 1, 0), (2.1, 1.0, 1, 0), (0.0, 0.3, 1, 0), (3.0, 4.1, 0, 2), (5.0, 9.0, 0, 0)]
MOVES += [(5.0, 11.0, 1, 1), (11.0, 5.0, 1, 0), (1.0, 50.0, 1, 2)]


@pytest.mark.parametrize(("start", "end", "moved", "regression"), MOVES)
def test_moved_ratio(start, end, moved, regression):
    before = changed(make(), GRN, "isolated", start)
    found = drift.compare(before, changed(before, GRN, "isolated", end))
    assert (len(found.moved), len(found.regressions)) == (moved, regression)


@pytest.mark.parametrize(
    ("status", "key", "regression"), [("SKIP", "weakened", 1), ("REDUCED", "weakened", 1), ("ERROR", "new_failures", 2)]
)
def test_passing_row_that_no_longer_passes(status, key, regression):
    found = compared(lambda r: amended(r, "rows", place_of(r, GRN), status=status, message="why"))
    assert len(getattr(found, key)) == 1 and len(found.regressions) == regression


def test_gained_and_lost():
    found = compared(lambda r: without(r, "rows", place_of(r, GRN)))
    assert [r.name for r in found.lost] == ["flow.grn (isolated) [flow.grn]"] and len(found.regressions) == 1
    for source, name, failing in ((make(), GRN, 0), (make(broken=True), "flow.dit", 1)):
        more = replace(source.rows[place_of(source, name)], case="another")
        found = compared(lambda r, more=more: replace(r, rows=(*r.rows, more)))
        assert len(found.gained) == 1 and len(found.new_failures) == failing == bool(found.regressions)
    skipped = compared(lambda r: without(r, "rows", place_of(r, "flow.metal")))
    assert len(skipped.lost) == 1 and not skipped.regressions


def test_tests_faults_and_liveness_count():
    assert compared(lambda r: without(r, "tests", -2)).regressions
    assert compared(lambda r: amended(r, "tests", 0, outcome="failed")).new_failures
    assert compared(lambda r: amended(r, "tests", 0, outcome="skipped")).weakened
    assert compared(lambda r: amended(r, "liveness", 0, status="VACUOUS")).new_failures
    assert compared(lambda r: amended(r, "liveness", 0, status="DEAD")).weakened
    assert compared(lambda r: replace(r, liveness=())).regressions
    survivor = compared(lambda r: replace(r, faults=amended(r.faults, "rows", 0, caught=False)))
    assert "caught" in survivor.new_failures[0].name


def test_changes_of_the_environment_are_listed():
    def other(report):
        about = report.provenance
        weights = (replace(about.weights[0], sha256="0" * 64), about.weights[1])
        port = Arithmetic("ten bits", 3e-4, "product")
        precision = replace(about.precision, port=port, tf32_flag="1")
        versions = {"mlx": "0.31.2", "torch": "2.13.0", "python": "3.11.2"}
        about = replace(about, precision=precision, versions=versions, device="Device(gpu, 0)", weights=weights)
        return replace(report, provenance=about, budget=replace(report.budget, floor=report.budget.floor / 2))

    found = compared(other)
    changes = {row.what: (row.before, row.after) for row in found.changes}
    assert changes["arithmetic of the port"] == ("float32", "ten bits") and "arithmetic of the reference" not in changes
    assert changes["MLX_ENABLE_TF32"] == ("0", "1") and changes["mlx version"] == ("0.32.4", "0.31.2")
    assert changes["device"][1] == "Device(gpu, 0)" and changes["numpy version"] == ("2.4.1", None)
    assert "weights llm.pt" in changes and not found.regressions
    wider = compared(lambda r: replace(r, budget=replace(r.budget, ratio=8.0)))
    assert wider.regressions == ("the budget's ratio grew to 8",)


def test_command(tmp_path, capsys):
    good, bad = make(**every_section()), make(broken=True, **every_section())
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    for path, report in zip(paths, (good, bad), strict=True):
        model.save(report, path)
    ledger, output = tmp_path / "ledger.jsonl", tmp_path / "drift.json"
    assert drift.main([*paths, "--ledger", str(ledger), "--json", str(output)]) == 1
    text = capsys.readouterr().out
    assert "New failures" in text and "flow.attention" in text and "regressions:" in text
    assert json.loads(output.read_text()) == plain(drift.compare(good, bad))
    assert drift.main([*paths[::-1], "--ledger", str(ledger)]) == 0
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["PASS", "FAIL"] and lines[1]["counts"] == bad.verdict.counts
    ledger.write_text("no ledger\n")
    capsys.readouterr()
    assert drift.main([*paths, "--ledger", str(ledger)]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and ledger.read_text() == "no ledger\n"


def test_a_long_list_is_cut_in_the_table_only():
    found = drift.compare(make(), make(broken=True))
    found = replace(found, moved=found.new_failures * 30)
    lines = drift.table(found).splitlines()
    first = lines.index(next(line for line in lines if line.startswith("Ratio moved")))
    assert lines[first + drift.SHOWN + 1] == f"  and {len(found.moved) - drift.SHOWN} more: --json FILE lists all"
