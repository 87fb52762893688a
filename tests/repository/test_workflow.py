"""The workflows and forms for GitHub, as far as they can be checked without GitHub."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
JOBS = {name: job for file in WORKFLOWS for name, job in yaml.safe_load(file.read_text("utf-8"))["jobs"].items()}
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
    done = subprocess.run(["actionlint", *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_actions_are_pinned_by_hash():
    """A tag can be moved to other code."""
    used = [step["uses"] for body in JOBS.values() for step in body["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used), used


def test_every_job_says_what_it_may_do_and_for_how_long():
    assert all("timeout-minutes" in job for job in JOBS.values())
    assert all(yaml.safe_load(file.read_text("utf-8"))["permissions"] == {"contents": "read"} for file in WORKFLOWS)


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem)
def test_a_form_asks_for_versions_and_what_happened(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    fields = [part["id"] for part in form["body"]]
    assert len(set(fields)) == len(fields) and form["name"] and form["description"]
    assert any(part.get("validations", {}).get("required") for part in form["body"])
    assert "ersions" in path.read_text("utf-8")


def test_hooks_call_what_make_installs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    local = [hook["entry"] for repo in hooks if repo["repo"] == "local" for hook in repo["hooks"]]
    assert local and {entry.split()[0] for entry in local} == {".venv/bin/ruff", ".venv/bin/codespell"}


def test_one_version_everywhere():
    files = {"pyproject.toml": r'^version = "(.*)"', "mlx_parity/pyproject.toml": r'^version = "(.*)"'}
    files |= {"CITATION.cff": r"^version: (.*)", "CHANGELOG.md": r"^## ([\d.]+)"}
    found = {name: re.search(text, (ROOT / name).read_text("utf-8"), re.MULTILINE)[1] for name, text in files.items()}
    assert len(set(found.values())) == 1, found
