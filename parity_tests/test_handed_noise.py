"""Each part gets the original's fixed noise: at any second, whole and streamed.

The witness is torch's generator, which draws what the original's constructors draw. To cover five minutes of speech the
networks are replaced: with a velocity of zero the mel is the noise that it started from.
"""

import hashlib

import mlx.core as mx
import numpy as np
import pytest
import torch

from parity_tests.driver_support import watched
from parity_tests.speech_support import small_models
from parity_tests.test_noise import SINE_WAVES, ulps
from port import noise
from port.flow.matching import CausalConditionalCFM
from port.request import Prompt, Stream
from port.stream.flow import StreamingFlow
from port.stream.state import StepState
from port.stream.vocoder import StreamingVocoder
from port.vocoder.f0 import CausalConvRNNF0Predictor
from port.vocoder.generator import CausalHiFTGenerator
from port.vocoder.source import SourceModuleHnNSF

HOP, FRAMES, HARMONICS = 480, 15000, 9
PROMPT = 40  # tokens
TOKENS = FRAMES // 2 - PROMPT
# The original draws these between the two noises: embedding 6561 x 80, speaker layer 192 -> 80, pitch predictor.
BETWEEN = 524_880 + 15_440 + (512 * 80 * 4 + 512) + 4 * (512 * 512 * 3 + 512) + 513
CUTS = (3, 47, 50, 100, 1, 700, 2048)  # frames of a stream's pieces, repeated


@pytest.fixture(scope="module")
def original():
    """Noise of the flow (1, 80, 15000) and of the source (7200000, 9), drawn by torch."""
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(1, 80, FRAMES, generator=generator).numpy()
    torch.rand(BETWEEN + HARMONICS, generator=generator)
    return flow, torch.rand(FRAMES * HOP, HARMONICS, generator=generator).numpy()


@pytest.fixture
def model():
    return small_models()[1]


@pytest.fixture
def still(monkeypatch):
    """A flow with a velocity of zero, so that the mel is the noise."""
    zeros = lambda self, x, *_, **__: (mx.zeros_like(x),) * 3  # noqa: E731
    monkeypatch.setattr(CausalConditionalCFM, "velocity", zeros)
    monkeypatch.setattr(StepState, "copy", lambda self, *_: self)  # nothing is computed, so nothing is kept


@pytest.fixture
def heard(monkeypatch):
    """The pieces of noise that the source gets, (L, 9) each; the networks around it are replaced."""
    pieces = []

    def source(self, f0, sine_waves, state=None):
        pieces.append(np.array(sine_waves[0, : f0.shape[1] * HOP]))
        assert len(pieces[-1]) == f0.shape[1] * HOP
        return mx.zeros((1, f0.shape[1] * HOP, 1)), None

    def pitch(self, x, finalize=True, state=None):
        return mx.zeros((1, x.shape[1] if finalize else x.shape[1] - self.look_right))

    def unfiltered(self, frames, finalize):
        self._mel, self._excitation = self._mel[:, frames:], self._excitation[:, frames * HOP :]

    monkeypatch.setattr(SourceModuleHnNSF, "__call__", source)
    monkeypatch.setattr(CausalConvRNNF0Predictor, "__call__", pitch)
    monkeypatch.setattr(StreamingVocoder, "_filter", unfiltered)
    monkeypatch.setattr(
        CausalHiFTGenerator, "decode", lambda self, x, s, finalize=True: mx.zeros((1, x.shape[1] * HOP))
    )
    return pieces


def is_the_originals(found, truth, start=0):
    """Check that frames (1, n, 80) are the original's noise from `start` on, within 3 ulp (torch's own uncertainty)."""
    expected = truth[:, :, start : start + found.shape[1]].swapaxes(1, 2)
    assert found.shape == expected.shape
    assert not found.size or ulps(np.array(found), expected) <= 3


def cuts(whole):
    """Ends of pieces of the lengths `CUTS`, the last at `whole`."""
    ends, i = list[int](), 0
    while not ends or ends[-1] < whole:
        ends.append(min((ends[-1] if ends else 0) + CUTS[i % len(CUTS)], whole))
        i += 1
    return ends


def voice():
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 81, (1, PROMPT)).astype(np.int32),
        mx.array(rng.standard_normal((1, 2 * PROMPT, 80)).astype(np.float32)),
        mx.ones((1, 8)),
    )


@pytest.mark.part("noise")
def test_any_window_is_the_originals_in_any_order(original, monkeypatch):
    flow, source = original
    assert hashlib.sha256(source.astype("<f4").tobytes()).hexdigest() == SINE_WAVES, "the witness is not the original"
    monkeypatch.setattr(noise, "_FIXED", noise._FixedNoise())
    rng = np.random.default_rng(1)
    for start in [*rng.integers(0, 7_000_000, 12), 0, 7_000_000]:
        count = int(rng.integers(1, 200_000))
        assert np.array_equal(noise.sine_waves(count, int(start)), source[start : start + count])
    for frames in rng.integers(1, FRAMES, 5):
        is_the_originals(noise.rand_noise(int(frames)).swapaxes(1, 2), flow)


@pytest.mark.part("flow.decoder.CausalMaskedDiffWithDiT.inference")
def test_a_whole_flow_starts_from_the_originals_noise(original, model, still):
    prompt_token, prompt_feat, embedding = voice()
    token = np.full((1, TOKENS), 33, np.int32)
    is_the_originals(model.flow.inference(token, prompt_token, prompt_feat, embedding), original[0], 2 * PROMPT)


@pytest.mark.part("stream.flow.StreamingFlow")
def test_a_streamed_flow_starts_from_the_originals_noise(original, model, still):
    token, stream, given = np.full((1, TOKENS), 33, np.int32), StreamingFlow(model.flow, *voice()), 2 * PROMPT
    for have in cuts(TOKENS):
        piece = stream.push(token[:, :have], finalize=have == TOKENS)
        is_the_originals(piece, original[0], given)
        given += piece.shape[1]
    assert given == FRAMES


@pytest.mark.part("vocoder.generator.CausalHiFTGenerator.inference")
def test_a_whole_vocoder_hears_the_originals_noise(original, model, heard):
    model.vocoder.inference(mx.zeros((1, FRAMES, 80)))
    assert np.array_equal(np.concatenate(heard), original[1])


@pytest.mark.part("stream.vocoder.StreamingVocoder")
def test_a_streamed_vocoder_hears_the_originals_noise(original, model, heard):
    stream, mel, start = StreamingVocoder(model.vocoder), mx.zeros((1, FRAMES, 80)), 0
    for end in cuts(FRAMES):
        stream.push(mel[:, start:end], finalize=end == FRAMES)
        start = end
    assert np.array_equal(np.concatenate(heard), original[1])


@pytest.mark.part("model.CosyVoice3Model")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_request_passes_the_originals_noise_on(original, model, still, heard, stream):
    """Three minutes through the driver; the vocoder's noise begins with the first spoken frame."""
    prompt_token, prompt_feat, embedding = voice()
    prompt = Prompt(embedding, flow_prompt_speech_token=prompt_token, prompt_speech_feat=prompt_feat)
    tokens = mx.array(np.full((1, 4500), 33, np.int32))
    with watched(model) as calls:
        list(model.tts(prompt, source_speech_token=tokens, stream=Stream(causal_final=True) if stream else None))
    assert (len(calls) > 20) is stream
    is_the_originals(calls[-1][1].mel, original[0], 2 * PROMPT)
    assert np.array_equal(np.concatenate(heard), original[1][: 9000 * HOP])
