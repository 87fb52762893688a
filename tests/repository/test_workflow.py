"""The workflow for GitHub: what can be checked of it without GitHub."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "parity.yml"
JOBS = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
SCRIPTS = {
    f"{job}: {step.get('name', 'run')}": step["run"]
    for job, body in JOBS.items()
    for step in body["steps"]
    if "run" in step
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell(name):
    script = re.sub(r"\$\{\{.*?\}\}", "x", SCRIPTS[name])
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_call_what_is_there(name):
    script = SCRIPTS[name]
    targets = (ROOT / "Makefile").read_text("utf-8")
    for module in re.findall(r"python -m ([\w.]+)", script):
        assert find_spec(module), module
    for file in re.findall(r"python (\w\S*\.py)", script):
        assert (ROOT / file).is_file(), file
    for target in re.findall(r"make (\w+)", script):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target


def test_untrusted_text_never_reaches_a_shell():
    """An expression is pasted into the script before the shell reads it; inputs go through the environment instead."""
    assert not [name for name, script in SCRIPTS.items() if "${{" in script]


def test_the_gate_needs_no_gpu_and_metal_must_have_been_compared():
    gate = " ".join(script for name, script in SCRIPTS.items() if name.startswith("gate"))
    metal = " ".join(script for name, script in SCRIPTS.items() if name.startswith("metal"))
    assert "DEVICE=cpu" in gate and "--compared cpu || status=$?" in gate
    assert "DEVICE=gpu" in metal and "--compared gpu || status=$?" in metal
    systems = {row["os"] for row in JOBS["gate"]["strategy"]["matrix"]["include"]}
    assert any(s.startswith("macos") for s in systems) and any(s.startswith("ubuntu") for s in systems)


@pytest.mark.skipif(not shutil.which("actionlint"), reason="actionlint is not installed")
def test_actionlint():
    done = subprocess.run(["actionlint", str(WORKFLOW)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_actions_are_pinned_by_hash():
    """A tag can be moved to other code."""
    used = [step["uses"] for body in JOBS.values() for step in body["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used), used
