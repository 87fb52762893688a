"""The device is chosen by name and refused where there is none; a report that compared nothing on it does not count."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_parity.report import model
from port.app import cli
from port.app.device import use_device
from reports import build
from tests.support.synthetic_report import make, provenance

pytestmark = pytest.mark.part("app")

ROOT = Path(__file__).parents[2]
NO_GPU = not mx.is_available(mx.gpu)


@pytest.fixture
def device():
    before = mx.default_device()
    yield
    mx.set_default_device(before)


def test_the_device_is_chosen_by_name(device):
    use_device("cpu")
    assert mx.default_device() == mx.Device(mx.cpu)
    use_device("auto")
    assert mx.default_device() == mx.Device(mx.cpu)
    with pytest.raises(ValueError, match="unknown; choose auto, cpu, gpu"):
        use_device("tpu")


KEEPING = """
import resource, sys
import mlx.core as mx
from port.app.device import keep_freed_memory
kept = keep_freed_memory()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = [mx.ones((1 << 20,)) + i for i in range(8)]
    mx.eval(x)
    del x
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize("setting", [{}, {"MALLOC_TRIM_THRESHOLD_": "1000000"}], ids=["ours", "the user's"])
def test_freed_arrays_are_kept_unless_the_user_chose_otherwise(setting):
    """Eight arrays of 4 MB, 1024 pages each: after some rounds all of them reuse freed memory."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | setting
    words = [sys.executable, "-c", "import mlx.core as mx; mx.set_default_device(mx.cpu)" + KEEPING]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    kept, pages = done.stdout.split()
    assert kept == str(not setting)
    assert (int(pages) < 500) == (not setting)


@pytest.mark.skipif(NO_GPU, reason="MLX finds no GPU here")
def test_a_gpu_is_chosen(device):
    use_device("gpu")
    assert mx.default_device() == mx.Device(mx.gpu)


@pytest.mark.meta
@pytest.mark.skipif(not NO_GPU, reason="MLX finds a GPU here")
def test_a_missing_gpu_is_one_line_everywhere(tmp_path, capsys):
    assert cli.main(["voice", "list", "--model", str(tmp_path), "--device", "gpu"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    commands = (
        ["convert/run.py", "--hf-path", str(tmp_path), "--mlx-path", str(tmp_path / "out"), "--device", "gpu"],
        ["-m", "pytest", "parity_tests/test_device.py", "--device", "gpu"],
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode not in (0, 1), command
        assert "device gpu: this MLX" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.meta
def test_a_report_must_have_compared_something_there(tmp_path, capsys):
    path, about = tmp_path / "report.json", replace(provenance(), device="Device(gpu, 0) Apple Paravirtual device")
    report = make(broken=True, provenance=about)  # a verdict of FAIL is a comparison all the same
    command = [str(path), "--out", str(tmp_path / "out"), "--compared"]
    model.save(report, path)
    assert build.main(command[:-1]) == 1 and build.main([*command, "gpu"]) == 0
    assert build.main([*command, "cpu"]) == 1
    assert "77 tensors were compared on Device(gpu, 0)" in capsys.readouterr().err
    model.save(replace(report, rows=()), path)
    assert build.main([*command, "gpu"]) == 1 and "nothing was compared" in capsys.readouterr().err
    assert build.main([str(tmp_path / "none.json"), *command[1:], "gpu"]) == 1
