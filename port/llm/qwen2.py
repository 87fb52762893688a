"""Qwen2 backbone of the language model, with a key-value cache.

b batch, L positions of this call, S positions with the cache, D hidden width, h heads, k key-value heads, d head width
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from ..config import Qwen2Config

Rope = tuple[mx.array, mx.array]
Mask = mx.array | str | None  # bool, which keys a query sees; "causal"; None for all


class Qwen2RMSNorm(nn.Module):
    """Root-mean-square norm. Source: `Qwen2RMSNorm` in transformers."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((hidden_size,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, L, D) -> (b, L, D)."""
        return mx.fast.rms_norm(x, self.weight, self.eps)


class Qwen2RotaryEmbedding(nn.Module):
    """Rotary tables. Source: `Qwen2RotaryEmbedding` in transformers (inverse frequencies in float32)."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        exponent = np.arange(0, head_dim, 2) / head_dim
        # Rounded twice, as torch does: the power, then its reciprocal. The underscore keeps it out of the weights.
        self._inv_freq = np.float32(1) / np.power(theta, exponent).astype(np.float32)
        self._tables = self._build(0)

    def __call__(self, offset: int | np.ndarray, length: int) -> Rope:
        """(cos, sin), each (length, d) float32, for positions from `offset` on; (b, 1, 1) gives each row its own."""
        tables, positions = self._tables, offset + np.arange(length)
        if (last := int(positions.max(initial=0))) >= len(tables[0]):
            # Local until complete, so that a second thread never sees half a table.
            self._tables = tables = self._build(2 * (last + 1))
        cos, sin = (table[mx.array(positions)] for table in tables)
        return cos, sin

    def _build(self, length: int) -> Rope:
        # Made on the host in float64: `mx.fast.rope` and float32 angles are off by 1e-4 at a few thousand positions.
        angles = np.tile(np.outer(np.arange(length), self._inv_freq.astype(np.float64)), 2)
        return mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32))


def apply_rotary_pos_emb(x: mx.array, rope: Rope) -> mx.array:
    """Rotate x (b, h, L, d): channel j turns with channel j + d/2. Source: `apply_rotary_pos_emb` in transformers."""
    cos, sin = rope
    first, second = mx.split(x, 2, axis=-1)
    return (x * cos + mx.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)


class KVCache:
    """Keys and values of one layer for the positions seen so far; `offset` counts them."""

    step = 256  # positions by which the buffers grow, so that a token costs no copy of what came before

    def __init__(self) -> None:
        self.keys: Any = None  # (b, k, at least S, d), from the first position on
        self.values: Any = None
        self.offset = 0

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, Mask]:
        """Append (b, k, L, d) keys and values; return all S of them, and the mask of the L queries."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self.keys = self._written(self.keys, keys, start)
        self.values = self._written(self.values, values, start)
        # "causal" lines the last query up with the last key, which is what positions behind a cache need.
        mask = "causal" if keys.shape[2] > 1 else None
        return self.keys[:, :, : self.offset], self.values[:, :, : self.offset], mask

    def _written(self, buffer: Any, new: mx.array, start: int) -> mx.array:
        size = 0 if buffer is None else buffer.shape[2]
        if self.offset > size:
            b, k, _, d = new.shape
            grown = -(-self.offset // self.step) * self.step
            room = mx.zeros((b, k, grown - start, d), new.dtype)
            buffer = room if buffer is None else mx.concatenate([buffer[:, :, :start], room], axis=2)
        buffer[:, :, start : self.offset] = new
        return buffer


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

    def __call__(self, x: mx.array, rope: Rope, cache: KVCache | None = None) -> mx.array:
        """x (b, L, D), rope tables of its L positions; the cache, if any, is extended in place. Returns (b, L, D)."""
        b, length, _ = x.shape
        q = self.q_proj(x).reshape(b, length, self.num_heads, self.head_dim).swapaxes(1, 2)
        k = self.k_proj(x).reshape(b, length, self.num_key_value_heads, self.head_dim).swapaxes(1, 2)
        v = self.v_proj(x).reshape(b, length, self.num_key_value_heads, self.head_dim).swapaxes(1, 2)
        q, k = apply_rotary_pos_emb(q, rope), apply_rotary_pos_emb(k, rope)
        mask: Mask = "causal"
        if cache is not None:
            k, v, mask = cache.update(k, v)
        y = self._attend(q, k, v, mask)
        return self.o_proj(y.swapaxes(1, 2).reshape(b, length, -1))

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: Mask) -> mx.array:
        # MLX's CPU rounds scores to the dtype that it gets.
        q, k, v = (t.astype(mx.float32) for t in (q, k, v))
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5, mask=mask)


class Qwen2MLP(nn.Module):
    """Gated SiLU feed-forward. Source: `Qwen2MLP` in transformers."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = nn.SiLU()

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, L, D) -> (b, L, D)."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Qwen2DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual. Source: `Qwen2DecoderLayer` in transformers."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        self.self_attn = Qwen2Attention(config)
        self.mlp = Qwen2MLP(config)
        self.input_layernorm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x: mx.array, rope: Rope, cache: KVCache | None = None) -> mx.array:
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
        self.layers = [Qwen2DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config.head_dim, config.rope_theta)

    def make_cache(self) -> list[KVCache]:
        """An empty cache, one entry a layer."""
        return [KVCache() for _ in self.layers]

    def __call__(self, inputs_embeds: mx.array, cache: list[KVCache] | None = None) -> mx.array:
        """Hidden states after the final norm.

        Args:
            inputs_embeds: (b, L, D), the positions that follow those in the cache.
            cache: from `make_cache`, extended in place; None runs the sequence on its own.

        Returns:
            (b, L, D) float32.
        """
        rope = self.rotary_emb(cache[0].offset if cache else 0, inputs_embeds.shape[1])
        x = inputs_embeds.astype(mx.float32)  # a sum over all layers, whatever their weights are
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, cache[i] if cache else None)
        return self.norm(x)
