"""What several tests of the ONNX files share."""

import pytest

from tests.support.onnx_support import write_files


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory):
    """A folder of tiny ONNX files; see `write_files`."""
    return write_files(tmp_path_factory.mktemp("onnx"))
