"""A separate environment for foreign packages, cached in a folder; what it lacks comes from this environment."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]  # the checkout or the site-packages that hold this package


class CannotInstall(ValueError):
    """A package that cannot be installed; the message is one line."""


def environment(folder: Path, pins: Path) -> Path:
    """Make or reuse an environment with pinned packages; returns its Python interpreter.

    Args:
        folder: its place; made anew when the pins or this Python have changed.
        pins: a requirements file with one exact version a line. The packages are installed without their
            dependencies: what the file does not name comes from this environment.

    Raises:
        CannotInstall: a package cannot be installed.
    """
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(pins.read_bytes() + sys.executable.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip"]
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        # Compiled when imported: of most packages only few files are.
        [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "-r", str(pins)],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            problem = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise CannotInstall(f"cannot install {pins.name}: {problem}")
    # Its own packages come first on the path.
    (site,) = folder.glob("lib/python*/site-packages")
    here = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (site / "outer.pth").write_text("\n".join(dict.fromkeys([*here, str(HOME)])) + "\n")
    stamp.write_text(wanted)
    return python
