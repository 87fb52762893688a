"""Inputs beyond the isolated cases; for each there is a fault in the catalogue that no other test catches."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.sides.truth import against, reference_state, run_reference
from parity_tests.cases import case
from parity_tests.cases.llm import LM, QWEN2
from parity_tests.cases.vocoder import SINE
from parity_tests.parts import PARTS
from parity_tests.speech_support import small_models
from port.flow.layers import RotaryEmbedding, sinus_frequencies
from port.frontend.tokenizer import BYTE_ALPHABET, CosyVoice3Tokenizer
from port.llm.qwen2 import KVCache, Qwen2RotaryEmbedding
from port.llm.sampling import RecordedDraws, nucleus, nucleus_sampling
from port.request import Prompt, Stream
from port.vocoder.source import SineGen2 as PortSines
from reference.llm import sampling as reference_sampling
from reference.vocoder.source import SineGen2 as ReferenceSines


@pytest.mark.part("llm.qwen2.Qwen2Model")
@pytest.mark.float32
def test_a_growing_cache_keeps_its_content(parity):
    """The buffers of keys and values grow every 256 positions, which short inputs never reach."""
    part = PARTS["llm.qwen2.Qwen2Model"]
    state = reference_state(case("llm.built.long", part.path, QWEN2))
    port, length = parity.adapter.build(part, QWEN2, state), KVCache.step + 9
    embeds = np.random.default_rng(12).standard_normal((1, length, QWEN2["hidden_size"])).astype(np.float32)

    def reference(dtype):
        return run_reference(part, QWEN2, state, {"inputs_embeds": embeds}, {}, dtype)["hidden"]

    cache, found, start = port.make_cache(), [], 0
    for size in (KVCache.step - 3, 2, 4, 1, 5):
        found.append(np.array(port(mx.array(embeds[:, start : start + size]), cache)))
        start += size
    reading = against(np.concatenate(found, axis=1), reference)
    assert start == length and reading.status == "PASS", reading.message


@pytest.mark.part("flow.layers.RotaryEmbedding")
@pytest.mark.parametrize("offset", [0, 1, 50, 250])
def test_flow_positions_continue_from_an_offset(offset):
    """Any first position would do, but all calls must share it: a stream attends to keys of earlier calls."""
    whole, part = RotaryEmbedding(16)(offset + 7), RotaryEmbedding(16)(7, offset)
    assert np.array_equal(part, whole[:, offset:])


@pytest.mark.part("llm.qwen2.Qwen2RotaryEmbedding")
@pytest.mark.parametrize("offset", [0, 1, 50, 250])
def test_llm_positions_continue_from_an_offset(offset):
    whole, part = (Qwen2RotaryEmbedding(16, 1e6)(*span) for span in ((0, offset + 7), (offset, 7)))
    assert all(np.array_equal(np.array(p), np.array(w)[offset:]) for p, w in zip(part, whole, strict=True))


@pytest.mark.part("llm.sampling")
@pytest.mark.parametrize("equal", [2, 6, 40])
def test_equal_scores_are_taken_in_order_of_their_ids(equal):
    """Both sides sort stably, so ties at the edge of the nucleus have the same outcome."""
    scores = np.log(np.r_[np.full(equal, 0.9 / equal), np.full(30, 0.1 / 30)]).astype(np.float32)[::-1].copy()
    draws = np.random.default_rng(equal).exponential(size=(20, 25)).astype(np.float32)
    found = [nucleus_sampling(scores, RecordedDraws([row])) for row in draws]
    recorded = [reference_sampling.RecordedDraws([row]) for row in draws]
    assert found == [reference_sampling.nucleus_sampling(torch.from_numpy(scores), draw) for draw in recorded]


@pytest.mark.part("llm.sampling")
def test_the_nucleus_is_summed_in_float32():
    """If the sum is within a rounding of top_p, a float64 sum may keep one token more or fewer."""
    rng, differ = np.random.default_rng(3), 0
    for _ in range(300):
        likely = 0.2 + rng.uniform(-1e-7, 1e-7, 4)
        scores = np.log(np.r_[likely, np.full(8, (1 - likely.sum()) / 8)]).astype(np.float32)
        kept, (whole, _) = len(nucleus(scores, 0.8, 25)[0]), nucleus(scores, 2.0, 25)
        total, expected = np.float32(0), 0
        while expected == 0 or total < np.float32(0.8):
            total, expected = total + whole[expected], expected + 1
        assert kept == expected
        differ += kept != 1 + np.count_nonzero(np.cumsum(whole, dtype=np.float64)[:-1] < np.float32(0.8))
    assert differ, "no draw was close enough to the edge"


@pytest.mark.part("llm.speech_lm.CosyVoice3LM")
@pytest.mark.parametrize("strict", [False, True], ids=["as the original", "strict"])
def test_speech_that_does_not_end_is_cut_at_the_maximum_length(twins, strict):
    """Twenty speech tokens per text token; the prompt text does not count."""
    reference, _, port = twins
    texts = [np.array(ids, np.int32) for ids in ([[3, 4]], [[7, 50, 9]], [[1]])]

    def endless(scores, *_):
        return int(scores[: LM["speech_token_size"]].argmax())

    found = list(port.inference(*(mx.array(t) for t in texts), None, endless, strict))
    with torch.inference_mode():
        expected = list(reference.inference(*(torch.from_numpy(t) for t in texts), None, endless, strict))
    assert found == expected
    assert len(found) == 40


@pytest.mark.part("vocoder.source.SineGen2")
@pytest.mark.parametrize("pitch", [400.0, 2700.0, 9000.0, 30000.0], ids=str)
def test_phases_of_any_pitch_round_like_the_original(pitch):
    """Above 2667 Hz the ninth harmonic turns more than once per sample, and the original drops whole turns."""
    f0 = np.random.default_rng(5).uniform(0.9 * pitch, pitch, (1, 150)).astype(np.float32)
    waves = np.zeros((1, 150 * 480, 9), np.float32)
    reference, _ = ReferenceSines(**SINE)(torch.from_numpy(f0.repeat(480, axis=1)[..., None]), torch.from_numpy(waves))
    port, _ = PortSines(**SINE)(mx.array(f0), mx.array(waves))
    assert np.abs(np.array(port) - reference.numpy()).max() < 2e-7


@pytest.mark.part("flow.layers.SinusPositionEmbedding")
@pytest.mark.parametrize("dim", [32, 64, 256])
def test_time_frequencies_are_made_in_float32(dim):
    """The exponent is rounded first, which shows at 1000 rad. Machines may differ by one unit of exp."""
    step = torch.tensor(-np.log(10000) / (dim // 2 - 1), dtype=torch.float32)
    expected = torch.exp(torch.arange(dim // 2).float() * step).numpy()
    assert (np.abs(sinus_frequencies(dim) - expected) <= np.spacing(expected)).all()


@pytest.mark.part("model.CosyVoice3Model")
def test_a_request_that_resets_the_hop_does_not_change_the_object():
    """The object's hop is still the shortest, so a change would show."""
    sides: Any = zip(small_models(), (torch.from_numpy, mx.array), strict=True)
    for model, tensor in sides:
        prompt, token = Prompt(tensor(np.ones((1, 8), np.float32))), tensor(np.full((1, 60), 33, np.int32))
        chunks = list(model.tts(prompt, source_speech_token=token, stream=Stream(reset_hop=True)))
        assert len(chunks) > 1
        assert model.token_hop_len == 25


@pytest.mark.part("frontend.tokenizer")
def test_digits_are_single_tokens_whatever_the_merges_say():
    """Qwen2 splits numbers into digits before merging; newer tokenizers of the family use groups of three."""
    symbols = sorted(BYTE_ALPHABET)
    vocab = {token: i for i, token in enumerate([*symbols, "12", "ab"])}
    tokenizer = CosyVoice3Tokenizer(vocab, [("1", "2"), ("a", "b")])
    assert tokenizer.encode("12ab") == [vocab["1"], vocab["2"], vocab["ab"]]
