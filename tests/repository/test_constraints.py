"""What constraints.txt pins: packages that something here asks for, and no others."""

import re
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINNED = {
    canonicalize_name(line.partition("==")[0])
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
}
WITHOUT_DEPENDENCIES = "mlx-lm"  # see the Makefile
# The file is for all of these, whichever the tests run on.
SYSTEMS = [
    {"platform_system": system, "sys_platform": system.lower(), "python_version": f"3.{minor}"}
    for system in ("Linux", "Darwin")
    for minor in (11, 12, 13, 14)
]


def asked(requirements, extra=""):
    """The requirements that apply on some system, with `extra` or without."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if not marker or any(marker.evaluate(system | {"extra": e}) for system in SYSTEMS for e in {"", extra}):
            yield requirement


def needed():
    """Names of all that the project and its extras need, by the packages installed here."""
    own = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    open_ = [r for r in asked(PROJECT["dependencies"] + own) if r.name != PROJECT["name"]]
    found = set()
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in found:
                found.add((name, extra))
                with suppress(PackageNotFoundError):  # needed on another system only
                    open_ += asked(requires(name) or (), extra)
    return {name for name, _ in found}


def test_every_pin_is_needed():
    assert PINNED - needed() == {WITHOUT_DEPENDENCIES}


def test_needs_of_needs_are_found():
    """torch needs sympy, sympy needs mpmath, and nothing needs einx."""
    assert {"torch", "mpmath", "numpy", "pytest"} <= needed() & PINNED
    assert not {"einx", "einops", "frozendict"} & needed()


@pytest.mark.parametrize("name", ["einx", "x-transformers", "frozendict"])
def test_packages_that_are_gone_stay_away(name):
    """einx brings frozendict, which is under the LGPL; x-transformers brings einx."""
    spelled = rf"(?im)^\W*{name.replace('-', '[-_.]')}\b"
    for file in ("constraints.txt", "pyproject.toml"):
        assert not re.search(spelled, (ROOT / file).read_text("utf-8")), file
    assert re.search(spelled, f'    "{name}>=1"')
