"""Faults of this repository's port: the tables, the packages they change, and the folders of tests."""

from pathlib import Path

from mlx_parity.faults.patch import Fault
from mlx_parity.faults.table import read_tables
from parity_tests.faults.parts import part_of

PACKAGES = ("port", "convert")  # where faults are planted
TESTS = ("parity_tests", "tests")  # folders of the tests that run
TABLES = tuple(sorted(Path(__file__).parent.glob("*.txt")))


def catalogue() -> tuple[Fault, ...]:
    """All faults, by table."""
    return read_tables(TABLES, part_of)
