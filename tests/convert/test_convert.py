"""A whole conversion: the folder's files, and that nothing is left when parity fails or the process dies."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convert import run
from convert.audit import port_shapes
from convert.conversion import convert_folder
from convert.hub import find_source, needed_files
from convert.partial import MARK, partial_folder
from port.config import CosyVoice3Config
from port.cosyvoice3 import CosyVoice3
from port.files.errors import Misused, Refused
from port.files.storage import read_headers
from tests.support.convert_support import CONFIG

pytestmark = pytest.mark.part("convert.run")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def plain_output(official, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    convert_folder(find_source(str(official)), out)
    return out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"name": "flow.mel", "status": "FAIL"}, {"name": "x", "status": "PASS"}], "flow.mel is FAIL"),
        ([{"name": "flow.mel", "status": "SKIP"}], "nothing was compared"),
        ([], "nothing was compared"),
        (None, "not comparable"),
    ],
)
def test_parity_failure_leaves_nothing(official, tmp_path, rows, said):
    out = tmp_path / "new" / "deep" / "out"
    with pytest.raises(Refused, match=said):
        convert_folder(find_source(str(official)), out, lambda *_: iter(rows) and rows)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(official, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(find_source(str(official)), tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == []


# ---- the command


def test_output_folder(plain_output, official):
    written = ["audit.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in plain_output.iterdir()) == written
    config = json.loads((plain_output / "config.json").read_text())
    assert CosyVoice3Config.load(plain_output) == CONFIG
    assert set(config["provenance"]["sha256"]) == set(needed_files())
    audit = json.loads((plain_output / "audit.json").read_text())
    assert audit["parity"] == []  # only the command compares
    assert audit["files"]["hift"]["tensors"] == 328
    assert read_headers(plain_output).keys() == port_shapes(CONFIG).keys()


@pytest.mark.meta
@pytest.mark.parametrize("how", [["convert/run.py"], ["-m", "convert.run"]])
def test_runs_as_a_script_and_as_a_module(tmp_path, how):
    (tmp_path / "out").mkdir()
    call = [sys.executable, *how, "--hf-path", str(tmp_path), "--mlx-path", str(tmp_path / "out")]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("convert: ")
    assert "already exists" in done.stderr
    assert subprocess.run(call[:-2], cwd=ROOT, capture_output=True).returncode == 2


def started(before, *arguments):
    """Run the command in a subprocess, after the lines of Python `before`."""
    script = f"import sys\n{before}\nfrom convert import run\nsys.exit(run.main({list(map(str, arguments))!r}))"
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--hf-path"], 2), (["--q-bits", "5"], 2)])
def test_help_and_mistakes_are_answered_before_anything_large_is_loaded(arguments, code):
    loaded = "import atexit\natexit.register(lambda: print({'torch', 'mlx', 'numpy', 'onnx'} & sys.modules.keys()))"
    done = started(loaded, *arguments)
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("while_loading", ["torch", "convert.conversion"])
def test_ctrl_c_while_the_command_is_loaded_is_one_line(tmp_path, while_loading):
    finder = f"""class Interrupt:
    def find_spec(name, path=None, target=None):
        if name == {while_loading!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt)"""
    done = started(finder, "--hf-path", tmp_path, "--mlx-path", tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "convert: interrupted; nothing was written\n")


def test_a_full_disk_names_the_output(source, refuses, monkeypatch, tmp_path):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("convert.conversion.Writer.write", write)
    out = tmp_path / "results" / "out"
    assert refuses(source, out=out) == f"convert: {out}: No space left on device"


def test_revision_of_a_folder_is_a_usage_error(official):
    with pytest.raises(Misused, match="has no revisions"):
        find_source(str(official), "main")


# ---- a conversion that is killed

WAITS = """
import sys, time
from pathlib import Path
from convert import run
def wait(source, folder):
    Path(sys.argv[3]).touch()
    time.sleep(60)
run.parity_check = wait
run.main(["--hf-path", sys.argv[1], "--mlx-path", sys.argv[2]])
"""


@pytest.fixture
def killed(official, tmp_path):
    """Process and output of a conversion that has written its files and then waits, to be stopped with SIGKILL."""
    out, ready = tmp_path / "results" / "out", tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(official), str(out), str(ready)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ready.exists()
    yield process, out
    process.kill()
    process.wait()


def test_a_killed_conversion_leaves_nothing_that_looks_finished(official, killed, monkeypatch, capsys):
    process, out = killed
    monkeypatch.setattr(run, "parity_check", None)
    arguments = ["--hf-path", str(official), "--mlx-path", str(out)]
    assert run.main(arguments) == 2
    assert "another conversion is writing it" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in out.parent.iterdir()] == ["out.partial"]
    with pytest.raises(Refused):  # config.json and weights exist, under another name
        CosyVoice3.from_pretrained(out)
    assert run.main(arguments) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not (out / MARK).exists()


def test_a_folder_in_the_way_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "parity_check", None)
    partial = partial_folder(tmp_path / "out")
    partial.mkdir()
    (partial / "mine.txt").write_text("keep")
    assert run.main(["--hf-path", str(tmp_path), "--mlx-path", str(tmp_path / "out")]) == 2
    assert "is no leftover of a conversion" in capsys.readouterr().err
    assert (partial / "mine.txt").read_text() == "keep"
