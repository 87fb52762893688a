"""Faults of this repository's port: the tables, and what the judge must know to try them."""

from pathlib import Path

from mlx_parity.faults.patch import Fault
from mlx_parity.faults.table import read_tables
from parity_tests.faults.parts import part_of

PACKAGES = ("port", "convert")  # that faults are planted in
TESTS = ("parity_tests", "tests")  # folders of tests that are tried
TABLES = tuple(sorted(Path(__file__).parent.glob("*.txt")))


def catalogue() -> tuple[Fault, ...]:
    """All faults, by table."""
    return read_tables(TABLES, part_of)
