"""Both sides ready to speak, shared by the test files that make speech."""

import pytest

from parity_tests.speech_support import sides, write_voice


@pytest.fixture(scope="session")
def voices(parity):
    return sides(parity.models)


@pytest.fixture(params=["port", "single"], ids=["port", "reference"])
def voice(request, voices):
    """One side, without the voices that another test added."""
    chosen = getattr(voices, request.param)
    chosen.frontend.spk2info.clear()
    chosen.model.token_hop_len = chosen.model.config.streaming.token_hop_len
    return chosen


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """A prompt whose frames do not fit its tokens (110 mel frames at 16 kHz, 27 tokens and a half), and a source."""
    folder = tmp_path_factory.mktemp("recordings")
    return write_voice(folder / "prompt.wav", 1.1, 22050), write_voice(folder / "source.wav", 2.6, 16000, 190)
