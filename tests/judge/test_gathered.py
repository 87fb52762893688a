"""No row of a run is silently lost, and a run that compared nothing fails."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mlx_parity.gathered import Gathered
from parity_tests import trace
from parity_tests.models import FolderError, check_folders
from parity_tests.session import Session

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]
ONE_ROW = """
    from mlx_parity.compare import Reading
    from mlx_parity.judge import Row


    def test_a_row(parity):
        parity.add([Row("a.y", "flow", "exact", "flow.layers.GRN", "a", Reading("PASS", ""))])
"""


def hooks(name, source):
    """A pytest plugin from its source code."""
    module = ModuleType(name)
    module.__file__ = str(ROOT / "conftest.py")
    exec(compile(textwrap.dedent(source), module.__file__, "exec"), module.__dict__)
    return module


@pytest.fixture
def suite(tmp_path):
    """Runs pytest in this process on a test file; returns the exit code and the report, if one was written."""

    def run(source, *options, more=""):
        (tmp_path / "test_it.py").write_text(textwrap.dedent(source))
        report = tmp_path / "out" / "report.json"
        words = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--report", str(report.parent)]
        plugins = [hooks("suite", (ROOT / "conftest.py").read_text("utf-8")), hooks("more", more)]
        current = os.environ.get("PYTEST_CURRENT_TEST", "")
        try:
            code = pytest.main([str(tmp_path / "test_it.py"), *words, *options], plugins=plugins)
        finally:
            os.environ["PYTEST_CURRENT_TEST"] = current
            sys.modules.pop("test_it", None)
        return int(code), json.loads(report.read_text()) if report.exists() else None

    return run


def test_a_row_reaches_the_report_and_its_verdict_the_exit_code(suite):
    code, report = suite(ONE_ROW)
    assert [row["name"] for row in report["rows"]] == ["a.y"]
    assert report["verdict"]["counts"]["PASS"] == 1 and code == (0 if report["verdict"]["status"] == "PASS" else 1)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("def test_nothing(): pass", []),
        ("import pytest\ndef test_nothing(): pytest.skip('no device')", []),
        (ONE_ROW, ["-k", "no_such_test"]),
        (ONE_ROW, ["-m", "full"]),
        ("", []),
    ],
    ids=["no row", "all skipped", "-k selects nothing", "-m selects nothing", "nothing collected"],
)
def test_a_report_without_a_row_is_no_success(suite, source, options):
    code, report = suite(source, *options)
    assert code != 0 and report["verdict"]["status"] == "ERROR"
    assert "no tensor was compared" in report["verdict"]["sentence"]


@pytest.mark.parametrize(
    ("test", "plugin"),
    [
        ("\ndef test_stop(): raise KeyboardInterrupt", ""),
        ("\nimport pytest\ndef test_stop(): pytest.exit('enough', 2)", ""),
        ("\ndef test_b(): pass", "def pytest_runtest_protocol(item):\n    assert item.name != 'test_b'"),
    ],
    ids=["interrupted", "exit", "internal error"],
)
def test_a_run_that_ended_early_is_an_error_in_its_report(suite, test, plugin):
    code, report = suite(textwrap.dedent(ONE_ROW) + test, more=plugin)
    assert code not in (0, 1)
    assert [row["name"] for row in report["rows"]] == ["a.y"]
    (entry,) = (test for test in report["tests"] if test["nodeid"] == "session")
    assert entry["outcome"] == "error" and "ended early" in entry["reason"]
    assert report["verdict"]["status"] != "PASS"


def test_a_file_that_cannot_be_collected_is_an_error_of_the_report(suite):
    code, report = suite("import no_such_module", "--continue-on-collection-errors")
    assert code != 0 and report["verdict"]["status"] == "ERROR"
    assert "no_such_module" in report["tests"][0]["reason"]


def test_the_report_of_an_earlier_run_is_not_left_as_that_of_this_one(suite, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.json", "report.html", "report.md", "summary.md", "kept.txt"):
        (out / name).write_text("{}")
    code, report = suite("raise SystemExit")
    assert code != 0 and report["verdict"]["status"] == "ERROR"
    assert sorted(path.name for path in out.iterdir()) == ["kept.txt", "report.json"]
    code, _ = suite(ONE_ROW, "--collect-only")
    assert code == 0 and (out / "report.json").exists(), "--collect-only must keep the earlier report"


def test_a_report_that_cannot_be_written_is_one_line(suite, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, report = suite(ONE_ROW, "--report", str(tmp_path / "file"))
    said = capsys.readouterr()
    assert code == 4 and report is None
    assert "give a folder" in said.err and "Traceback" not in said.out + said.err


# ---- workers


def items(count):
    """The tests that every worker collects."""
    session = SimpleNamespace()
    mark = SimpleNamespace(args=("flow.dit.DiT",))
    session.items = [
        SimpleNamespace(nodeid=f"test_x.py::test_{i}", session=session, get_closest_marker={"part": mark}.get)
        for i in range(count)
    ]
    return session.items


def through_a_worker(item, gathered, outcome="passed", when="call", longrepr=None):
    """A test's report as a worker of pytest-xdist sends it: as plain values, in JSON."""
    report = pytest.TestReport(item.nodeid, ("test_x.py", 1, "x"), {}, outcome, longrepr, when, duration=0.1)
    gathered.attach(item, report)
    return pytest.TestReport._from_json(json.loads(json.dumps(report._to_json())))


