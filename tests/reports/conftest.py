"""What the tests of the report share."""

import pytest

from mlx_parity.report.codec import plain
from tests.support.synthetic_report import every_section, make


@pytest.fixture(scope="module")
def valid():
    """A whole report as JSON."""
    return plain(make(**every_section()))
