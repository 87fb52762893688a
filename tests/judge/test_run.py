"""`python -m mlx_parity run`: judges a foreign program, proves its findings, and writes results to pass on."""

import json
import subprocess
import zipfile
from textwrap import dedent
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_parity.__main__ import main
from mlx_parity.environment import CannotInstall, environment
from mlx_parity.report import model
from mlx_parity.shipped import measured
from mlx_parity.source import SourceError, exchanged, place_of
from mlx_parity.subject import load_subject
from parity_tests.degraded import degraded_mlx

pytestmark = pytest.mark.meta

PROGRAM = """
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx_parity import Finding, Pair, Subject


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class TorchToy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = TorchBlock(), TorchBlock()

    def forward(self, x):
        return self.second(self.first(x))


class MlxBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def __call__(self, x):
        y = self.up(x)
        y = nn.gelu(y)
        return x + self.down(y)


class MlxToy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = MlxBlock(), MlxBlock()

    def __call__(self, x):
        return self.second(self.first(x))


FINDINGS = []


def subject(seed):
    torch.manual_seed(seed)
    reference, port = TorchToy(), MlxToy()
    port.load_weights([(k, mx.array(v.numpy())) for k, v in reference.state_dict().items()])
    x = np.random.default_rng(seed).standard_normal((2, 5, 8)).astype(np.float32)
    parts = [Pair("whole", reference, port, x), Pair("block", reference.first, port.first, x)]
    return Subject("toy", "a toy", parts, FINDINGS)
"""
WRONG = ("y = nn.gelu(y)", "y = nn.gelu_approx(y)")
FINDING = """
lines = "y = nn.gelu_approx(y)", "y = nn.gelu(y)"
FINDINGS.append(Finding("tanh for erf", MlxBlock.__call__, *lines, "Nothing to hear."))
"""


@pytest.fixture
def run(tmp_path, capsys):
    """Judges a program given as text; returns the exit code, the printed lines and the results' folder."""

    def judged(text, *options):
        program, out = tmp_path / "toy.py", tmp_path / "out"
        program.write_text(dedent(text))
        code = main(["run", str(program), "--out", str(out), *options])
        said = capsys.readouterr()
        return code, (said.out + said.err).splitlines(), out

    return judged


def test_a_port_that_conforms(run):
    code, said, out = run(PROGRAM)
    assert code == 0
    assert said[-1].startswith("PASS: toy: 2 of 2 parts conform, worst ")
    assert model.load(out / "report.json").verdict.status == "PASS"
    summary = (out / "summary.md").read_text()
    assert summary.startswith("**PASS") and "| whole | PASS | 7 of 7 |" in summary and "torch 2." in summary
    assert not (out / "cases").exists()


def test_a_divergence_is_named_recorded_and_can_be_repeated(run):
    code, said, out = run(PROGRAM.replace(*WRONG), "--annotations")
    assert code == 1
    assert "no finding explains whole, block" in said[-1]
    assert any(line.startswith("::error file=toy.py,line=") and "whole/first" in line for line in said)
    report = model.load(out / "report.json")
    assert report.verdict.status == "FAIL" and report.causes[0].row.module == "whole/first"
    block = PROGRAM.splitlines().index("class MlxBlock(nn.Module):") + 1
    places = {report.modules[f"whole/{name}"].port for name in ("first", "first.up")}
    assert places == {f"toy.py:{block}"}, "a framework's layer is placed at the class that uses it"
    summary = (out / "summary.md").read_text()
    assert "| whole: first (TorchBlock) | FAIL |" in summary and len(summary.splitlines()) <= 60
    entries = json.loads((out / "cases" / "manifest.json").read_text())["cases"]
    assert [e["module"] for e in entries if e["part"] == "whole"][:2] == ["first", "second"]
    case = load_file(out / "cases" / entries[0]["file"])
    hidden = case["in.0.0"] @ case["w.up.weight"].T + case["w.up.bias"]
    assert hidden.shape == (2, 5, 16) and case["out64.y"].dtype == np.float64
    # Both are the same call: float32 and float64 differ by 1e-7, different calls by as much as their values.
    assert np.allclose(case["out.y"], case["out64.y"], rtol=1e-5)
    repeat = (out / "reproduce.md").read_text()
    assert "Seed 0" in repeat and "--only 'whole'" in repeat
    run(PROGRAM)
    assert not [*(out / "cases").glob("*.safetensors")], "cases of an earlier run remain"


