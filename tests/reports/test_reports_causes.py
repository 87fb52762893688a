"""A failing report leads to one line: causes and what is folded beneath them, places, commands."""

import random
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import conftest
from mlx_parity.compare import Reading
from mlx_parity.judge import Row
from mlx_parity.report import model, page
from mlx_parity.report.causes import causes_of
from mlx_parity.report.data import Kind, Module
from mlx_parity.report.rows import by_stage, isolated_of
from mlx_parity.sides.truth import to_torch
from parity_tests.adapters import audit_report
from parity_tests.adapters.own import OwnPort
from parity_tests.golden.judge import GoldenRow, report_row
from parity_tests.parts import PARTS, PLACES, recorded
from parity_tests.session import Session
from parity_tests.walks import walks
from reports.cosyvoice3 import STAGES, WORDING
from tests.support.synthetic_report import amended, changed, make, measured, place_of, row

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]


def rows(*described):
    """Failing rows from `kind module case [name]`, floats of the flow unless the module says another stage."""
    found = []
    for i, text in enumerate(described):
        kind, module, case, *name = text.split()
        stage = module.split(".")[0] if module.split(".")[0] in ("llm", "vocoder", "noise") else "flow"
        found.append(row((name or [f"{case}.{i}"])[0], stage, kind, module, case, 9.0, random.Random(i)))
    return found


def modules(**inside):
    """The section `modules`: what each contains; a part of that name is at `port/NAME.py:1`."""
    names = {*inside, *(name for found in inside.values() for name in found)}
    return {n: Module(f"reference/{n}.py:1", f"port/{n}.py:1", tuple(inside.get(n, ()))) for n in names}


NESTED = modules(dit=["block", "attn", "ff"], block=["attn", "ff"], cfm=["dit", "block", "attn", "ff"])


def led(checkpoints, section=NESTED):
    found = causes_of(checkpoints, section, STAGES)
    return [(c.row.name, [r.name for r in c.own], [r.name for r in c.folded]) for c in found]


def test_containers_fold_under_the_part_that_fails_alone():
    found = rows("isolated dit c1 dit", "isolated attn c2 attn", "golden attn c3 gold", "isolated block c4 block")
    assert led(found) == [("attn", ["gold"], ["dit", "block"])]
    assert led(found[:1] + found[3:]) == [("block", [], ["dit"])]


def test_parts_that_fail_independently_have_a_panel_each():
    found = rows("isolated attn c1 attn", "isolated ff c2 ff", "isolated block c3 block", "isolated vocoder.s c4 snake")
    assert led(found) == [("attn", [], ["block"]), ("ff", [], []), ("snake", [], [])]


def test_in_a_whole_run_later_failures_are_folded_and_earlier_ones_are_not():
    found = rows(
        "isolated attn c1 attn",
        "chained time walk.a early",
        "chained attn walk.a attn.chained",
        "chained final walk.a late",
        "chained walk.a walk.a result",
        "chained vocoder.s walk.v other",
    )
    assert led(found) == [("attn", [], ["attn.chained", "late", "result"]), ("early", [], []), ("other", [], [])]


def test_failures_only_inside_the_whole_fold_under_the_first_of_their_run():
    found = rows("chained attn walk.a a1", "chained dit walk.a a2", "chained dit walk.b b1", "chained ff walk.c c1")
    assert led(found) == [("a1", [], ["a2", "b1"]), ("c1", [], [])]


def test_every_failing_row_has_one_cause():
    rng = random.Random(0)
    for _ in range(300):
        names = [f"m{i}" for i in range(5)]
        section = modules(**{n: rng.sample([m for m in names if m != n], rng.randint(0, 4)) for n in names})
        if rng.random() < 0.3:
            at = rng.choice(names)
            section[at] = replace(section[at], reference=None, port=None)
        kinds: tuple[Kind, ...] = ("isolated", "chained", "golden", "exact")
        found = [
            row(f"r{i}", "flow", rng.choice(kinds), rng.choice(names), rng.choice("abc"), rng.choice((1.0, 9.0)), rng)
            for i in range(12)
        ]
        covered = [r.name for cause in causes_of(found, section, STAGES) for r in cause.rows()]
        assert sorted(covered) == sorted(r.name for r in found if r.status == "FAIL")


