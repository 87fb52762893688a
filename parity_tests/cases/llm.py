"""Isolated cases of the language model, smallest parts first."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_parity.case import normal, tokens
from parity_tests.cases import case, cases_of

QWEN2 = dict(vocab_size=64, hidden_size=24, intermediate_size=40)
QWEN2 |= dict(num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2)
LM: dict[str, Any] = dict(qwen2=QWEN2, speech_token_size=40, num_special_tokens=20, end_of_prompt=50)
HEAD = QWEN2["hidden_size"] // QWEN2["num_attention_heads"]

ALONE = dict.fromkeys(("q_proj.*", "k_proj.*", "rope"), "a single position attends to itself, whatever its score is")
FED = {"embed_tokens.weight": "the case feeds embeddings"}
HEAD_ONLY = dict.fromkeys(("llm.*", "speech_embedding.weight"), "only the head is called")
TABLES_ONLY = dict.fromkeys(
    ("llm.model.model.layers.*", "llm.model.model.norm.weight", "llm_decoder.weight"), "only the two tables are read"
)


def half_split_angles(length: int, offset: int = 0, theta: float = 1e6) -> np.ndarray:
    """(length, d) angles as Qwen2 lays them out: channel j turns with channel j + d/2."""
    frequencies = 1.0 / theta ** (np.arange(0, HEAD, 2, dtype=np.float32) / HEAD)
    return np.tile(np.arange(offset, offset + length, dtype=np.float32)[:, None] * frequencies, 2).astype(np.float32)


layer = cases_of("llm", "llm.qwen2")
NORM = dict(hidden_size=24, eps=1e-6)
TEXTS: dict[str, Any] = dict(text=tokens(1, 9, high=50), prompt_text=np.array([[7, 50, 3, 61]], np.int32))
SPOKEN = {"prompt": np.array([[5, 42, 0, 39]], np.int32), "no_prompt": np.zeros((1, 0), np.int32)}
CASES = (
    layer("rms_norm", "Qwen2RMSNorm", NORM, x=normal(2, 7, 24)),
    layer("rms_norm.small", "Qwen2RMSNorm", NORM, x=normal(1, 3, 24, scale=1e-3)),
    layer("rotary", "Qwen2RotaryEmbedding", dict(head_dim=16, theta=1e6), dict(offset=3, length=9)),
    layer("attention", "Qwen2Attention", QWEN2, x=normal(2, 9, 24), rope=half_split_angles(9)),
    layer("attention.one", "Qwen2Attention", QWEN2, x=normal(1, 1, 24), rope=half_split_angles(1, 5), dead=ALONE),
    layer("mlp", "Qwen2MLP", QWEN2, x=normal(2, 7, 24)),
    layer("layer", "Qwen2DecoderLayer", QWEN2, x=normal(2, 9, 24), rope=half_split_angles(9)),
    layer("qwen2", "Qwen2Model", QWEN2, dead=FED, inputs_embeds=normal(2, 17, 24)),
    *(
        case(
            f"llm.prepare_input.{name}",
            "llm.speech_lm.CosyVoice3LM.prepare_input",
            LM,
            **dict(TEXTS, dead=TABLES_ONLY, prompt_speech_token=speech),
        )
        for name, speech in SPOKEN.items()
    ),
    case("llm.scores", "llm.speech_lm.CosyVoice3LM.scores", LM, dead=HEAD_ONLY, hidden=normal(1, 5, 24)),
)
