"""The flow decoder as a stream: each call computes only the new frames.

Under the chunk mask no frame sees beyond its own chunk. The keys, values and inputs to the position convolutions of a
whole chunk therefore never change, at any Euler step, and are kept (state.py). An incomplete chunk is computed on top
of them and not kept. Noise, chunks and rotary positions count from the first frame of the prompt.

m new frames, n frames so far, P prompt tokens, F prompt frames, T tokens, C mel channels
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import cast

import mlx.core as mx
import numpy as np

from ..config import FlowConfig
from ..fast.attention import key_dtype
from ..flow.decoder import CausalMaskedDiffWithDiT, count_frames
from ..flow.lookahead import CONV2_KERNEL_SIZE
from ..noise import rand_noise
from .memory import Keep, Memory
from .state import FlowState

ROWS = 2  # the conditional and the unconditional half of the guidance
GROWTH = 1.5  # growth of a full buffer: each frame is copied twice on average, however long the stream


@dataclass
class Work:
    """Counts of what the transformer has computed.

    Attributes:
        frames: frames, counted each time they pass through the Euler steps.
        pairs: products of query and key, in one layer of one step.
    """

    frames: int = 0
    pairs: int = 0

    def add(self, frames: int, chunk_size: int = 0, start: int = 0) -> None:
        """Count `frames` frames on top of `start` others, in chunks, or with 0 all seeing all."""
        for first in range(0, frames, chunk_size or frames or 1):
            last = min(first + chunk_size, frames) if chunk_size else frames
            self.pairs += (last - first) * (start + last)
        self.frames += frames


class StreamingFlow:
    """One utterance of the flow decoder, in pieces of any length.

    All calls together equal `CausalMaskedDiffWithDiT.inference(..., streaming=True)` up to rounding: each call returns
    only the frames that became computable since the previous call. The first call computes prompt and chunk together;
    the next call, or `close`, stores the prompt for later streams.

    Args:
        flow: the decoder with its weights.
        prompt_token: (1, P) integers, P may be 0.
        prompt_feat: log-mel of the prompt, (1, F, C), F = ratio * P.
        embedding: speaker x-vector, (1, spk_embed_dim).
        noise: (1, at least n, C); None takes the original's fixed buffer.
        memory: asked before any allocation; without it there is no limit and no prompt is stored.
        max_cache_bytes: limit for everything in `memory`; chunks beyond it are recomputed in each call.
        work: counts what is computed.

    Attributes:
        frames: frames returned so far, plus the prompt's F.
    """

    def __init__(
        self,
        flow: CausalMaskedDiffWithDiT,
        prompt_token: mx.array | np.ndarray,
        prompt_feat: mx.array,
        embedding: mx.array,
        noise: mx.array | None = None,
        memory: Memory | None = None,
        max_cache_bytes: int | None = None,
        work: Work | None = None,
    ) -> None:
        self.flow = flow
        self.prompt_token = np.asarray(prompt_token)
        self.prompt_feat = prompt_feat
        self.embedding = embedding
        self.noise = noise
        self.work = Work() if work is None else work
        self.frames = prompt_feat.shape[1]
        self._memory = memory
        self._limit = max_cache_bytes
        self._state: FlowState | None = FlowState(flow.config.cfm.n_timesteps, flow.config.dit.depth)
        self._chunk_size = flow.config.dit.static_chunk_size
        self._keep: Keep | None = None

    def push(self, token: mx.array | np.ndarray, finalize: bool = False) -> mx.array:
        """Take all tokens so far and return the new frames.

        Args:
            token: (1, T) integers: those of the last call, and any number of new ones.
            finalize: no tokens follow; the stream ends and its memory is free.

        Returns:
            log-mel (1, m, C) float32, m >= 0. Until `finalize` the last `pre_lookahead_len` tokens give no frames.

        Raises:
            ValueError: as `CausalMaskedDiffWithDiT.inference`, or the stream has ended.
        """
        config, token = self.flow.config, np.asarray(token)
        if self._state is None:
            raise ValueError("the stream has ended; make another for another utterance")
        known = self.prompt_token.shape[1] + token.shape[1]
        if not finalize and config.token_mel_ratio * (known - config.pre_lookahead_len) <= self.frames:
            return mx.zeros((1, 0, config.output_size))
        n = count_frames(config, self.prompt_token.shape, token.shape, self.prompt_feat.shape[1], finalize)
        self._keep_prompt()
        if self._state.span.start == 0:
            self._begin(n)
        if not finalize:
            self._make_room(n)
        start = self._state.span.start
        mel = self._compute(np.concatenate((self.prompt_token, token), axis=1), n, finalize)
        mel, self.frames = mel[:, self.frames - start :], n
        if (frames := self._state.span.prompt) and self._memory:
            self._keep = self._memory.keeper(self.prompt_key(frames), self.flow, self.bytes_for(frames), self._limit)
        if finalize:
            self.close()
        return mel

    def close(self) -> None:
        """End the stream and free its memory."""
        self._keep_prompt()
        self._drop()

    def _drop(self) -> None:
        self._state = None
        if self._memory:
            self._memory.reserve(self, 0, self._limit)

    @property
    def nbytes(self) -> int:
        """Memory held between calls."""
        return self._state.nbytes if self._state else 0

    def bytes_for(self, frames: int) -> int:
        """Memory of room for `frames` frames."""
        dtype = key_dtype(self.flow.decoder.estimator.transformer_blocks[0].attn)
        return state_bytes(self.flow.config, frames, dtype)

    def _begin(self, n: int) -> None:
        """Take the stored whole chunks of the prompt, or plan to store them; no later token can change them."""
        config = self.flow.config
        heard = config.token_mel_ratio * (self.prompt_token.shape[1] - config.pre_lookahead_len)
        frames = min(heard, self.prompt_feat.shape[1]) // self._chunk_size * self._chunk_size
        if frames <= 0 or self._memory is None:
            return
        state = cast(FlowState, self._state)
        state.span.prompt = frames
        if not (self._make_room(n) or self._make_room(frames)):
            state.span.prompt = 0
        elif (kept := self._memory.find(self.prompt_key(frames), self.flow)) is not None:
            self._state = kept.copy(frames, state.capacity)

    def _keep_prompt(self) -> None:
        """Store the prompt for later streams; not in the call that computes it, because its audio is urgent."""
        if self._keep and self._state:
            frames = self._state.span.prompt
            self._keep(partial(self._state.copy, frames, frames, prompt=True))
        self._keep = None
        if self._state:
            self._state.forget_prompt()

    def prompt_key(self, frames: int) -> bytes:
        """Hash of everything that determines the first `frames` frames of the prompt, except the weights."""
        digest = hashlib.sha256(str(frames).encode())
        for part in (self.prompt_token, self.prompt_feat, self.embedding, noise_of(self.noise, 0, frames)):
            array = np.array(part)
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.digest()

    def _make_room(self, n: int) -> bool:
        """Enlarge the buffers to `n` frames, if memory allows."""
        state, chunk = cast(FlowState, self._state), self._chunk_size
        whole = -(-n // chunk) * chunk
        if whole <= state.capacity:
            return True
        tails = self.bytes_for(0) if state.span.prompt else 0
        for capacity in (max(whole, int(GROWTH * state.capacity) // chunk * chunk), whole):
            if not self._memory or self._memory.reserve(self, self.bytes_for(capacity) + tails, self._limit):
                state.grow(capacity)
                return True
        return False

    def _compute(self, token: np.ndarray, n: int, finalize: bool) -> mx.array:
        """Mel (1, m, C) of the frames from the last whole chunk to `n`; frames in whole chunks are kept."""
        flow, state = self.flow, cast(FlowState, self._state)
        config, start = flow.config, state.span.start
        # Start two tokens early: the second look-ahead convolution sees two past tokens.
        first = max(0, start // config.token_mel_ratio - (CONV2_KERNEL_SIZE - 1))
        mu = flow.encode(token[:, first:], finalize)[:, start - first * config.token_mel_ratio :][:, : n - start]
        cond = self.prompt_feat[:, start:n]
        cond = mx.pad(cond, [(0, 0), (0, n - start - cond.shape[1]), (0, 0)])
        state.span.whole = whole = min(n // self._chunk_size * self._chunk_size, state.capacity)
        try:
            mel = flow.decoder(
                mu,
                None,
                flow.speaker(self.embedding),
                cond,
                noise_of(self.noise, start, n),
                config.cfm.n_timesteps,
                streaming=True,
                state=state,
            )
        except BaseException:
            self._drop()  # the steps differ in progress
            raise
        if not start:
            state.capacity = whole
        state.span.start = whole
        self.work.add(n - start, self._chunk_size, start)
        return mel


def noise_of(given: mx.array | None, start: int, end: int) -> mx.array:
    """Noise of the frames `start` to `end`, (1, m, C) float32: of the noise `given`, or the original's.

    Raises:
        ValueError: the noise given is shorter.
    """
    if given is None:
        return mx.array(rand_noise(end)[:, :, start:]).swapaxes(1, 2)
    if given.shape[1] < end:
        raise ValueError(f"noise holds {given.shape[1]} frames, the mel needs {end}")
    return given[:, start:end].astype(mx.float32)


def state_bytes(config: FlowConfig, frames: int, dtype: mx.Dtype = mx.float32) -> int:
    """Memory of a `FlowState` with room for `frames` frames, prompt included.

    At the official size 3.6 MB a frame and 180 MB a second of audio in float32, half of it in float16.
    """
    dit = config.dit
    keys_and_values = 2 * dit.depth * dit.heads * dit.dim_head * frames * dtype.size
    tails = 2 * (dit.conv_pos_kernel_size - 1) * dit.dim * mx.float32.size
    return ROWS * config.cfm.n_timesteps * (keys_and_values + tails)
