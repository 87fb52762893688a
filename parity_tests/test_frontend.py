"""The front end's isolated cases; test_frontend_audio.py and test_onnx.py hold its properties and third witnesses."""

import pytest

from parity_tests.cases.frontend import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity(parity, case):
    parity.check(case)
