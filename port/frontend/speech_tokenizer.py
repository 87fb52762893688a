"""S3TokenizerV3: Whisper log-mel in, speech tokens at 25 Hz out.

b batch, T mel frames, n tokens (about T / 4), C mel bins, D width, h heads, d head width, f FSQ digits

The graph of speech_tokenizer_v3.onnx; the same model in PyTorch is `S3TokenizerV3` of the s3tokenizer package (0.3.0).
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import SpeechTokenizerConfig

MAX_POSITIONS = 2048  # rows of the rotary tables stored in the graph: 81 s of audio
FSQ_LEVELS = 3
FSQ_BOUND = 0.9990000128746033  # keeps the largest digit strictly inside the outer rounding interval
MASK_BIAS = -1e10

Rope = tuple[mx.array, mx.array]


def rotary_tables(positions: int, dim: int, theta: float) -> Rope:
    """Tables of `precompute_freqs_cis` in s3tokenizer/model_v2.py, which the graph stores as constants.

    Returns:
        cos and sin, each (positions, dim) float32, the second half of the columns equal to the first.
    """
    # Frequencies and angles are float32 in the original; on the host, since a GPU's sine is poor at large angles.
    freqs = np.float32(1.0) / (theta ** (np.arange(0, dim, 2) / dim)).astype(np.float32)
    angles = np.tile(np.arange(positions, dtype=np.float32)[:, None] * freqs, (1, 2)).astype(np.float64)
    return mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32))


def apply_rotary_emb(x: mx.array, rope: Rope) -> mx.array:
    """Rotate x (b, n, h, d): channel j turns with channel j + d/2. Source: `apply_rotary_emb` in model_v2.py."""
    cos, sin = (table[:, None].astype(x.dtype) for table in rope)
    first, second = mx.split(x, 2, axis=-1)
    return x * cos + mx.concatenate([-second, first], axis=-1) * sin


def make_non_pad_mask(lengths: mx.array, max_len: int) -> mx.array:
    """lengths (b,) -> (b, max_len) bool, True where there is audio. Source: s3tokenizer/utils.py."""
    return mx.arange(max_len) < lengths[:, None]


class FSMNMultiHeadAttention(nn.Module):
    """Self-attention plus a depthwise memory over the values (`FSMNMultiHeadAttention` in model_v2.py).

    Args:
        dim: D; heads: h; kernel_size: odd, taps of the memory.
    """

    def __init__(self, dim: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.25  # on q and on k, as in Whisper
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.fsmn_block = nn.Conv1d(dim, dim, kernel_size, padding=(kernel_size - 1) // 2, groups=dim, bias=False)

    def __call__(self, x: mx.array, mask: mx.array, rope: Rope) -> mx.array:
        """x (b, n, D), mask (b, n) bool, rope two (n, d) -> (b, n, D)."""
        b, n, dim = x.shape
        q, k, v = (layer(x).reshape(b, n, self.heads, -1) for layer in (self.query, self.key, self.value))
        q, k = apply_rotary_emb(q, rope) * self.scale, apply_rotary_emb(k, rope) * self.scale
        bias = mx.where(mask, 0.0, MASK_BIAS).astype(x.dtype)[:, None, None]
        q, k, heads = (y.swapaxes(1, 2) for y in (q, k, v))
        attended = mx.fast.scaled_dot_product_attention(q, k, heads, scale=1.0, mask=bias)
        attended = attended.swapaxes(1, 2).reshape(b, n, dim)
        # The memory reads the values before attention and joins after the output projection.
        return self.out(attended) + self.forward_fsmn(v.reshape(b, n, dim), mask)

    def forward_fsmn(self, inputs: mx.array, mask: mx.array) -> mx.array:
        """inputs (b, n, D), mask (b, n) bool -> (b, n, D), zero where padded."""
        keep = mask.astype(inputs.dtype)[:, :, None]
        inputs = inputs * keep
        return (self.fsmn_block(inputs) + inputs) * keep


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block (`ResidualAttentionBlockV3` in s3tokenizer/model_v3.py)."""

    def __init__(self, dim: int, heads: int, mlp_mult: int, kernel_size: int, eps: float) -> None:
        super().__init__()
        self.attn_ln = nn.LayerNorm(dim, eps=eps)
        self.attn = FSMNMultiHeadAttention(dim, heads, kernel_size)
        self.mlp_ln = nn.LayerNorm(dim, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(dim, dim * mlp_mult), nn.GELU(), nn.Linear(dim * mlp_mult, dim))

    def __call__(self, x: mx.array, mask: mx.array, rope: Rope) -> mx.array:
        """x (b, n, D), mask (b, n) bool, rope two (n, d) -> (b, n, D)."""
        x = x + self.attn(self.attn_ln(x), mask, rope)
        return x + self.mlp(self.mlp_ln(x))


