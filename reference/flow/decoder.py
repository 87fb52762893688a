"""Speech tokens to mel frames (`CausalMaskedDiffWithDiT`, cosyvoice/flow/flow.py).

b batch, T tokens, P prompt tokens, F prompt frames, n frames, C mel channels
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from port.config import FlowConfig
from port.noise import NOISE_SEED
from reference.flow.lookahead import PreLookaheadLayer
from reference.flow.masks import make_pad_mask
from reference.flow.matching import CausalConditionalCFM, Guidance


@lru_cache(maxsize=1)
def _rand_noise(channels: int, frames: int) -> Tensor:
    """The original's fixed noise buffer, (1, channels, frames) float32."""
    return torch.randn(1, channels, frames, generator=torch.Generator().manual_seed(NOISE_SEED))


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

    def encode(self, token: Tensor, finalize: bool = True) -> Tensor:
        """Features `mu` of the frames of `token` (b, T), prompt included: (b, n, C) with n = ratio * T.

        Without `finalize` the last `pre_lookahead_len` tokens are context and give no frames. Ids below 0 read
        the table's first row, as in the original.
        """
        embedded = self.input_embedding(token.clamp(min=0))
        if finalize:
            mu = self.pre_lookahead_layer(embedded)
        else:
            ahead = self.config.pre_lookahead_len
            mu = self.pre_lookahead_layer(embedded[:, :-ahead], context=embedded[:, -ahead:])
        return mu.repeat_interleave(self.config.token_mel_ratio, dim=1)

    def speaker(self, embedding: Tensor) -> Tensor:
        """Speaker vector (1, C) of an x-vector (1, spk_embed_dim) of any length."""
        return self.spk_embed_affine_layer(F.normalize(embedding, dim=1))

    @torch.inference_mode()
    def inference(
        self,
        token: Tensor,
        prompt_token: Tensor,
        prompt_feat: Tensor,
        embedding: Tensor,
        streaming: bool = False,
        finalize: bool = True,
        noise: Tensor | None = None,
        guidance: Guidance = "batched",
    ) -> Tensor:
        """Mel of `token`, continuing the prompt.

        Args:
            token: (1, T) integers.
            prompt_token: (1, P) integers, P may be 0.
            prompt_feat: log-mel of the prompt, (1, F, C), F = ratio * P.
            embedding: speaker x-vector, (1, spk_embed_dim).
            streaming: use the chunk mask.
            finalize: no tokens follow; otherwise the last `pre_lookahead_len` tokens give no frames.
            noise: (1, C, at least n); None takes the original's fixed buffer.
            guidance: as in `CausalConditionalCFM.velocity`.

        Returns:
            natural log-mel (1, C, n - F): the prompt's F frames are cut off.

        Raises:
            ValueError: too few or too many frames, or more than one row.
        """
        n = count_frames(self.config, prompt_token.shape, token.shape, prompt_feat.shape[1], finalize)
        token = torch.cat((prompt_token, token), dim=1)
        mu = self.encode(token, finalize)
        cond = F.pad(prompt_feat.to(mu), (0, 0, 0, n - prompt_feat.shape[1]))
        mask = ~make_pad_mask(torch.tensor([n], device=mu.device))
        if noise is None:
            noise = _rand_noise(self.config.output_size, self.config.cfm.max_frames)
        feat = self.decoder(
            mu.transpose(1, 2),
            mask[:, None],
            self.speaker(embedding),
            cond.transpose(1, 2),
            noise,
            self.config.cfm.n_timesteps,
            streaming=streaming,
            guidance=guidance,
        )
        return feat[:, :, prompt_feat.shape[1] :]


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
