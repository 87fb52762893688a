"""Speech tokens to mel frames (`CausalMaskedDiffWithDiT`, cosyvoice/flow/flow.py).

b batch, T tokens, P prompt tokens, F prompt frames, n frames, C mel channels
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import FlowConfig
from ..noise import rand_noise
from .lookahead import PreLookaheadLayer
from .matching import CausalConditionalCFM, Guidance

NORMALIZE_EPS = 1e-12  # torch.nn.functional.normalize


class CausalMaskedDiffWithDiT(nn.Module):
    """Flow decoder: embeds tokens, looks ahead, repeats to the frame rate and solves the flow."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.pre_lookahead_layer = PreLookaheadLayer(
            config.input_size, config.pre_lookahead_channels, config.pre_lookahead_len
        )
        self.decoder = CausalConditionalCFM(config)

    def encode(self, token: mx.array | np.ndarray, finalize: bool = True) -> mx.array:
        """Features `mu` of the frames of `token` (b, T), prompt included: (b, n, C) with n = ratio * T.

        Without `finalize` the last `pre_lookahead_len` tokens are context and give no frames. Ids below 0 read
        the table's first row, as in the original.

        Raises:
            ValueError: an id is outside the table, where MLX would read zeros in silence.
        """
        ids = np.asarray(token)
        if ids.size and ids.max() >= self.config.vocab_size:
            raise ValueError(f"speech token {ids.max()} is outside the flow's table of {self.config.vocab_size}")
        embedded = self.input_embedding(mx.array(ids.clip(min=0).astype(np.int32)))
        if finalize:
            mu = self.pre_lookahead_layer(embedded)
        else:
            ahead = self.config.pre_lookahead_len
            mu = self.pre_lookahead_layer(embedded[:, :-ahead], context=embedded[:, -ahead:])
        return mx.repeat(mu, self.config.token_mel_ratio, axis=1)

    def speaker(self, embedding: mx.array) -> mx.array:
        """Speaker vector (1, C) of an x-vector (1, spk_embed_dim) of any length."""
        norm = mx.sqrt(mx.sum(embedding * embedding, axis=1, keepdims=True))
        embedding = embedding / mx.maximum(norm, NORMALIZE_EPS)
        return self.spk_embed_affine_layer(embedding)

    def inference(
        self,
        token: mx.array | np.ndarray,
        prompt_token: mx.array | np.ndarray,
        prompt_feat: mx.array,
        embedding: mx.array,
        streaming: bool = False,
        finalize: bool = True,
        noise: mx.array | None = None,
        guidance: Guidance = "batched",
    ) -> mx.array:
        """Mel of `token`, continuing the prompt.

        Args:
            token: (1, T) integers.
            prompt_token: (1, P) integers, P may be 0.
            prompt_feat: log-mel of the prompt, (1, F, C), F = ratio * P.
            embedding: speaker x-vector, (1, spk_embed_dim).
            streaming: use the chunk mask.
            finalize: no tokens follow; otherwise the last `pre_lookahead_len` tokens give no frames.
            noise: (1, at least n, C); None takes the original's fixed buffer.
            guidance: as in `CausalConditionalCFM.velocity`.

        Returns:
            natural log-mel (1, n - F, C) float32: the prompt's F frames are cut off.

        Raises:
            ValueError: too few or too many frames, more than one row, or a token outside the table.
        """
        n = count_frames(self.config, prompt_token.shape, token.shape, prompt_feat.shape[1], finalize)
        token = np.concatenate((np.asarray(prompt_token), np.asarray(token)), axis=1)
        mu = self.encode(token, finalize)
        cond = mx.pad(prompt_feat, [(0, 0), (0, n - prompt_feat.shape[1]), (0, 0)])
        if noise is None:
            noise = mx.array(rand_noise(n)).swapaxes(1, 2)
        # One utterance has no padding, so every frame is valid and no mask is needed.
        feat = self.decoder(
            mu,
            None,
            self.speaker(embedding),
            cond,
            noise,
            self.config.cfm.n_timesteps,
            streaming=streaming,
            guidance=guidance,
        )
        return feat[:, prompt_feat.shape[1] :]


def count_frames(
    config: FlowConfig, prompt_shape: tuple[int, ...], token_shape: tuple[int, ...], prompt_frames: int, finalize: bool
) -> int:
    """Frames n of all tokens, prompt included.

    Raises:
        ValueError: more than one row, too few frames for the prompt, or more than the fixed noise has.
    """
    rows = max(prompt_shape[0], token_shape[0])
    if rows != 1:
        raise ValueError(f"the flow decoder takes one utterance at a time, found {rows} rows of tokens")
    tokens = prompt_shape[1] + token_shape[1]
    n = config.token_mel_ratio * (tokens if finalize else tokens - config.pre_lookahead_len)
    if n <= 0 or n < prompt_frames:
        raise ValueError(f"{tokens} tokens give {max(n, 0)} frames, too few for a prompt of {prompt_frames}")
    if n > config.cfm.max_frames:
        raise ValueError(
            f"{tokens} tokens with the prompt give {n} frames, at most {config.cfm.max_frames} fit the fixed noise; "
            "split the text or shorten the prompt"
        )
    return n
