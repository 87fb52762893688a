"""Inputs beyond the isolated cases, each asked for by a fault of the catalogue that nothing else could see."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from parity_tests.cases.llm import QWEN2
from parity_tests.harness.cases import case
from parity_tests.harness.compare import compare
from parity_tests.harness.oracle import reference_state
from parity_tests.harness.targets import TARGETS
from port.config import Qwen2Config
from port.frontend.tokenizer import BYTE_ALPHABET, CosyVoice3Tokenizer
from port.llm.qwen2 import KVCache
from port.llm.sampling import RecordedDraws, nucleus_sampling
from reference.llm import sampling as reference_sampling
from reference.llm.qwen2 import Qwen2Model


def test_a_cache_that_grows_keeps_what_it_held(parity):
    """The buffers of keys and values are enlarged every 256 positions; short inputs never come there."""
    target = TARGETS["llm.qwen2.Qwen2Model"]
    state = reference_state(case("llm.built.long", target.path, QWEN2))
    port, length = parity.adapter.build(target, QWEN2, state), KVCache.step + 9
    embeds = np.random.default_rng(12).standard_normal((1, length, QWEN2["hidden_size"])).astype(np.float32)
    truths = []
    for dtype in (torch.float32, torch.float64):
        model = Qwen2Model(Qwen2Config(**QWEN2))
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
        with torch.inference_mode():
            truths.append(model.to(dtype).eval()(torch.from_numpy(embeds).to(dtype)).numpy())
    cache, found, start = port.make_cache(), [], 0
    for size in (KVCache.step - 3, 2, 4, 1, 5):
        found.append(np.array(port(mx.array(embeds[:, start : start + size]), cache)))
        start += size
    reading = compare(np.concatenate(found, axis=1), *truths)
    assert start == length and reading.status == "PASS", reading.message


@pytest.mark.parametrize("equal", [2, 6, 40])
def test_equal_scores_are_taken_in_order_of_their_ids(equal):
    """Both sides sort stably, so that ties at the edge of the nucleus are settled alike."""
    scores = np.log(np.r_[np.full(equal, 0.9 / equal), np.full(30, 0.1 / 30)]).astype(np.float32)[::-1].copy()
    draws = np.random.default_rng(equal).exponential(size=(20, 25)).astype(np.float32)
    found = [nucleus_sampling(scores, RecordedDraws([row])) for row in draws]
    recorded = [reference_sampling.RecordedDraws([row]) for row in draws]
    assert found == [reference_sampling.nucleus_sampling(torch.from_numpy(scores), draw) for draw in recorded]


def test_digits_are_tokens_of_their_own_whatever_the_merges_say():
    """Qwen2 splits numbers into digits before it merges; newer tokenizers of the family take them by threes."""
    symbols = sorted(BYTE_ALPHABET)
    vocab = {token: i for i, token in enumerate([*symbols, "12", "ab"])}
    tokenizer = CosyVoice3Tokenizer(vocab, [("1", "2"), ("a", "b")])
    assert tokenizer.encode("12ab") == [vocab["1"], vocab["2"], vocab["ab"]]