def test_a_golden_row_without_a_part_is_folded_under_a_cause_of_its_stage():
    section = NESTED | {"gold": Module(None, None, ())}
    found = rows("golden gold g g1", "isolated attn c attn")
    assert led(found, section) == [("attn", [], ["g1"])]
    assert led(found[:1], section) == [("g1", [], [])]


def test_the_report_counts_folded_rows_and_names_the_part_in_its_first_line():
    report = make(broken=True)
    verdict, (cause,) = report.verdict, report.causes
    assert cause.row.name == verdict.first_over_budget == "flow.attention"
    assert len(cause.rows()) == sum(r.status == "FAIL" for r in report.rows) == verdict.counts["FAIL"]
    assert "flow.layers.Attention fails alone (flow.attention)" in verdict.sentence
    html, text = page.render_html(report, WORDING), page.render_markdown(report, WORDING)
    summary = page.render_markdown(report, WORDING, summary=True)
    assert html.count('<details class="panel is-FAIL"') == 1
    for written in (html, text, summary):
        assert "reference/flow/layers.py:11" in written and "port/flow/layers.py:11" in written
        assert written.count("nothing in it fails alone") <= 2
    assert f"{len(cause.folded)} rows of what contains it" in html
    assert f"{len(cause.folded)} of what contains it" in summary
    for folded in cause.folded:
        assert f"<code>{folded.name}</code>" in html
    assert len(summary) < 2500 and "| flow | FAIL |" in summary and "| vocoder |" not in summary
    (line,) = page.annotation_lines(report, WORDING)
    assert line.startswith("::error file=port/flow/layers.py,line=11,title=flow.attention::")
    assert len(page.render_markdown(make(), WORDING, summary=True).splitlines()) <= 5


def test_a_stage_shows_the_number_of_the_row_that_fails():
    report = changed(make(), "llm.qwen2rmsnorm", "isolated", 4.5)
    assert by_stage(report.rows, STAGES)["llm"].worst.name == "llm.qwen2rmsnorm"
    unmeasured: dict[str, Any] = dict.fromkeys(measured(1.0, 1.0))
    exact = replace(make().rows[2], name="llm.tokens", dtype="int32", message="3 differ", **unmeasured)
    for status, shown in (("FAIL", "unequal"), ("ERROR", "error")):
        report = amended(replace(make(), rows=(*make().rows, exact)), "rows", -1, status=status)
        box = by_stage(report.rows, STAGES)["llm"]
        assert (box.ratio, box.worst.name, box.status) == (None, "llm.tokens", status)
        assert report.verdict.worst is None and model.to_json(report)
        assert f"| language model | {status} | {shown} | `llm.tokens`" in page.render_markdown(report, WORDING)
        html = page.render_html(report, WORDING)
        assert f">{shown}<" in html.partition('data-stage="llm"')[2].partition("</li>")[0]


def test_the_isolated_run_of_a_chained_row():
    found = make(broken=True)
    block = "flow.decoder.estimator.transformer_blocks.1.attn@step"
    same, other = (found.rows[place_of(found, f"{block}{step}", "chained")] for step in (0, 2))
    assert isolated_of(same, found.rows).name == same.name
    assert isolated_of(other, found.rows).module == other.module
    assert isolated_of(replace(other, module="nowhere"), found.rows) is None


# ---- places


@pytest.mark.parametrize("path", PARTS)
def test_a_place_is_the_line_of_the_definition_on_both_sides(path):
    for package in ("port",) if PARTS[path].witness else PLACES.packages:
        file, _, line = str(PLACES.find(package, path)).rpartition(":")
        words = (ROOT / file).read_text("utf-8").splitlines()[int(line) - 1].split()
        assert words[0] in ("class", "def") and words[1].split("(")[0].rstrip(":") == path.rpartition(".")[2]


