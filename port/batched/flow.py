"""The flow decoder over several utterances at once.

Whatever concerns an utterance alone is made for it alone and may refuse it: tokens, speaker, prompt, noise. The Euler
steps, where nearly all the work is, run over all rows. A shorter row is followed by frames that its own frames never
attend to; everything else in the transformer looks into the past or at one frame.

b rows, T tokens, n frames (prompt included), C mel channels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..flow.decoder import CausalMaskedDiffWithDiT, count_frames
from ..flow.masks import make_pad_mask
from ..request import Prompt
from ..stream.flow import noise_of
from .rows import Limits, limits_by_device, padded

FRAME_BYTES = 210_000  # of a step, at the official size in float32, measured on a CPU
# Of a CPU: a pass costs as much as 10 to 20 frames more than its own (MLX 0.32, OpenBLAS, 50 to 400 frames, rows filled
# up included), and 1000 frames bring all but 1 or 2 % of the gain. Of a GPU: a second, not measured.
CPU_LIMITS, GPU_PADDING = Limits(1000, 10), 50


@dataclass(frozen=True)
class FlowRow:
    """An utterance as the Euler steps take it.

    Attributes:
        mu, cond, noise: (1, n, C) each, as for `CausalConditionalCFM`.
        spks: (1, C).
        prompt_frames: of the n frames, those of the prompt, which come first.
    """

    mu: mx.array
    cond: mx.array
    noise: mx.array
    spks: mx.array
    prompt_frames: int

    @property
    def frames(self) -> int:
        """All frames n."""
        return self.mu.shape[1]


def flow_row(
    flow: CausalMaskedDiffWithDiT, token: mx.array | np.ndarray, prompt: Prompt, noise: mx.array | None = None
) -> FlowRow:
    """Prepare one utterance.

    Args:
        token: (1, T) integers, all of the utterance.
        prompt: what the flow decoder gets, all of it.
        noise: (1, at least n, C); None takes the original's fixed buffer.

    Raises:
        ValueError: as `CausalMaskedDiffWithDiT.inference`.
    """
    before, feat = np.asarray(prompt.flow_prompt_speech_token), prompt.prompt_speech_feat
    token = np.asarray(token)
    n = count_frames(flow.config, before.shape, token.shape, feat.shape[1], finalize=True)
    return FlowRow(
        mu=flow.encode(np.concatenate((before, token), axis=1)),
        cond=mx.pad(feat, [(0, 0), (0, n - feat.shape[1]), (0, 0)]),
        noise=noise_of(noise, 0, n),
        spks=flow.speaker(prompt.flow_embedding),
        prompt_frames=feat.shape[1],
    )


def mels(flow: CausalMaskedDiffWithDiT, rows: Sequence[FlowRow]) -> list[mx.array]:
    """Mel of each row without its prompt: log-mel (1, n_i - prompt_frames, C) float32, in the order of `rows`.

    Each is what `CausalMaskedDiffWithDiT.inference` gives for the utterance alone, up to rounding.

    Args:
        rows: at least one.
    """
    lengths = [row.frames for row in rows]
    feat = flow.decoder(
        padded([row.mu for row in rows]),
        None if len(set(lengths)) == 1 else ~make_pad_mask(lengths),
        mx.concatenate([row.spks for row in rows]),
        padded([row.cond for row in rows]),
        padded([row.noise for row in rows]),
        flow.config.cfm.n_timesteps,
    )
    return [feat[i : i + 1, row.prompt_frames : row.frames] for i, row in enumerate(rows)]


def limits() -> Limits:
    """Which rows gain by going together on the default device, for `groups` of their `frames`."""
    return limits_by_device(FRAME_BYTES, CPU_LIMITS, GPU_PADDING)
