"""The pytest plugin as other projects use it: short tests in a separate folder, without a suite or a conftest."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mlx_parity import plugin

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]
INSTALLED = plugin.__name__ in entry_points(group="pytest11").names
TOY = """
import mlx.nn, numpy, pytest, torch
from mlx_parity import mlx_module, torch_module

def sides():
    torch.manual_seed(0)
    theirs = torch_module(lambda self, x: self.up(x).relu(), up=torch.nn.Linear(16, 32))
    mine = mlx_module(lambda self, x: mlx.nn.relu(self.up(x)), up=mlx.nn.Linear(16, 32))
    mine.load_weights([(k, mlx.core.array(v.numpy())) for k, v in theirs.state_dict().items()])
    return theirs, mine, numpy.random.default_rng(0).standard_normal((9, 16)).astype(numpy.float32)
"""
TESTS = """
import pytest
from toy import sides

@pytest.mark.part("encoder")
def test_same(parity):
    parity.compare_models(*sides())

@pytest.mark.part("decoder")
def test_other(parity):
    theirs, mine, x = sides()
    mine.up.bias = mine.up.bias + 0.01
    parity.compare_models(theirs, mine, x)
"""
ANOTHER = """
import sys

def test_no_framework_was_imported():
    assert not {"torch", "mlx", "numpy"} & sys.modules.keys()
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TESTS)
    (tmp_path / "test_another.py").write_text(ANOTHER)

    def run(*arguments):
        words = ["pytest", "-q", "-p", "no:cacheprovider", *["-p", plugin.__name__] * (not INSTALLED), *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "" if INSTALLED else "1"}
        environment.pop("PYTEST_ADDOPTS", None)
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_test_of_three_lines_compares_models_and_leaves_a_report(run, tmp_path):
    code, printed = run("test_toy.py", "--parity-report", "out")
    assert code == 1 and "1 failed, 1 passed" in printed, printed
    assert "up (Linear)" in printed and "first wrong: up" in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["stages"] == ["encoder", "decoder"]
    assert {row["stage"] for row in report["rows"] if row["status"] == "FAIL"} == {"decoder"}
    assert {part["component"]: part["status"] for part in report["components"]} == {
        "encoder": "PASS",
        "decoder": "FAIL",
    }
    assert report["modules"]["decoder/(model)"]["contains"] == ["decoder/up"], "both failures are one cause"
    assert report["verdict"]["sentence"] in printed
    assert "decoder/up" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_word_finds_the_tests_of_its_part_and_a_run_that_compares_nothing_imports_nothing(run, tmp_path):
    code, printed = run("test_toy.py", "-k", "encoder")
    assert code == 0 and "1 passed, 1 deselected" in printed, printed
    code, printed = run("test_another.py")
    assert code == 0 and "1 passed" in printed, printed
    assert not (tmp_path / "out").exists()


def test_pip_installs_it_under_the_name_of_its_module():
    """With equal names pytest loads the plugin once, even if a conftest.py lists the module too."""
    project = tomllib.loads((ROOT / "mlx_parity" / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {plugin.__name__: plugin.__name__}
