"""What `pip install .` gives a user: one package of another name, with everything in it, and a command that works."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.meta
ROOT = Path(__file__).parents[2]
SUITE = ("convert", "mlx_parity", "parity_tests", "reference", "reports")  # what `convert` and `verify` need
SOURCES = ("port", *SUITE, "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since a build leaves its folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    pip("wheel", folder, "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "out")
    (built,) = (folder / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    pip("install", wheel, "--no-deps", "--no-index", "--target", target)
    return target


def run(site, *command):
    """Run a command with the installed package and without the checkout."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run([*map(str, command)], cwd=site, env=environment, capture_output=True, text=True, timeout=120)


def test_it_holds_every_file_of_the_port_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cosyvoice3_mlx"}
    packed = {name.removeprefix("cosyvoice3_mlx/") for name in names if name.startswith("cosyvoice3_mlx/")}
    port = {name for name in packed if not name.startswith("suite/")}
    page = {*(ROOT / "port/app/server/page").iterdir(), ROOT / "port/py.typed"}
    assert port == {str(path.relative_to(ROOT / "port")) for path in page | {*(ROOT / "port").rglob("*.py")}}
    assert {name.split("/")[1] for name in packed - port} == set(SUITE)
    assert {Path(name).suffix for name in packed} == {".py"} | {path.suffix for path in page}
    assert [name for name in names if name.endswith("NOTICE")]


def test_every_module_imports_under_the_new_name(site):
    script = """
import importlib, pkgutil, sys
import cosyvoice3_mlx
for module in pkgutil.walk_packages(cosyvoice3_mlx.__path__, "cosyvoice3_mlx."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert not {"port", "torch", "convert", "reference"} & sys.modules.keys()
print(cosyvoice3_mlx.__file__)
"""
    done = run(site, sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))


def test_the_help_names_the_installed_command(site):
    done = run(site, site / "bin" / "cosyvoice3-mlx", "--help")
    assert done.returncode == 0, done.stderr
    assert "cosyvoice3-mlx say --model" in done.stdout
    assert "python -m port" not in done.stdout


def test_the_command_converts(site, official, tmp_path):
    """The wheel holds the converter and the suite that verifies; torch comes from the extra."""
    command, out = site / "bin" / "cosyvoice3-mlx", tmp_path / "mlx"
    done = run(site, command, "convert", "--hf-path", official, "--mlx-path", out)
    assert done.returncode == 0, done.stderr
    assert re.search(r"parity (\d+) of \1 tensors pass", done.stdout)
    assert "cosyvoice3-mlx convert --hf-path" in run(site, command, "convert", "--help").stdout


def test_the_command_speaks(site, parity, recordings, tmp_path):
    models = parity.models
    arguments = ["vc", "--model", models.folder, "--source-wav", recordings[1], "--prompt-wav", recordings[0]]
    done = run(site, site / "bin" / "cosyvoice3-mlx", *arguments, "-o", tmp_path / "out.wav")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.wav").stat().st_size > 1000
