"""The commands `convert` and `verify`: they call the converter and the suite, which need torch.

In a checkout both are beside this package. A wheel has them in its folder `suite` under their usual package names; only
these commands put that folder on the path, so the common names do not affect other programs.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from ..files.errors import Refused
from ..files.hub import find_folder
from .arguments import PROGRAM

EXTRA = ("torch", "yaml", "onnx")  # modules of the extra `convert`
HERE = Path(__file__).parents[1]
QUALITY_FILE = "quality.json"  # written by the comparison for reduced precision; the audit has its hash


def convert(options: argparse.Namespace) -> int:
    """Run the converter with its own arguments; returns its exit code."""
    return _suite("convert", "convert.run").main(options.arguments, f"{PROGRAM} convert")


def verify(options: argparse.Namespace) -> None:
    """Compare a converted folder with the checkpoint that it comes from.

    Raises:
        Refused: it differs; the message names the first such tensor.
    """
    check = _suite("verify", "parity_tests.verify").verify_folder
    source = import_module("convert.hub").find_source(options.checkpoint, options.checkpoint_revision, options.llm)
    folder = find_folder(options.model, options.revision)
    with TemporaryDirectory() as held:
        for path in folder.iterdir():
            if path.name != QUALITY_FILE:
                (Path(held) / path.name).symlink_to(path.resolve())
        rows = check(source.folder, Path(held))
    counts = Counter(row["status"] for row in rows)
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    bad = [row for row in rows if row["status"] not in ("PASS", "REDUCED")]
    if bad or not counts["PASS"]:
        worst = f"; first {bad[0]['name']}: {bad[0]['message']}" if bad else ""
        raise Refused(f"{options.model}: differs from {options.checkpoint}: {said} of {len(rows)} tensors{worst}")
    print(f"{options.model}: equals {options.checkpoint}: {said} of {len(rows)} tensors")


def _suite(verb: str, module: str) -> Any:
    """A module of the converter or the suite.

    Raises:
        Refused: it, or a package that it needs, is not installed.
    """
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        raise Refused(f"{verb} needs {', '.join(missing)}; install the extra: pip install 'cosyvoice3-mlx[convert]'")
    if __package__ != "port.app":
        sys.path.insert(0, str(HERE / "suite"))
        port = sys.modules["port"] = ModuleType("port")
        port.__path__ = [str(HERE)]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise Refused(f"{verb} needs the project's repository: {error}; run it in a checkout") from None


COMMANDS = {"convert": convert, "verify": verify}
