"""What several test files share: both sides ready to speak, small models, a checkpoint, a hub on this machine."""

import pytest
import torch

from mlx_parity.sides.truth import Reference, reference_state
from parity_tests.cases import case
from parity_tests.cases.llm import LM
from parity_tests.driver_support import SIDES, Speaker
from parity_tests.parts import PARTS
from parity_tests.speech_support import copy_folder, sides, small_models, write_voice
from parity_tests.stream_support import small_flow
from reference.synthesize import synthesize


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


@pytest.fixture(scope="session")
def models():
    """Both sides of a model that is just enough for the driver."""
    return dict(zip(SIDES, small_models(), strict=True))


@pytest.fixture(params=SIDES)
def speaker(request, models):
    """The driver of one side, as a fresh object has it."""
    return Speaker(request.param, models[request.param])


@pytest.fixture(scope="session")
def twins(parity):
    """One small language model on three sides: reference in float32 and float64, port."""
    part = PARTS["llm.speech_lm.CosyVoice3LM.scores"]
    state = reference_state(case("llm.built", part.path, LM))
    sides = Reference(), Reference(torch.float64), parity.adapter
    return tuple(side.build(part, LM, state) for side in sides)


@pytest.fixture(scope="session")
def flow():
    """The small flow decoder, for tests that leave its weights alone."""
    return small_flow()


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """A small checkpoint in the official layout, not to be changed."""
    folder = tmp_path_factory.mktemp("official") / "tiny"
    synthesize(folder, "tiny", seed=3)
    return folder


@pytest.fixture(scope="module")
def model(parity, tmp_path_factory):
    """A converted folder for the tests of a file to write into."""
    return copy_folder(parity.models, tmp_path_factory.mktemp("folder") / "model")
