"""The language model: the cache, sampling, and generation against the reference."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parity.compare import compare
from mlx_parity.sides.orders_pytorch import in_other_orders
from mlx_parity.sides.truth import Reference, reference_state
from parity_tests.cases import case
from parity_tests.cases.llm import LM, QWEN2
from port.config import SamplingConfig
from port.llm import sampling as port_sampling
from reference.llm import sampling as reference_sampling

pytestmark = pytest.mark.part("llm.speech_lm.CosyVoice3LM")

QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def ids(rng: np.random.Generator, count: int, high: int) -> np.ndarray:
    return rng.integers(0, high, (1, count)).astype(np.int32)


def prompt(seed: int, speech: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    instruction = np.concatenate([ids(rng, 3, 40), [[LM["end_of_prompt"]]], ids(rng, 2, 40)], axis=1)
    return [ids(rng, 6, 40), instruction.astype(np.int32), ids(rng, speech, 40)]


def hidden(model, embeds: np.ndarray, splits: list[int]) -> np.ndarray:
    """Hidden states of one sequence, fed in pieces through the cache."""
    port = not isinstance(model, torch.nn.Module)
    cache, found, start = model.qwen2.make_cache(), [], 0
    for length in splits:
        piece = embeds[:, start : start + length]
        fed = mx.array(piece) if port else torch.from_numpy(piece).to(model.llm_decoder.weight.dtype)
        with torch.inference_mode():
            result = model.qwen2(fed, cache)
            found.append(np.array(result) if port else result.numpy())
        start += length
    return np.concatenate(found, axis=1)


@pytest.mark.part("llm.qwen2.Qwen2Model")
@pytest.mark.float32
@pytest.mark.parametrize("splits", [[23], [1] * 23, [9, 1, 1, 12], [22, 1]], ids=["whole", "ones", "mixed", "last"])
def test_qwen2_with_cache_equals_qwen2_without(parity, twins, splits):
    embeds = np.random.default_rng(8).standard_normal((1, 23, QWEN2["hidden_size"])).astype(np.float32)
    found, double = hidden(twins[2], embeds, splits), hidden(twins[1], embeds, [23])
    for cuts in ([23], splits):
        others = in_other_orders(partial(hidden, twins[0], embeds, cuts))
        assert compare(found, hidden(twins[0], embeds, cuts), double, further=others).status == "PASS"


@pytest.mark.part("llm.qwen2.Qwen2Model")
def test_qwen2_agrees_with_transformers():
    """A second check of the reference's own Qwen2; transformers 5 changes results, hence the pin."""
    transformers = pytest.importorskip("transformers", reason="transformers is an optional witness")
    if not transformers.__version__.startswith("4.51"):
        pytest.skip(f"transformers {transformers.__version__} is not the pinned 4.51.3")
    drawn = case("llm.witness", "llm.qwen2.Qwen2Model", QWEN2)
    state = reference_state(drawn)
    ours = Reference().build(drawn.part, QWEN2, state)
    theirs = transformers.Qwen2Model(transformers.Qwen2Config(**QWEN2, rope_theta=1e6, rms_norm_eps=1e-6))
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    embeds = torch.from_numpy(
        np.random.default_rng(9).standard_normal((2, 31, QWEN2["hidden_size"])).astype(np.float32)
    )
    with torch.inference_mode():
        mine, witness = ours(embeds), theirs(inputs_embeds=embeds).last_hidden_state
        truth = ours.double()(embeds.double())
    assert compare(mine.numpy(), witness.numpy(), truth.numpy()).status == "PASS"


@pytest.mark.float32
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strict", [False, True], ids=["as the original", "strict"])
def test_seeded_generation_gives_the_same_tokens(twins, seed, strict):
    single, _, port = twins
    texts = prompt(seed)
    expected = list(
        single.inference(
            *(torch.from_numpy(t) for t in texts), reference_sampling.SeededDraws(seed), strict_min_length=strict
        )
    )
    found = list(
        port.inference(*(mx.array(t) for t in texts), port_sampling.SeededDraws(seed), strict_min_length=strict)
    )
    assert found == expected
    if strict:
        assert len(found) >= 2 * texts[0].shape[1]


