"""Options of the suite and the arithmetic it runs under; `mlx_parity.plugin` gathers every reading into one report."""

import argparse
import os
import shlex
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from mlx_parity.case import Case
from parity_tests.session import Session
from port.app.device import DEVICES, use_device

ROOT = Path(__file__).parent
pytest_plugins = ("mlx_parity.plugin", "parity_tests.fixtures")
# A busy machine is no fault of the port; and a verdict, on a fault of the catalogue too, must not hang on a draw.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser):
    group = parser.getgroup("parity")
    group.addoption("--checkpoint", type=_folder, metavar="DIR", help="official checkpoint (default: a tiny one)")
    group.addoption("--mlx-path", type=_folder, metavar="DIR", help="its conversion (default: converted on the fly)")
    group.addoption("--report", dest="parity_report", metavar="DIR", help="write DIR/report.json")
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


def pytest_parity_session(config):
    return Session(config, _command())


def pytest_collection_modifyitems(config, items):
    if config.getoption("--quick"):
        first = {case.part.path: item for item in reversed(items) if (case := _case(item))}
        left = [item for item in items if (case := _case(item)) and first[case.part.path] is not item]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def _case(item):
    """The isolated case that a test judges, if it is one of those tests."""
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")
    return case if isinstance(case, Case) else None


def _folder(value):
    if not Path(value).is_dir():
        raise argparse.ArgumentTypeError(f"{value} is no folder")
    return Path(value)


def _command():
    names = {"__main__": "pytest", "coverage": "python -m parity_tests.coverage"}
    first = Path(sys.argv[0]).stem
    return " ".join([names.get(first, first), shlex.join(sys.argv[1:])]).strip()
