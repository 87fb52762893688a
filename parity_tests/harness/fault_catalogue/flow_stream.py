"""Faults of what a stream of the flow decoder carries from chunk to chunk, and from request to request."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, edit

STREAM, MEMORY = "stream.flow.StreamingFlow", "stream.memory"
_STREAM = "stream.flow:StreamingFlow"

FAULTS = (
    Fault(
        "stream_keeps_a_partial_chunk",
        "cache",
        STREAM,
        edit(
            f"{_STREAM}._compute",
            "min(n // self._chunk_size * self._chunk_size, state.capacity)",
            "n if finalize else min(n - n % 2, state.capacity)",
        ),
    ),
    Fault(
        "stream_position_tail_one_frame_early",
        "cache",
        STREAM,
        edit(
            "stream.state:ChunkTail.extend",
            "seen, span.whole - span.start",
            "seen, max(0, span.whole - span.start - 1)",
        ),
    ),
    Fault(
        "stream_second_convolution_keeps_the_first_s_input",
        "cache",
        STREAM,
        edit("flow.layers:CausalConvPositionEmbedding.__call__", "tail[i].extend", "tail[0].extend"),
    ),
    Fault(
        "stream_positions_from_the_chunk",
        "rotary",
        STREAM,
        edit("flow.dit:DiT.__call__", "self.rotary_embed.tables(n, start)", "self.rotary_embed.tables(n)"),
    ),
    Fault(
        "stream_noise_from_the_start",
        "noise",
        STREAM,
        edit(
            f"{_STREAM}.noise_of",
            "self.noise[:, start:end].astype",
            "self.noise[:, : end - start].astype",
        ),
    ),
    Fault(
        "stream_keys_of_the_first_step_in_all",
        "cache",
        STREAM,
        edit("flow.matching:CausalConditionalCFM.solve_euler", "state and state.steps[i]", "state and state.steps[0]"),
    ),
    Fault(
        "stream_chunk_sees_the_next",
        "mask",
        STREAM,
        edit("flow.dit:DiT.__call__", "streaming, start)", "streaming and not start, start)"),
    ),
    Fault(
        "stream_chunk_sees_only_the_first_keys",
        "cache",
        STREAM,
        edit("fast.attention:by_chunks", "chunks.start + min(", "min("),
    ),
    Fault(
        "stream_mask_of_the_first_queries",
        "mask",
        STREAM,
        edit("flow.dit:DiT.attention_mask", "-(n - start) :]", ": n - start]"),
    ),
    Fault(
        "stream_keeps_keys_for_values",
        "cache",
        STREAM,
        edit("stream.state:Kept.extend", "self._extend(self.values, values)", "self._extend(self.values, keys)"),
    ),
    Fault(
        "stream_last_frames_of_a_full_buffer_are_lost",
        "memory",
        STREAM,
        edit("stream.state:Kept._extend", "min(n, held.shape[-2])", "min(n, held.shape[-2] - 8)"),
    ),
    Fault(
        "stream_forgets_the_look_behind_of_the_tokens",
        "cache",
        STREAM,
        edit(f"{_STREAM}._compute", "- (CONV2_KERNEL_SIZE - 1)", "- 0"),
    ),
    Fault(
        "stream_prompt_kept_up_to_its_end",
        "cache",
        STREAM,
        edit(
            f"{_STREAM}._begin", "self.prompt_token.shape[1] - config.pre_lookahead_len", "self.prompt_token.shape[1]"
        ),
    ),
    Fault(
        "prompt_kept_with_the_tails_of_the_chunk",
        "cache",
        MEMORY,
        edit("stream.state:StepState.copy", "old.prompt if prompt else old.frames", "old.frames"),
    ),
    Fault(
        "prompt_key_without_the_speaker",
        "state leak",
        MEMORY,
        edit(
            f"{_STREAM}.prompt_key",
            "self.prompt_feat, self.embedding, self.noise_of",
            "self.prompt_feat, self.noise_of",
        ),
    ),
    Fault(
        "prompts_outlive_their_weights",
        "state leak",
        MEMORY,
        edit("stream.memory:Memory.find", "not prompt.made_by(flow)", "False"),
    ),
    Fault(
        "prompts_do_not_count",
        "memory",
        MEMORY,
        edit("stream.memory:Memory.reserve", "others + nbytes > limit", "nbytes > limit"),
    ),
)