@pytest.mark.parametrize(
    "name", ["walk.flow.full", "walk.flow.chunked", "walk.vocoder.end", "walk.llm", "walk.speaker"]
)
def test_a_part_is_made_of_every_part_that_runs_inside_it(parity, name):
    """What the source says must hold what a run of the reference shows, by the names of the submodules."""
    models = parity.models
    plan = walks(models.config)[name]
    arguments = {k: to_torch(v, torch.float32) for k, v in plan.inputs.items()}
    with torch.inference_mode(), recorded("reference", models.single, lambda a: None) as recorder:
        plan.run(models.single, arguments)
    called = {(call.name, call.part.path) for call in recorder.calls}
    pairs = {(o, i) for on, o in called for i_n, i in called if i_n.startswith(f"{on}.") and o != i}
    assert pairs
    for outer, inner in pairs:
        assert inner in PLACES.made_of(PLACES.find("reference", outer)), (outer, inner)


def test_what_is_no_part_has_no_place_and_contains_nothing():
    found = PLACES.describe(["walk.flow.full", "noise", "flow.layers.NoSuch", "flow.layers.GRN.nothing", "port"])
    assert all(place == Module(None, None, ()) for place in found.values())
    fast = PLACES.describe(["fast.arithmetic.silu", "flow.layers.TimestepEmbedding"])
    silu = fast["fast.arithmetic.silu"]
    assert silu.reference is None and silu.port.startswith("port/fast/arithmetic.py:")
    stream = PLACES.describe(["stream.vocoder.StreamingVocoder", "vocoder.generator.Snake"])
    assert stream["stream.vocoder.StreamingVocoder"].contains == ("vocoder.generator.Snake",)
    assert PLACES.describe(["flow.layers.GRN"], OwnPort().place) == PLACES.describe(["flow.layers.GRN"])


# ---- commands

AWKWARD = ["plain", "with space", "br[ack]et", "quo'te", 'dou"ble', "$HOME", "semi;colon", "a|b", "star*", "`tick`"]


def check(command, *expected):
    """The command is one line that bash splits into the words that it was made from."""
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
    assert not done.returncode and "\n" not in command, (command, done.stderr)
    script = f"f() {{ printf '%s\\0' \"$@\"; }}; f {command}"
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    assert words == shlex.split(command)
    for word in expected:
        assert word in words, (word, words)


@pytest.mark.parametrize("name", AWKWARD)
def test_commands_can_be_pasted_into_bash(monkeypatch, name):
    monkeypatch.setattr(sys, "argv", ["/x/pytest/__main__.py", "-m", "not meta", "--report", name])
    check(conftest._command(), "not meta", name)
    reading = Reading("FAIL", "x")
    golden = report_row(GoldenRow(name, "y", "port", "", None, None, "FAIL", reading=reading), "model", Path("a b"))
    check(golden.reproduce, "a b")
    audited = audit_report._entry(Row("n", "flow", "isolated", "m", name, reading), "toy")
    check(audited.reproduce, "toy")
    session: Any = object.__new__(Session)
    given = {"--adapter": "own", "--dtype": "float16", "--device": "cpu", "--seed": 3, "--full": True, "--plain": False}
    given |= {"--checkpoint": Path(name), "--mlx-path": None}
    session.config = SimpleNamespace(getoption=given.__getitem__)
    made = session._entry(Row("n", "flow", "isolated", "m", "c", reading), f"test_x.py::test[{name}]").reproduce
    check(made, f"test_x.py::test[{name}]", name, "--full", "float16")
    walk = Row("n", "flow", "chained", "m", "c", reading, "python -m parity_tests.trace walk.flow.full")
    check(session._entry(walk, "t").reproduce, "walk.flow.full", name)
    shown = page._command(made)
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    assert shown.removeprefix(fence).removesuffix(fence).strip() == made and fence not in made


def test_a_printed_command_runs(tmp_path):
    """That of a golden file in a folder with an awkward name."""
    folder = tmp_path / "my golden [1]"
    folder.mkdir()
    name = "snake"
    (folder / f"{name}.safetensors").write_bytes((ROOT / f"parity_tests/data/golden/{name}.safetensors").read_bytes())
    reading = Reading("FAIL", "x")
    command = report_row(
        GoldenRow(name, "y", "port", "", None, None, "FAIL", reading=reading), "model", folder
    ).reproduce
    command = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "PASS" in done.stdout, done.stderr
