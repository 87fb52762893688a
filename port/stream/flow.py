"""The flow decoder as a stream: each call computes the new frames only.

Under the chunk mask no frame sees beyond its own chunk, so whatever follows, a whole chunk keeps its keys, its values
and its inputs to the position convolutions, at every Euler step. They are kept; a chunk that is not whole yet is
computed on top of them and forgotten. Noise, chunks and rotary positions count from the first frame of the prompt.

m new frames, n frames so far, P prompt tokens, F prompt frames, T tokens, C mel channels, d width of the transformer,
h heads, c channels per head; 2 rows: the conditional and the unconditional half of the guidance
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..fast.attention import Chunks, by_head, mish
from ..fast.convolution import conv1d, weight_of
from ..fast.modulation import Steering
from ..fast.precision import run
from ..flow.decoder import CausalMaskedDiffWithDiT, count_frames
from ..flow.layers import DiTBlock, Rope, rotary_tables
from ..flow.lookahead import CONV2_KERNEL_SIZE
from ..flow.matching import cosine_schedule
from ..noise import rand_noise
from .flow_state import FlowState, Keep, Memory, StepState, Unbounded, Work, key_dtype, state_bytes

GROWTH = 1.5  # of a full buffer; each frame is then copied twice on average, however long the stream


class StreamingFlow:
    """One utterance of the flow decoder, in pieces of any length.

    All calls together give `CausalMaskedDiffWithDiT.inference(..., streaming=True)` up to rounding: each call the
    frames that this would give for all tokens so far and that no earlier call gave. The first computes prompt and
    chunk in one piece; the next call, or `close`, leaves the prompt to later streams.

    Args:
        flow: the decoder with its weights.
        prompt_token: (1, P) integers, P may be 0.
        prompt_feat: log-mel of the prompt, (1, F, C), F = ratio * P.
        embedding: speaker x-vector, (1, spk_embed_dim).
        noise: (1, at least n, C); None takes the original's fixed buffer.
        memory: asked before anything is allocated. Chunks that it has no room for are computed again in each call.
        work: counts what is computed.

    Attributes:
        frames: frames given out, the prompt's F included.
    """

    def __init__(
        self,
        flow: CausalMaskedDiffWithDiT,
        prompt_token: mx.array | np.ndarray,
        prompt_feat: mx.array,
        embedding: mx.array,
        noise: mx.array | None = None,
        memory: Memory | None = None,
        work: Work | None = None,
    ) -> None:
        self.flow = flow
        self.prompt_token = np.asarray(prompt_token)
        self.prompt_feat = prompt_feat
        self.embedding = embedding
        self.noise = noise
        self.work = Work() if work is None else work
        self.frames = prompt_feat.shape[1]
        self._memory: Memory = Unbounded() if memory is None else memory
        self._state: FlowState | None = FlowState.empty(flow)
        self._chunk_size = flow.config.dit.static_chunk_size
        self._prompt_frames = 0  # of the prompt's whole chunks, while they are to be kept
        self._keep: Keep | None = None

    def push(self, token: mx.array | np.ndarray, finalize: bool = False) -> mx.array:
        """Take all tokens so far and give the new frames.

        Args:
            token: (1, T) integers: those of the last call and any number more.
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
        if self._state.frames == 0:
            self._begin(n)
        if not finalize:
            self._make_room(n)
        start = self._state.frames
        mel = self._compute(np.concatenate((self.prompt_token, token), axis=1), n, finalize)
        mel, self.frames = mel[:, self.frames - start :], n
        if self._prompt_frames:
            self._keep = self._memory.keeper(self, self._prompt_frames)
        if finalize:
            self.close()
        return mel

    def close(self) -> None:
        """End the stream and free its memory."""
        self._keep_prompt()
        self._drop()

    def _drop(self) -> None:
        self._state = None
        self._memory.reserve(self, 0)

    @property
    def nbytes(self) -> int:
        """Memory held between calls."""
        return self._state.nbytes if self._state else 0

    def bytes_for(self, frames: int) -> int:
        """Memory of room for `frames` frames."""
        return state_bytes(self.flow.config, frames, key_dtype(self.flow))

    def noise_of(self, start: int, end: int) -> mx.array:
        """Noise of the frames `start` to `end`, (1, m, C) float32.

        Raises:
            ValueError: the noise given is shorter.
        """
        if self.noise is None:
            return mx.array(rand_noise(end)[:, :, start:]).swapaxes(1, 2)
        if self.noise.shape[1] < end:
            raise ValueError(f"noise holds {self.noise.shape[1]} frames, the mel needs {end}")
        return self.noise[:, start:end].astype(mx.float32)

    def _begin(self, n: int) -> None:
        """Look for the prompt's whole chunks that no later token can change, or note that they are to be kept."""
        config = self.flow.config
        heard = config.token_mel_ratio * (self.prompt_token.shape[1] - config.pre_lookahead_len)
        frames = min(heard, self.prompt_feat.shape[1]) // self._chunk_size * self._chunk_size
        if frames <= 0:
            return
        self._prompt_frames = frames
        if not (self._make_room(n) or self._make_room(frames)):
            self._prompt_frames = 0
        elif (kept := self._memory.find(self, frames)) is not None:
            self._prompt_frames = 0
            self._state = kept.copy(self._state.capacity)

    def _keep_prompt(self) -> None:
        """Leave the prompt to later streams: not in the call that computes it, whose audio is waited for."""
        if self._keep and self._state:
            self._keep(self._state)
        self._keep, self._prompt_frames = None, 0

    def _make_room(self, n: int) -> bool:
        """Enlarge the buffers to hold `n` frames, unless the memory is used up."""
        state, chunk = self._state, self._chunk_size
        whole = -(-n // chunk) * chunk
        if whole <= state.capacity:
            return True
        tails = self.bytes_for(0) if self._prompt_frames else 0
        for capacity in (max(whole, int(GROWTH * state.capacity) // chunk * chunk), whole):
            if self._memory.reserve(self, self.bytes_for(capacity) + tails):
                state.grow(capacity)
                return True
        return False

    def _compute(self, token: np.ndarray, n: int, finalize: bool) -> mx.array:
        """Mel (1, m, C) of the frames from the last whole chunk to `n`; those that fill whole chunks are kept."""
        flow, state = self.flow, self._state
        config, dit, start = flow.config, flow.decoder.estimator, state.frames
        # Two tokens earlier than needed: the second look-ahead convolution sees as many of the past.
        first = max(0, start // config.token_mel_ratio - (CONV2_KERNEL_SIZE - 1))
        mu = flow.encode(token[:, first:], finalize)[:, start - first * config.token_mel_ratio :][:, : n - start]
        cond = self.prompt_feat[:, start:n]
        cond = mx.pad(cond, ((0, 0), (0, n - start - cond.shape[1]), (0, 0)))
        spks = mx.broadcast_to(flow.speaker(self.embedding)[:, None], (1, n - start, config.output_size))
        given = mx.concatenate([cond, mu, spks], axis=-1)
        # The unconditional half has zeros for everything but the state (solve_euler).
        given = mx.concatenate([given, mx.zeros_like(given)])
        rope = rotary_tables(dit.rotary_embed(n - start, start))
        x = self.noise_of(start, n)
        t_span = cosine_schedule(config.cfm.n_timesteps)
        t = t_span[0]
        whole = min(n // self._chunk_size * self._chunk_size, state.capacity)
        try:
            for step, following in zip(state.steps, t_span[1:], strict=True):
                dt = following - t
                x = x + float(dt) * self._velocity(step, x, t, given, rope, whole - start)
                mx.eval(x, step.arrays)
                t = t + dt
        except BaseException:
            self._drop()  # some steps are further than others
            raise
        if not start:
            state.capacity = whole
        state.frames = whole
        self.work.add(n - start, self._chunk_size, start)
        return x

    def _velocity(
        self, step: StepState, x: mx.array, t: np.floating, given: mx.array, rope: Rope, whole: int
    ) -> mx.array:
        """Guided velocity (1, m, C) float32 of the state `x` (1, m, C); `whole` of the m frames are kept in `step`."""
        dit, rate = self.flow.decoder.estimator, self.flow.config.cfm.inference_cfg_rate
        *steering, last = dit.modulation(t)
        y = run(dit.input_embed.proj, mx.concatenate([mx.concatenate([x, x]), given], axis=-1))
        x = (self._convolve(step, y, whole) + y).astype(mx.float32)
        for layer, (block, steers) in enumerate(zip(dit.transformer_blocks, steering, strict=True)):
            x = self._block(step, layer, block, x, steers, rope, whole)
        v = run(dit.proj_out, dit.norm_out(x, last)).astype(mx.float32)
        return (1.0 + rate) * v[:1] - rate * v[1:]

    def _convolve(self, step: StepState, x: mx.array, whole: int) -> mx.array:
        """`CausalConvPositionEmbedding` of `x` (2, m, d), going on from the tails."""
        embed = self.flow.decoder.estimator.input_embed.conv_pos_embed
        for i, conv in enumerate((embed.conv1, embed.conv2)):
            seen = mx.concatenate([step.tails[i].astype(x.dtype), x], axis=1)
            if self._prompt_frames:
                step.prompt_tails.append(_tail(seen, self._prompt_frames, embed.kernel_size))
            step.tails[i] = _tail(seen, whole, embed.kernel_size)
            x = mish(conv1d(seen, weight_of(conv, embed.groups), conv.bias, groups=embed.groups))
        return x

    def _block(
        self, step: StepState, layer: int, block: DiTBlock, x: mx.array, steers: Steering, rope: Rope, whole: int
    ) -> mx.array:
        """`DiTBlock` of `x` (2, m, d), its attention going on from the kept keys and values."""
        y, gate_msa, shift_mlp, scale_mlp, gate_mlp = block.attn_norm(x, emb=steers)
        q, k, v = (by_head(t, block.attn.heads) for t in block.attn.project(y, rope))
        k, v = self._extend(step.keys, layer, k, whole), self._extend(step.values, layer, v, whole)
        x = x + gate_msa[:, None] * block.attn.attend(q, k, v, Chunks(self._chunk_size, self._state.frames))
        y = block.ff_norm(x) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        return x + gate_mlp[:, None] * block.ff(y)

    def _extend(self, held: list[mx.array], layer: int, new: mx.array, whole: int) -> mx.array:
        """Keep what fills whole chunks of `new` (2, h, m, c), and give all n so far, (2, h, n, c)."""
        start, n, buffer = self._state.frames, self._state.frames + new.shape[2], held[layer]
        if not start:
            # Nothing to go on from: what was computed is the buffer, and no memory is filled first.
            held[layer] = mx.contiguous(new[:, :, :whole].astype(buffer.dtype))
            return new
        room = min(n, buffer.shape[2])
        if room > start:
            buffer[:, :, start:room] = new[:, :, : room - start]
        return buffer[:, :, :n] if room == n else mx.concatenate([buffer[:, :, :start], new], axis=2)


def _tail(seen: mx.array, frames: int, taps: int) -> mx.array:
    """The last inputs, (2, taps - 1, d) float32, of a convolution after `frames` of those that follow its history."""
    return mx.contiguous(seen[:, frames : frames + taps - 1].astype(mx.float32))