def test_a_finding_is_proved_by_mending_its_line(run):
    code, said, out = run(PROGRAM.replace(*WRONG) + FINDING, "--declared", "--annotations")
    assert code == 0 and not any("::error" in line for line in said)
    assert said[-1].endswith("1 of 1 findings proved by mending it for one run; as declared")
    summary = (out / "summary.md").read_text()
    assert "In `toy.py:" in summary and "Proved by mending it for one run: whole (" in summary
    assert run(PROGRAM.replace(*WRONG) + FINDING)[0] == 1, "without --declared a known divergence fails too"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (FINDING.replace('"y = nn.gelu(y)"', '"y = nn.silu(y)"'), "0 of 1 findings proved"),
        (FINDING + "wrong = MlxToy.__call__\nMlxToy.__call__ = lambda s, x: 1.01 * wrong(s, x)\n", "explains whole"),
    ],
    ids=["another fix mends nothing", "a further fault is not declared"],
)
def test_what_is_not_as_declared_ends_with_1(run, more, said):
    code, lines, _ = run(PROGRAM.replace(*WRONG) + more, "--declared")
    assert code == 1 and said in lines[-1]


def test_a_finding_that_no_longer_shows_ends_with_1(run):
    stale = FINDING.replace("y = nn.gelu_approx(y)", "y = self.up(x)").replace("y = nn.gelu(y)", "y = self.up(1 * x)")
    code, _, out = run(PROGRAM + stale, "--declared")
    assert code == 1 and "NOT PROVED" in (out / "summary.md").read_text()


def test_generic_faults_are_counted_with_the_findings_mended(run):
    code, _, out = run(PROGRAM.replace(*WRONG) + FINDING, "--faults", "--only", "block")
    score = json.loads((out / "score.json").read_text())["block"]
    assert code == 1 and score["caught"] == score["total"] > 5


# As shipped


def test_what_users_get_is_a_row_of_its_own(run, monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    code, said, out = run(PROGRAM.replace(*WRONG) + FINDING, "--as-shipped")
    found = json.loads((out / "shipped.json").read_text())
    assert found["variable"] is None, "the process had the variable"
    assert 0 < found["error"] < 1e-3 and found["product"] and found["outputs"] == 10
    # A GPU with TF32 gives REDUCED. In float32 everything passes, because the finding is mended.
    assert found["regime"] != "float32" or (found["status"], found["good"]) == ("PASS", 10)
    assert code == 1 and f"as shipped: {found['status']}, MLX computes in {found['regime']}" in said
    summary = (out / "summary.md").read_text()
    assert "| as shipped: without MLX_ENABLE_TF32=0, findings mended |" in summary and "| whole | FAIL |" in summary


LINEARS = "self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)"
PRODUCT = """
class Product(nn.Linear):
    def __call__(self, x):
        return mx.matmul(x, self.weight.T) + self.bias


class MlxBlock("""
PRODUCTS = PROGRAM.replace(LINEARS, LINEARS.replace("nn.Linear", "Product")).replace("class MlxBlock(", PRODUCT)


@pytest.mark.parametrize(
    ("text", "status", "good"),
    [
        (PRODUCTS, "REDUCED", range(10)),
        (PRODUCTS.replace("y = self.up(x)", "y = mx.matmul(x, self.up.weight.T)"), "ERROR", range(10)),
        (PROGRAM, "PASS", [10]),
    ],
    ids=["over budget", "not comparable", "within budget all the same"],
)
def test_on_a_device_with_less_than_float32_it_informs(text, status, good, tmp_path):
    program = tmp_path / "toy.py"
    program.write_text(text)
    with degraded_mlx():
        found = measured(load_subject(program), 0, "*")
    assert (found.regime, found.status) == ("less than ten bits", status) and found.good in good


def test_over_budget_in_float32_it_fails(tmp_path):
    program = tmp_path / "toy.py"
    program.write_text(PROGRAM.replace(*WRONG))
    assert measured(load_subject(program), 0, "*").status == "FAIL"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_package", "toy.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1", "toy.py: defines no function subject"),
        ("def subject(seed): return 3", "returned a int"),
        (PROGRAM.replace('"block"', '"whole"'), "each with a name of its own"),
        (PROGRAM + FINDING, "the line 'y = nn.gelu_approx(y)' 0 times, not once"),
        (
            PROGRAM.replace("reference, port = TorchToy()", "reference, port = TorchToy().half()"),
            "compare it in float32",
        ),
    ],
)
def test_what_cannot_run_ends_with_one_line(run, text, said):
    code, lines, out = run(text)
    assert code == 2 and len(lines) == 1 and said in lines[0]
    assert not out.exists()


