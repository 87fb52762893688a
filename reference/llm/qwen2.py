"""Qwen2 backbone of the language model, with a key-value cache.

b batch, L positions of this call, S positions with the cache, D hidden width, h heads, k key-value heads, d head width
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from port.config import Qwen2Config

Rope = tuple[torch.Tensor, torch.Tensor]


class Qwen2RMSNorm(nn.Module):
    """Root-mean-square norm. Source: `Qwen2RMSNorm` in transformers.

    transformers rounds to float32 here whatever the model's dtype; this one stays in the dtype of `x`, which is the
    same in float32 and exact in float64.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (b, L, D) -> (b, L, D)."""
        return self.weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps))


class Qwen2RotaryEmbedding(nn.Module):
    """Rotary tables. Source: `Qwen2RotaryEmbedding` in transformers (inverse frequencies in float32)."""

    inv_freq: torch.Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", 1.0 / theta**exponent, persistent=False)

    def forward(self, offset: int, length: int) -> Rope:
        """(cos, sin), each (length, d), for positions from `offset` on, in the dtype of the module."""
        positions = torch.arange(offset, offset + length, dtype=self.inv_freq.dtype, device=self.inv_freq.device)
        angles = torch.outer(positions, self.inv_freq).repeat(1, 2)
        return angles.cos(), angles.sin()


def apply_rotary_pos_emb(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotate x (b, h, L, d): channel j turns with channel j + d/2. Source: `apply_rotary_pos_emb` in transformers."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class KVCache:
    """Keys and values of one layer for the positions seen so far; `offset` counts them."""

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.offset = 0

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (b, k, L, d) keys and values; return all S of them."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
        self.keys, self.values, self.offset = keys, values, keys.shape[2]
        return keys, values


class Qwen2Attention(nn.Module):
    """Causal attention with grouped key-value heads. Source: `Qwen2Attention` in transformers."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width, kv_width = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width)
        self.k_proj = nn.Linear(config.hidden_size, kv_width)
        self.v_proj = nn.Linear(config.hidden_size, kv_width)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, rope: Rope, cache: KVCache | None = None) -> torch.Tensor:
        """x (b, L, D), rope tables of its L positions; the cache, if any, is extended in place. Returns (b, L, D)."""
        b, length, _ = x.shape
        q = self.q_proj(x).view(b, length, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, length, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, length, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, rope), apply_rotary_pos_emb(k, rope)
        if cache is not None:
            k, v = cache.update(k, v)
        group = self.num_heads // self.num_key_value_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5  # (b, h, L, S)
        total = k.shape[2]
        future = torch.ones(length, total, dtype=torch.bool, device=x.device).triu(total - length + 1)
        y = scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ v
        return self.o_proj(y.transpose(1, 2).reshape(b, length, -1))


class Qwen2MLP(nn.Module):
    """Gated SiLU feed-forward. Source: `Qwen2MLP` in transformers."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (b, L, D) -> (b, L, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Qwen2DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual. Source: `Qwen2DecoderLayer` in transformers."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.self_attn = Qwen2Attention(config)
        self.mlp = Qwen2MLP(config)
        self.input_layernorm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, rope: Rope, cache: KVCache | None = None) -> torch.Tensor:
        """x (b, L, D) -> (b, L, D)."""
        x = x + self.self_attn(self.input_layernorm(x), rope, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2Model(nn.Module):
    """Token embedding, decoder layers and final norm. Source: `Qwen2Model` in transformers 4.51.3.

    Args:
        config: sizes; the defaults are Qwen2-0.5B.
    """

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Qwen2DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config.head_dim, config.rope_theta)

    def make_cache(self) -> list[KVCache]:
        """An empty cache, one entry a layer."""
        return [KVCache() for _ in self.layers]

    def forward(self, inputs_embeds: torch.Tensor, cache: list[KVCache] | None = None) -> torch.Tensor:
        """Hidden states after the final norm.

        Args:
            inputs_embeds: (b, L, D), the positions that follow those in the cache.
            cache: from `make_cache`, extended in place; None runs the sequence on its own.

        Returns:
            (b, L, D).
        """
        rope = self.rotary_emb(cache[0].offset if cache else 0, inputs_embeds.shape[1])
        x = inputs_embeds
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, cache[i] if cache else None)
        return self.norm(x)
