"""`python -m port serve` as a process: it prints its address, the commands of the pages work, a signal ends it."""

import re
import shutil
import signal
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tests.support.cli_support import heard
from tests.support.server_support import VOICE

pytestmark = pytest.mark.part("app")
ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:8000"  # of the pages; the tests take a free port


@pytest.fixture(scope="module")
def served(served_voice):
    """Where the command of docs/serve.md listens, and its process."""
    line = re.search(r"^\S+ (-m port serve .*)$", (ROOT / "docs" / "serve.md").read_text("utf-8"), re.M)[1]
    arguments = line.replace("mlx-model", str(served_voice.folder)).split()
    process = subprocess.Popen(
        [sys.executable, *arguments, "--port", "0"], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said = process.stdout.readline()
    yield re.match(r"(http://127\.0\.0\.1:\d+) speaks, ", said)[1], process
    process.kill()
    process.wait()


def test_the_line_for_curl(served, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    line = re.search(r"^(curl (?:.*\\\n)*.*)$", (ROOT / "docs" / "serve.md").read_text("utf-8"), re.M)[1]
    done = subprocess.run(
        ["bash", "-c", line.replace(URL, served[0])], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    heard(tmp_path / "out.wav")


def test_the_example(served, tmp_path):
    path = ROOT / "examples" / "openai_client.py"
    spec = spec_from_file_location("openai_client", path)
    program = module_from_spec(spec)
    spec.loader.exec_module(program)
    shown = re.search(r"^python examples/openai_client\.py (\S+) (\S+) '(.*)' (\S+)$", program.__doc__, re.M).groups()
    assert shown[:2] == (f"{URL}/v1", VOICE)
    program.main(f"{served[0]}/v1", VOICE, shown[2], str(tmp_path / shown[3]))
    heard(tmp_path / "out.wav")


def test_a_signal_ends_the_server(served):
    """The last test: it ends quietly, with exit code 0."""
    served[1].send_signal(signal.SIGINT)
    out, err = served[1].communicate(timeout=30)
    assert (served[1].returncode, out, err) == (0, "", "")
