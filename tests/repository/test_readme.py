"""The commands that the pages print, run as printed unless they need the network or minutes."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from parity_tests.speech_support import copy_folder, write_voice

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
BLOCKS = [
    (page, language, code)
    for page in PAGES
    for language, code in re.findall(r"^```(sh|python)\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.M | re.S)
]
SHELL = [line for _, language, code in BLOCKS if language == "sh" for line in code.replace("\\\n", " ").splitlines()]
COMMANDS = sorted({re.sub(r"\s+", " ", line).strip() for line in SHELL if line.strip()})
# What continuous integration runs itself, or takes minutes, or needs the network or another run's files.
NOT_RUN = {
    "make": "the whole suite, which is running",
    "pytest parity_tests --checkpoint": "the whole suite, which is running",
    "--play": "a sound device; test_output.py plays to a fake one",
    "FunAudioLLM": "the network; test_convert_hub.py runs it against a fake hub",
    "reports.drift": "two runs; test_reports_drift.py",
    "--seconds 600": "ten minutes a reader; test_fuzz.py runs each briefly",
    "benchmarks.run": "a minute; test_benchmarks.py",
    "benchmarks.start": "a saved voice; test_benchmarks.py runs it",
    "port benchmark": "minutes; test_tools.py",
    "--only guidance_rate": "half a minute; test_faults.py runs the same command on others",
    "flow.attention.long": "an example of a case to write",
    "-m port serve": "it does not end; test_server_command.py runs it",
    "curl": "a running server; test_server_command.py runs it",
    "cp -r reports/out": "the results of another run",
    "reports.picture": "a browser; test_picture.py",
    "mlx.launch": "test_batch.py runs two ranks",
    "walk.flow.full": "the whole trace; test_walks.py",
    "parity_tests.golden": "test_golden.py",
    "--judge": "results of another port; test_record.py",
    "pip install CHECKOUT/mlx_parity": "the network",
    "run toy.py": "test_porting.py",
}


def reason(command):
    return next((why for part, why in NOT_RUN.items() if part in command), None)


@pytest.fixture(scope="module")
def desk(parity, tmp_path_factory):
    """A reader's folder: the checkout's packages, a converted model, a recording, a manifest."""
    folder = tmp_path_factory.mktemp("desk")
    packages = ("port", "convert", "mlx_parity", "reference", "parity_tests", "reports", "tests", "benchmarks")
    for name in (*packages, "examples", "conftest.py", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    copy_folder(parity.models, folder / "mlx-model")
    write_voice(folder / "me.wav", 1.0, 16000)
    line = {"id": "a", "source_wav": "me.wav", "prompt_wav": "me.wav"}
    (folder / "manifest.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (folder / ".venv" / "bin").mkdir(parents=True)
    wrapper = folder / ".venv" / "bin" / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    return folder


@pytest.mark.parametrize("command", [c for c in COMMANDS if reason(c) is None])
def test_commands_work_as_printed(desk, command):
    command = command.replace("-m port say ", "-m port say --seed 0 ")  # with some seeds random weights end at once
    done = subprocess.run(
        ["bash", "-c", command], cwd=desk, capture_output=True, text=True, timeout=300, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_is_there(command):
    """Modules, files, make targets, and each option of a module's own help."""
    words = command.split()
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.M)
        return
    for module in re.findall(r"-m ([\w.]+)", command):
        assert find_spec(module), module
    for file in re.findall(r"python (\w[\w/]*\.py)", command):
        assert (ROOT / file).is_file()
    called = re.search(r"-m ((?:parity_tests|reports|benchmarks|convert)[\w.]*) (.*)", command)
    if called and (options := re.findall(r"(?<!\S)--[a-z-]+", called[2])):
        text = subprocess.run(
            [sys.executable, "-m", called[1], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert [option for option in options if option not in text] == []


def test_every_reason_is_needed():
    assert [part for part in NOT_RUN if not any(part in command for command in COMMANDS)] == []


@pytest.mark.parametrize(
    "code", [code for page, language, code in BLOCKS if language == "python" and page == "README.md"]
)
def test_python_examples_run(desk, code, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setattr("port.cosyvoice3.load_normalizer", lambda: None)
    exec(compile(code, "README.md", "exec"), {})


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text("utf-8")):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_python_files_that_pages_name_exist():
    """By their path or the end of it; except NAME.py, and the file that a reader of porting.md writes."""
    done = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = [f"/{file}" for file in done.stdout.splitlines()]
    for page in {*PAGES, "mlx_parity/README.md"} - {"docs/findings.md"}:  # which names files of other ports
        named = set(re.findall(r"`([\w./-]+\.py)(?::[\w.]+)?`", (ROOT / page).read_text("utf-8"))) - {"toy.py"}
        named -= {name for name in named if Path(name).stem.isupper()}
        missing = [name for name in named if not any(file.endswith(f"/{name}") for file in tracked)]
        assert missing == [], page


def test_bash_reads_every_block():
    for page, language, code in BLOCKS:
        if language == "sh" and shutil.which("bash"):
            done = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{page}: {done.stderr}"


def test_the_readme_stays_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 130 and len(text.split()) <= 900
    assert "```sh" in "".join(text.splitlines()[:20]), "a first command within twenty lines"