def test_several_programs_end_with_a_line_each(tmp_path, capsys):
    (tmp_path / "good.py").write_text(PROGRAM)
    (tmp_path / "crash.py").write_text("import os; os.abort()")
    programs = [str(tmp_path / f"{name}.py") for name in ("good", "missing", "crash")]
    assert main(["run", *programs, "--out", str(tmp_path / "out"), "--jobs", "2"]) == 2
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[0].startswith("PASS: toy") and last[1].startswith("missing: ")
    assert last[2] == "crash: ended by signal 6"
    assert (tmp_path / "out" / "good" / "report.html").exists()


# Lines of foreign code


def test_a_line_is_exchanged_for_a_while():
    usual = place_of.__code__
    with exchanged(place_of, "thing = inspect.unwrap(thing)", "return 'elsewhere'"):
        assert place_of(exchanged) == "elsewhere"
    assert place_of.__code__ is usual
    assert place_of(exchanged).startswith("mlx_parity/source.py:")
    with pytest.raises(SourceError, match="2 times, not once"):
        place_of(place_of, "return None")
    with exchanged(place_of, "return None\nif file is None:", "return 'no source'"):
        assert place_of(3) == "no source"


@pytest.mark.parametrize("number", ["0", "65", "1.5", "\x1b[31m"])
def test_a_wrong_number_of_programs_at_once_is_refused_in_a_line(number, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "toy.py", "--out", str(tmp_path), "--jobs", number])
    said = capsys.readouterr().err
    assert "--jobs" in said and "needs a whole number from 1 to 64" in said and "\x1b" not in said


# A separate environment


def wheel(folder, name):
    """The smallest package that pip installs without a network."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "answer = 42\n")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    return path


def test_a_foreign_package_lives_in_an_environment_of_its_own(tmp_path):
    pins = tmp_path / "toy.requirements.txt"
    pins.write_text(f"{wheel(tmp_path, 'foreign_toy_port')}\n")
    python = environment(tmp_path / "toy", pins)
    script = "import foreign_toy_port, numpy, torch, mlx_parity; print(foreign_toy_port.answer)"
    done = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "42", done.stderr
    with mock.patch.object(subprocess, "run", side_effect=AssertionError("made again")):
        assert environment(tmp_path / "toy", pins) == python
    pins.write_text(f"{tmp_path / 'missing-1.0-py3-none-any.whl'}\n")
    with pytest.raises(CannotInstall, match=r"^cannot install toy\.requirements\.txt: [^\n]*$"):
        environment(tmp_path / "toy", pins)
