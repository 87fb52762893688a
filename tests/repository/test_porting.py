"""docs/porting.md as a stranger follows it, and the action that judges a port in its own repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlx_parity.__main__ import main

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "porting.md").read_text("utf-8")
FIRST, TOY, FINDING = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
(WORKFLOW,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
ACTION = yaml.safe_load((ROOT / "mlx_parity" / "action.yml").read_text("utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
EXAMPLES = sorted((ROOT / "examples" / "ports").glob("*.py"))
WRONG = TOY.replace("nn.silu(", "nn.gelu(")


def test_the_first_comparison_passes(capsys):
    exec(compile(FIRST, "porting.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASS: 1 outputs of 1 modules")


@pytest.mark.parametrize(("program", "code"), [(TOY, 0), (WRONG, 1)], ids=["right", "wrong"])
def test_the_subject_of_the_page_runs(program, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy.py").write_text(program)
    assert main(["run", "toy.py", "--out", "results", "--only", "whole"]) == code
    written = {path.name for path in Path("results").iterdir()}
    assert written >= {"summary.md", "report.html", "report.json", "reproduce.md"}


def test_the_finding_of_the_page_is_the_example_s():
    lines = [line.strip() for line in FINDING.splitlines() if line.startswith("    ")]
    example = (ROOT / "examples" / "ports" / "qwen2_mlx_lm.py").read_text("utf-8")
    assert len(lines) == 5 and all(line in example for line in lines)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_pinned(example):
    assert sum(bool(line.strip()) for line in example.read_text("utf-8").splitlines()) <= 80
    pins = example.with_suffix(".requirements.txt").read_text("utf-8").split()
    assert pins and all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


def test_an_example_runs_in_its_environment(tmp_path, monkeypatch):
    """Only where `make examples` has made the environment: a test has no network."""
    if not (ROOT / "build" / "parity-qwen2_mlx_lm" / "installed").exists():
        pytest.skip("make examples has not run here")
    monkeypatch.chdir(ROOT)
    assert main(["run", "examples/ports/qwen2_mlx_lm.py", "--out", str(tmp_path), "--only", "prompt"]) == 0
    assert "| prompt | PASS |" in (tmp_path / "summary.md").read_text()


# The action


@pytest.fixture
def step(tmp_path):
    """Runs a step of the action as GitHub does: the shell text, inputs in the environment, a folder as checkout."""
    (tmp_path / "bin").mkdir()

    def run(name, python, **given):
        shim = tmp_path / "bin" / "python"
        shim.write_text(f"#!/bin/sh\n{python}\n")
        shim.chmod(0o755)
        defaults = {key.upper(): str(value.get("default", "")) for key, value in ACTION["inputs"].items()}
        known = {key: defaults.get(key, "") for key in STEPS[name]["env"]} | given
        paths = dict(PATH=f"{shim.parent}:{os.environ['PATH']}", PYTHONPATH=str(ROOT))
        known |= paths | dict(GITHUB_STEP_SUMMARY=str(tmp_path / "page.md"))
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | known, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize("given", [{}, {"PACKAGE": "mlx-parity==9"}], ids=["with the action", "another version"])
def test_the_action_installs_the_judge(step, given):
    done = step("Install", 'echo "$@"', ACTION="/the/action", **given)
    assert done.stdout.split()[-2:] == ["torch", given.get("PACKAGE", "/the/action")]


def test_the_action_fails_at_the_file_that_is_wrong_and_shows_the_summary(step, tmp_path):
    (tmp_path / "toy.py").write_text(WRONG)
    done = step("Judge", f'exec "{sys.executable}" "$@"', SUBJECT="toy.py")
    assert done.returncode == 1, done.stderr
    assert re.search(r"^::error file=toy\.py,line=\d+,title=whole", done.stdout, re.M)
    assert (tmp_path / "page.md").read_text().startswith("**FAIL: toy in MLX")
    assert (tmp_path / "parity-results" / "report.html").exists()


@pytest.mark.parametrize("declared", ["true", "false"])
def test_the_action_passes_its_inputs_on(step, declared):
    done = step("Judge", 'echo "$@"', SUBJECT="a b.py", SEED="7", DECLARED=declared)
    assert done.returncode == 0 and done.stdout.startswith("-m mlx_parity run a b.py --out parity-results --seed 7 ")
    assert ("--declared" in done.stdout) == (declared == "true")


def test_untrusted_text_never_reaches_a_shell_and_actions_are_pinned():
    assert not [name for name, step in STEPS.items() if "${{" in step.get("run", "")]
    steps = yaml.safe_load(WORKFLOW)["jobs"]["parity"]["steps"]
    used = [step["uses"] for step in [*STEPS.values(), *steps] if "uses" in step]
    assert all(re.fullmatch(r"[\w/-]+@([0-9a-f]{40}|COMMIT)", name) for name in used), used
    (ours,) = (step for step in steps if step.get("uses", "").endswith("/mlx_parity@COMMIT"))
    required = {name for name, about in ACTION["inputs"].items() if about.get("required")}
    assert required <= set(ours["with"]) <= set(ACTION["inputs"])


@pytest.mark.skipif(not shutil.which("actionlint"), reason="actionlint is not installed")
def test_actionlint_of_the_workflow_to_copy():
    done = subprocess.run(["actionlint", "-"], input=WORKFLOW, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
