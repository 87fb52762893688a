"""A server for the tests of a file, with one voice, on the embedded checkpoint."""

import pytest

from parity_tests.speech_support import PROMPT_WORDS
from port.app.server.settings import Settings
from port.cosyvoice3 import CosyVoice3
from tests.support.server_support import VOICE, serving


@pytest.fixture(scope="module")
def served_voice(model, wavs):
    """The server's voice; tests also call it directly, for the samples that they expect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("port.cosyvoice3.load_normalizer", lambda: None)
        voice = CosyVoice3.from_pretrained(model)
    voice.add_zero_shot_spk(PROMPT_WORDS, wavs["prompt"], VOICE)
    voice.save_spkinfo()
    return voice


@pytest.fixture(scope="module")
def running(served_voice):
    with serving(served_voice, Settings()) as running:
        yield running
