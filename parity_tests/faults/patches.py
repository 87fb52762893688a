"""Faults given as patches of the checkout: each is applied to a copy, and the suite runs there.

    python -m parity_tests.faults.patches [--only TEST] [--without TEST ...] [FILE ...]

runs the suite of its own checkout, tests near the named files first, and prints a line for each test that begins or
fails. `judge_patches` calls it in the copy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from mlx_parity.faults.patch import FaultError
from mlx_parity.faults.verdict import Check, Finding
from parity_tests.faults import TESTS
from parity_tests.faults.parts import BEFORE, GROUPS, group_of, place

ROOT = Path(__file__).parents[2]
SUITE = ("-m", "not meta", "-x", "-q", "-p", "no:cacheprovider")
FIELDS = "\t"  # between the words of a line


def judge_patches(patches: Sequence[Path], limit: float) -> int:
    """Print `NAME caught|SURVIVED first=PART` for each; exit code 0 only if all are caught.

    Args:
        limit: seconds that one test may take.

    Raises:
        FaultError: a patch does not apply, or touches a file outside the checkout.
    """
    survived = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        whole = Path(folder) / "whole"
        copy_checkout(whole)
        touched = {patch: _touched(whole, patch) for patch in patches}  # check all before the first run
        for patch in patches:
            changed = Path(folder) / "changed"
            shutil.copytree(whole, changed, symlinks=True)
            _git(changed, patch, "apply")
            found = _first(changed, whole, touched[patch], limit)
            shutil.rmtree(changed)
            survived += found is None
            first = found.check.part if found else "none"
            print(f"{patch.stem} {'caught' if found else 'SURVIVED'} first={first}", flush=True)
    return 1 if survived else 0


def copy_checkout(folder: Path) -> None:
    """The tracked files of the checkout, as they are in the working tree."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)  # git apply resolves paths from here


def _touched(folder: Path, patch: Path) -> list[str]:
    files = [line.split("\t")[2] for line in _git(folder, patch, "apply", "--numstat").splitlines()]
    for file in files:
        if not (folder / file).resolve().is_relative_to(folder.resolve()):
            raise FaultError(f"{patch}: touches {file}, which is outside the checkout")
    _git(folder, patch, "apply", "--check")
    return files


def _git(folder: Path, patch: Path, *command: str) -> str:
    if not patch.is_file():
        raise FaultError(f"{patch}: no such file")
    done = subprocess.run(["git", *command, str(patch.resolve())], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["git apply failed"]
        raise FaultError(f"{patch}: does not apply: {reason[0].removeprefix('error: ')}")
    return done.stdout


def _first(changed: Path, whole: Path, touched: Sequence[str], limit: float) -> Finding | None:
    """The first failure that the unchanged copy does not have."""
    known: list[str] = []
    while True:
        arguments = [word for test in known for word in ("--without", test)]
        found = _run(changed, [*arguments, *touched], limit)
        if found is None or _run(whole, ["--only", found.check.by], limit / 10 if found.endless else limit) is None:
            return found
        if "::" not in found.check.by:
            return None  # collection fails in both copies
        known.append(found.check.by)


def _run(folder: Path, arguments: Sequence[str], limit: float) -> Finding | None:
    """The first failure in a copy; a test that does not end within the limit fails."""
    command = [sys.executable, "-m", "parity_tests.faults.patches", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None
    current, text = Check("parity_tests", "parity_tests"), b""
    try:
        while wait([process.stdout.fileno()], limit):
            if not (read := os.read(process.stdout.fileno(), 1 << 16)):
                return Finding(current, current.by, "the run ended by itself") if process.wait() else None
            *lines, text = (text + read).split(b"\n")
            for kind, *words in (line.decode().split(FIELDS) for line in lines):
                if kind == "failed":
                    return Finding(Check(words[0], words[1]), words[0], "")
                current = Check(*words)
        return Finding(current, current.by, f"no end within {limit:g} s", endless=True)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# ---- inside the copy


class Nearest:
    """A pytest plugin: runs tests near some files first, smallest parts first, and prints a line for each."""

    def __init__(self, touched: Sequence[str], without: Sequence[str], out: int) -> None:
        paths = [Path(file).with_suffix("").parts for file in touched]
        parts = [".".join(words if words[0] == "convert" else words[1:]) for words in paths]
        groups = {group_of(part) for part in parts} - {None}
        self.near = {near for group in groups for near in (group, *GROUPS[group], *BEFORE.get(group, ()))}
        self.without, self.out, self.parts = set(without), out, dict[str, str]()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            mark = item.get_closest_marker("part")
            self.parts[item.nodeid] = mark.args[0] if mark else item.nodeid.partition("::")[0]
        items[:] = [item for item in items if item.nodeid not in self.without]
        items.sort(key=lambda item: self._rank(self.parts[item.nodeid]))

    def _rank(self, part: str) -> tuple[bool, tuple[int, int]]:
        return group_of(part) not in self.near, place(part)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say("begins", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._say("failed", report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._say("failed", report.nodeid)

    def _say(self, kind: str, nodeid: str) -> None:
        line = FIELDS.join((kind, nodeid, self.parts.get(nodeid, nodeid.partition("::")[0])))
        os.write(self.out, f"{line}\n".encode())


def main(argv: list[str] | None = None) -> int:
    """Exit code: pytest's; `--only` with a file merely collects it."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.faults.patches")
    parser.add_argument("--only", metavar="TEST")
    parser.add_argument("--without", action="append", default=[], metavar="TEST")
    parser.add_argument("files", nargs="*", metavar="FILE")
    options = parser.parse_args(argv)
    out = os.dup(1)
    os.dup2(2, 1)  # the pipe gets only our own lines
    words = [*([options.only] if options.only else TESTS), *SUITE]
    if options.only and "::" not in options.only:
        words.append("--collect-only")
    return pytest.main(words, plugins=[Nearest(options.files, options.without, out)])


if __name__ == "__main__":
    sys.exit(main())