def test_no_other_draw_disturbs_a_seeded_generation(twins):
    texts = [mx.array(t) for t in prompt(5)]
    expected = list(twins[2].inference(*texts, port_sampling.SeededDraws(5)))
    found = []
    for token in twins[2].inference(*texts, port_sampling.SeededDraws(5)):
        mx.random.normal((3,))
        np.random.default_rng().normal()
        torch.randn(3)
        found.append(token)
    assert found == expected
    assert expected, "nothing was generated"


@pytest.mark.float32
def test_greedy_tokens_are_equal(twins):
    texts = prompt(11)
    found = list(twins[2].inference(*(mx.array(t) for t in texts), None, port_sampling.greedy_sampling))
    for model in twins[:2]:
        texts_ = [torch.from_numpy(t) for t in texts]
        assert found == list(model.inference(*texts_, None, reference_sampling.greedy_sampling))


@pytest.mark.part("llm.sampling")
@QUICK
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from((0.1, 1.0, 4.0)),
    size=st.sampled_from((3, 26, 297)),
    repeats=st.integers(0, 14),
)
def test_sampling_of_any_scores(seed, spread, size, repeats):
    """Both sides choose the same id from seeded draws; in some examples the history triggers the second draw."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(spread * rng.standard_normal(size)).float().log_softmax(0).numpy()
    likely = int(scores.argmax())
    history = [likely] * min(repeats, 1) + [int(i) for i in rng.integers(0, size, max(repeats - 1, 0))]
    config = SamplingConfig()
    mine, theirs = scores.copy(), torch.from_numpy(scores.copy())
    found = port_sampling.ras_sampling(mine, history, port_sampling.SeededDraws(seed), config)
    expected = reference_sampling.ras_sampling(theirs, history, reference_sampling.SeededDraws(seed), config)
    assert found == expected
    assert np.array_equal(np.isneginf(mine), np.isneginf(theirs.numpy()))


@pytest.mark.part("llm.sampling")
@pytest.mark.parametrize("size", [3, 25, 26, 300])
def test_nucleus_has_the_order_of_a_stable_sort(size):
    """With many ties, at the edge of the best 25 too, set and order are those of torch's stable sort."""
    rng = np.random.default_rng(size)
    for levels in (1, 2, 5, 40):
        scores = rng.integers(0, levels, size).astype(np.float32)
        found, ids = port_sampling.nucleus(scores, 2.0, 25)
        ordered, order = torch.from_numpy(scores).softmax(0).sort(descending=True, stable=True)
        assert ids.tolist() == order[: len(ids)].tolist()
        assert len(ids) == min(25, size)
        assert np.allclose(found, ordered[: len(ids)].numpy(), rtol=1e-6)


def test_the_minimum_length_masks_sos_as_the_original_does(twins):
    """The original means to mask the end but masks another id; `strict_min_length` masks the end."""
    single, _, port = twins
    config = port.config
    scores = np.full(config.num_speech_embeddings, -5.0, np.float32)
    scores[config.eos] = 0.0

    def take(row, *_):
        return int(row.argmax())

    assert port.sampling_ids(scores.copy(), [], None, take, True) == config.eos
    assert single.sampling_ids(torch.from_numpy(scores.copy()), [], None, take, True) == config.eos
    assert port.sampling_ids(scores.copy(), [], None, take, True, True) < config.speech_token_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t[0], t[1][:, :3], t[2]], "endofprompt"),
        (lambda t: [t[0] + 1000, t[1], t[2]], "text"),
        (lambda t: [t[0], t[1], t[2] + 1000], "speech"),
    ],
    ids=["no end of prompt", "text id outside", "speech id outside"],
)
def test_an_impossible_prompt_is_one_clear_error(twins, change, message):
    for model, tensor in ((twins[0], torch.from_numpy), (twins[2], mx.array)):
        with pytest.raises(ValueError, match=message):
            next(iter(model.inference(*(tensor(t) for t in change(prompt(1))), None)))