def test_rows_of_workers_are_those_of_one_process():
    """Rows, sections, tests and their order do not depend on which worker ran a test or when its report came."""
    one, single, workers, several = Gathered(), Gathered(), [Gathered(), Gathered()], Gathered()
    sent: list[pytest.TestReport] = []
    for i, item in enumerate(items(6)):
        outcome, longrepr = ("failed", "E") if i == 4 else ("passed", None)
        for gathered, receive in ((one, single.receive), (workers[i % 2], sent.append)):
            gathered.keep("rows", [{"name": f"row.{i}"}])
            if i % 3 == 0:
                gathered.keep("liveness", [{"tensor": i}])
            receive(through_a_worker(item, gathered, outcome, longrepr=longrepr))
    for report in reversed(sent):
        several.receive(report)
    for kind in ("rows", "liveness"):
        assert several.entries(kind) == single.entries(kind) != []
    assert several.tests == single.tests and list(several.tests) == list(single.tests)
    assert several.tests["test_x.py::test_4"]["outcome"] == "failed"


def test_a_crashed_worker_loses_nothing_that_it_had_finished():
    """pytest-xdist reports the test that crashed its worker as failed, in no phase; earlier reports have arrived."""
    worker, controller = Gathered(), Gathered()
    first, second = items(2)
    worker.keep("rows", [{"name": "row"}])
    controller.receive(through_a_worker(first, worker))
    crashed = pytest.TestReport(second.nodeid, ("x", None, "x"), {}, "failed", "crashed", "???")  # type: ignore[arg-type]
    controller.receive(crashed)
    assert controller.entries("rows") == [{"name": "row"}]
    found = controller.tests[second.nodeid]
    assert found["outcome"] == "error" and "crashed" in found["reason"]


def test_a_worker_writes_no_report(parity):
    session: Any = object.__new__(Session)
    option = {"parity_report": "somewhere", "--collect-only": False}.__getitem__
    session.config = SimpleNamespace(getoption=option)
    assert session._folder() == Path("somewhere")
    session.config = SimpleNamespace(getoption=option, workerinput={"workerid": "gw0"})
    assert session._folder() is None


def test_what_is_kept_while_a_fixture_is_made_travels_too():
    gathered = Gathered()
    (item,) = items(1)
    gathered.keep("models", [1])
    gathered.receive(through_a_worker(item, gathered, when="setup"))
    gathered.keep("rows", [2])
    gathered.receive(through_a_worker(item, gathered))
    gathered.receive(through_a_worker(item, gathered, when="teardown"))
    assert (gathered.entries("models"), gathered.entries("rows")) == ([1], [2])
    assert list(gathered.tests) == [item.nodeid]


# ---- folders


@pytest.fixture(scope="module")
def folders(parity):
    """A checkpoint and its conversion."""
    return parity.models.source, parity.models.folder


def refused(checkpoint=None, mlx_path=None):
    with pytest.raises(FolderError) as error:
        check_folders(checkpoint, mlx_path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_that_is_none_is_refused_and_what_it_lacks_is_named(folders, tmp_path):
    official, converted = folders
    check_folders(official, converted)
    assert "no official checkpoint: speech_tokenizer_v3.onnx and 9 more files not found" in refused(tmp_path)
    assert "model.safetensors" in refused(None, tmp_path) or "config.json" in refused(None, tmp_path)
    assert "give that to --mlx-path" in refused(converted)
    assert "give that to --checkpoint" in refused(None, official)


@pytest.mark.parametrize(
    "name", ["llm.pt", "flow.pt", "hift.pt", "campplus.onnx", "cosyvoice3.yaml", "CosyVoice-BlankEN/vocab.json"]
)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_each_file_of_a_checkpoint_is_asked_for(folders, tmp_path, name, how):
    folder = Path(shutil.copytree(folders[0], tmp_path / "copy"))
    (folder / name).unlink() if how == "missing" else (folder / name).write_bytes(b"")
    assert name.rpartition("/")[2] in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_each_file_of_a_conversion_is_asked_for(folders, tmp_path, name, how):
    folder = Path(shutil.copytree(folders[1], tmp_path / "copy"))
    (folder / name).unlink() if how == "missing" else (folder / name).write_bytes(b"")
    assert name in refused(None, folder)


def test_a_conversion_is_no_checkpoint(folders):
    """The command prints one line that names the right option for the folder, and runs no test."""
    call = [sys.executable, "-m", "pytest", "parity_tests", "--checkpoint", str(folders[1])]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.strip().splitlines()
    assert f"--checkpoint: {folders[1]} is no official checkpoint" in line
    assert "it looks like a conversion, give that to --mlx-path" in line


@pytest.mark.parametrize("option", ["--checkpoint", "--mlx-path"])
def test_such_a_folder_ends_a_run_before_it_begins(suite, tmp_path, capsys, option):
    (tmp_path / "none").mkdir()
    code, report = suite(ONE_ROW, option, str(tmp_path / "none"))
    said = capsys.readouterr()
    assert code == 4 and report is None and "passed" not in said.out
    assert f"{option}: " in said.err and "Traceback" not in said.out + said.err
    for case in ("flow.grn", "walk.llm"):
        assert trace.main([case, option, str(tmp_path / "none")]) == 2
        said = capsys.readouterr()
        assert not said.out and said.err.count("\n") == 1 and said.err.startswith(f"trace: {option}: ")
