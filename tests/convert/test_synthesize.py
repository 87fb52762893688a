"""Synthetic checkpoints in the official layout: live weights, the same for the same seed."""

import pytest
import torch

from convert.checkpoint import read_state_dict
from reference.synthesize import RULES, main, state_dict
from reference.vocoder.generator import CausalHiFTGenerator
from tests.support.convert_support import CONFIG

pytestmark = pytest.mark.meta


@pytest.mark.parametrize("part", RULES)
def test_synthetic_weights_follow_the_seed_and_are_not_zero(part):
    state, again, other = (state_dict(part, CONFIG, seed) for seed in (5, 5, 6))
    for key, value in state.items():
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all(), key
        assert value.abs().median() > 1e-3, key
        assert torch.equal(value, again[key])
    assert sum(torch.equal(value, other[key]) for key, value in state.items()) <= 5  # constants of the pitch


def test_synthetic_pitch_and_level():
    """With any seed there are voiced and unvoiced frames, and few samples are clipped."""
    for seed in range(4):
        vocoder = CausalHiFTGenerator(CONFIG.vocoder)
        vocoder.load_state_dict(state_dict("hift", CONFIG, seed))
        mel = 1.5 * torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(seed))
        f0 = vocoder.f0_predictor(mel)
        threshold = CONFIG.vocoder.nsf_voiced_threshold
        assert 0.05 < (f0 < threshold).float().mean() < 0.95
        assert 100 < f0.max() < 1000
        wav, _ = vocoder.inference(mel)
        assert wav.square().mean().sqrt() > 0.003
        assert (wav.abs() >= CONFIG.vocoder.audio_limit).float().mean() < 0.02


def test_tied_head_shares_storage(official):
    state = torch.load(official / "llm.pt", weights_only=True)
    head, table = state["llm.model.lm_head.weight"], state["llm.model.model.embed_tokens.weight"]
    assert head.data_ptr() == table.data_ptr()
    assert read_state_dict(official / "llm.pt").shared == head.numel()


def test_synthesize_refuses_a_folder_in_use(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["--size", "tiny", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
