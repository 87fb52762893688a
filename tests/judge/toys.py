"""A small model in both frameworks, with everything that `mlx_parity` treats specially."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
import torch.nn.functional as F

from mlx_parity.part import live_weights

WIDTH, HEADS, WORDS, FRAMES = 16, 2, 11, 9
Torch = TypeVar("Torch", bound=torch.nn.Module)


class Pair(NamedTuple):
    hidden: Any
    parts: list[Any]


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, past: int = 0) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        half = q.shape[-1] // 2
        angles = torch.arange(n).float()[:, None] * 10000.0 ** (-torch.arange(half).float() / half)
        cos, sin = angles.cos(), angles.sin()

        def turned(t: torch.Tensor) -> torch.Tensor:
            a, c = t[..., :half], t[..., half:]
            return torch.cat((a * cos - c * sin, c * cos + a * sin), -1)

        y = F.scaled_dot_product_attention(turned(q)[:, :, past:], turned(k), v)
        return self.out(y.transpose(1, 2).flatten(2))


class TorchToy(torch.nn.Module):
    """Tokens (b, n) -> hidden states (b, n, WIDTH) and two further results."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(WORDS, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.rms = torch.nn.RMSNorm(WIDTH, eps=1e-5)
        self.attention = TorchAttention()
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.act = torch.nn.GELU()
        self.conv = torch.nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.gate = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, ids: torch.Tensor) -> Pair:
        x = self.embed(ids)
        x = x + self.attention(self.norm(x))
        x = x + self.attention(self.rms(x), past=3).mean(1, keepdim=True)
        x = x + self.act(self.first(x))
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = x + F.mish(F.silu(self.gate(y)))
        x = x + F.gelu(x, approximate="tanh")
        return Pair(x, [torch.softmax(x.float(), -1), ids])


class MlxAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.rope = nn.RoPE(WIDTH // HEADS, traditional=False)

    def __call__(self, x: mx.array, past: int = 0) -> mx.array:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
        scale = 1 / math.sqrt(q.shape[-1])
        y = mx.fast.scaled_dot_product_attention(self.rope(q)[:, :, past:], self.rope(k), v, scale=scale)
        return self.out(y.transpose(0, 2, 1, 3).reshape(b, n - past, -1))


class MlxToy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.rms = nn.RMSNorm(WIDTH, eps=1e-5)
        self.attention = MlxAttention()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.gate = nn.Linear(WIDTH, WIDTH, bias=False)

    def __call__(self, ids: mx.array) -> dict[str, Any]:
        x = self.embed(ids)
        x = x + self.attention(self.norm(x))
        x = x + self.attention(self.rms(x), past=3).mean(1, keepdims=True)
        x = x + nn.gelu(self.first(x))
        y = self.conv(x)
        x = x + nn.mish(nn.silu(self.gate(y)))
        x = x + nn.gelu_approx(x)
        return {"hidden": x, "parts": [mx.softmax(x, axis=-1), ids]}


def alive(model: Torch, seed: int = 0) -> Torch:
    """The model with random weights that all affect its results."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    live = live_weights(state, np.random.default_rng(seed))
    model.load_state_dict({key: torch.from_numpy(value) for key, value in live.items()})
    return model


def toys() -> tuple[TorchToy, MlxToy]:
    """Both sides with the same weights."""
    reference, port = alive(TorchToy()), MlxToy()
    port.load_weights([(k, mx.array(_layout(k, v.numpy()))) for k, v in reference.state_dict().items()])
    return reference, port


def _layout(key: str, value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, 1, -1) if key == "conv.weight" else value


def ids(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, WORDS, (2, FRAMES))