class FSQVectorQuantization(nn.Module):
    """Finite scalar quantisation to base-3 digits (`FSQCodebook` in s3tokenizer/model_v2.py).

    Args:
        dim: D; fsq_dim: f.
    """

    def __init__(self, dim: int, fsq_dim: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(dim, fsq_dim)

    def activations(self, x: mx.array) -> mx.array:
        """x (b, n, D) -> (b, n, f) in (-1, 1), before rounding. The distance to +-0.5 is the margin of a digit."""
        return mx.tanh(self.project_in(x)) * FSQ_BOUND

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, D) -> token ids (b, n) int32, the first digit the least significant."""
        digits = self.activations(x).round().astype(mx.int32) + 1
        return (digits * FSQ_LEVELS ** mx.arange(digits.shape[-1])).sum(axis=-1)


class S3TokenizerV3(nn.Module):
    """The whole tokenizer; there is no norm after the last block."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.conv1 = nn.Conv1d(c.n_mels, c.dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(c.dim, c.dim, 3, stride=2, padding=1)
        self.blocks = [
            ResidualAttentionBlock(c.dim, c.heads, c.mlp_mult, c.fsmn_kernel_size, c.norm_eps) for _ in range(c.depth)
        ]
        self.quantizer = FSQVectorQuantization(c.dim, c.fsq_dim)

    def hidden(self, mel: mx.array, mel_len: mx.array) -> tuple[mx.array, mx.array]:
        """The last block's states.

        Args:
            mel: (b, T, C), `log_mel_spectrogram`.
            mel_len: (b,) int, frames of each row; later ones have no influence.

        Returns:
            (b, n, D) with n = ceil(T / 4), and the number of tokens of each row (b,) int.

        Raises:
            ValueError: more tokens than the rotary tables have rows.
        """
        x, lengths = mel, mel_len
        for conv in (self.conv1, self.conv2):
            mask = make_non_pad_mask(lengths, x.shape[1])
            x = nn.gelu(conv(x * mask.astype(x.dtype)[:, :, None]))
            lengths = (lengths - 1) // 2 + 1
        n, c = x.shape[1], self.config
        if n > MAX_POSITIONS:
            raise ValueError(f"{mel.shape[1]} mel frames are more than the tokenizer's {4 * MAX_POSITIONS}")
        mask, rope = make_non_pad_mask(lengths, n), rotary_tables(n, c.dim // c.heads, c.rope_theta)
        for block in self.blocks:
            x = block(x, mask, rope)
        return x, lengths

    def activations(self, mel: mx.array, mel_len: mx.array) -> tuple[mx.array, mx.array]:
        """The digits before rounding, (b, n, f), and the tokens of each row (b,); arguments as in `hidden`."""
        x, lengths = self.hidden(mel, mel_len)
        return self.quantizer.activations(x), lengths

    def __call__(self, mel: mx.array, mel_len: mx.array) -> tuple[mx.array, mx.array]:
        """Token ids (b, n) int32, meaningless past a row's length, and those lengths; arguments as in `hidden`."""
        x, lengths = self.hidden(mel, mel_len)
        return self.quantizer(x), lengths
