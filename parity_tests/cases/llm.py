"""Isolated cases of the language model, smallest parts first."""

from __future__ import annotations

import numpy as np

from parity_tests.harness.cases import case, normal

QWEN2 = dict(
    vocab_size=64,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
)
LM = dict(qwen2=QWEN2, speech_token_size=40, num_special_tokens=20)
HEAD = QWEN2["hidden_size"] // QWEN2["num_attention_heads"]


def half_split_angles(length: int, offset: int = 0, theta: float = 1e6) -> np.ndarray:
    """(length, d) angles as Qwen2 lays them out: channel j turns with channel j + d/2."""
    frequencies = 1.0 / theta ** (np.arange(0, HEAD, 2, dtype=np.float32) / HEAD)
    return np.tile(np.arange(offset, offset + length, dtype=np.float32)[:, None] * frequencies, 2).astype(np.float32)


CASES = (
    case("llm.rms_norm", "llm.qwen2.Qwen2RMSNorm", dict(hidden_size=24, eps=1e-6), x=normal(2, 7, 24)),
    case(
        "llm.rms_norm.small", "llm.qwen2.Qwen2RMSNorm", dict(hidden_size=24, eps=1e-6), x=normal(1, 3, 24, scale=1e-3)
    ),
    case("llm.rotary", "llm.qwen2.Qwen2RotaryEmbedding", dict(head_dim=16, theta=1e6), dict(offset=3, length=9)),
    case("llm.attention", "llm.qwen2.Qwen2Attention", QWEN2, x=normal(2, 9, 24), rope=half_split_angles(9)),
    case("llm.attention.one", "llm.qwen2.Qwen2Attention", QWEN2, x=normal(1, 1, 24), rope=half_split_angles(1, 5)),
    case("llm.mlp", "llm.qwen2.Qwen2MLP", QWEN2, x=normal(2, 7, 24)),
    case("llm.layer", "llm.qwen2.Qwen2DecoderLayer", QWEN2, x=normal(2, 9, 24), rope=half_split_angles(9)),
    case("llm.qwen2", "llm.qwen2.Qwen2Model", QWEN2, inputs_embeds=normal(2, 17, 24)),
    case("llm.scores", "llm.speech_lm.CosyVoice3LM.scores", LM, hidden=normal(1, 5, 24)),
)
