"""Options of the suite, the arithmetic it runs under, and the collection of every reading into one report file."""

import argparse
import os
import shlex
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from mlx_parity.case import Case
from parity_tests.harness.session import Session
from parity_tests.parts import PARTS
from port.app.device import DEVICES, use_device

ROOT = Path(__file__).parent
pytest_plugins = ("parity_tests.fixtures",)
# A busy machine is no fault of the port; and a verdict, on a fault of the catalogue too, must not hang on a draw.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser):
    group = parser.getgroup("parity")
    group.addoption("--checkpoint", type=_folder, metavar="DIR", help="official checkpoint (default: a tiny one)")
    group.addoption("--mlx-path", type=_folder, metavar="DIR", help="its conversion (default: converted on the fly)")
    group.addoption("--report", metavar="DIR", help="write DIR/report.json")
    dtypes = ["float32", "float16", "bfloat16"]
    group.addoption("--dtype", default="float32", choices=dtypes, help="dtype of the port's weights")
    group.addoption("--device", default="auto", choices=DEVICES, help="where MLX computes (default: its own choice)")
    group.addoption("--adapter", default="own", help="which port is judged: a module of parity_tests/adapters")
    group.addoption("--plain", action="store_true", help="judge the port's plain layers, without their fast forms")
    group.addoption("--full", action="store_true", help="also compare real sizes (minutes)")
    group.addoption("--quick", action="store_true", help="of the isolated cases, the first of each part")
    group.addoption("--seed", type=int, default=0, help="seed of the embedded checkpoint")


def pytest_configure(config):
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        # MLX keeps compiled kernels below TMPDIR and writes them in place: a worker must not read another's half.
        own = ROOT / "build" / "tmp" / worker
        own.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(own)
    # Tiny tensors gain nothing from threads, and on a busy machine every barrier waits for the slowest.
    torch.set_num_threads(os.cpu_count() or 1 if config.getoption("--full") else 1)
    torch.manual_seed(0)
    try:
        use_device(config.getoption("--device"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    session = config.stash[Session.key] = Session(config, command=_command())
    if not config.option.help and not config.option.version:
        session.begin()


def pytest_itemcollected(item):
    """`-k` finds a test by the words of its part as well."""
    mark = item.get_closest_marker("part")
    if mark and mark.args[0] in PARTS:
        item.extra_keyword_matches.update(PARTS[mark.args[0]].words)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        first = {case.part.path: item for item in reversed(items) if (case := _case(item))}
        left = [item for item in items if (case := _case(item)) and first[case.part.path] is not item]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
    reasons = {}
    if not config.getoption("--full"):
        reasons["full"] = "real sizes: run with --full"
    if (label := config.stash[Session.key].label) != "float32":
        reasons["float32"] = f"equal numbers need float32, this run is {label}: test_quality.py judges it"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    if not session.config.option.collectonly and not hasattr(session.config, "workerinput"):
        session.config.stash[Session.key].require_float32()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    item.config.stash[Session.key].gathered.attach(item, report)
    return report


def pytest_runtest_logreport(report):
    Session.current.gathered.receive(report)


def pytest_collectreport(report):
    if report.failed:
        Session.current.gathered.failed_collection(report)


def pytest_sessionfinish(session, exitstatus):
    session.exitstatus = session.config.stash[Session.key].finish(exitstatus)


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[Session.key].summary():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def parity(request):
    """The running session: judges cases, hands out the checkpoint and both models, keeps every row."""
    return request.config.stash[Session.key]


def _case(item):
    """The isolated case that a test judges, if it is one of those tests."""
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")
    return case if isinstance(case, Case) else None


def _folder(value):
    if not Path(value).is_dir():
        raise argparse.ArgumentTypeError(f"{value} is no folder")
    return Path(value)


def _command():
    names = {"__main__": "pytest", "branches": "python -m parity_tests.harness.branches"}
    first = Path(sys.argv[0]).stem
    return " ".join([names.get(first, first), shlex.join(sys.argv[1:])]).strip()
