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
        edit(f"{_STREAM}._convolve", "_tail(seen, whole,", "_tail(seen, max(0, whole - 1),"),
    ),
    Fault(
        "stream_second_convolution_keeps_the_first_s_input",
        "cache",
        STREAM,
        edit(f"{_STREAM}._convolve", "step.tails[i].astype", "step.tails[0].astype"),
    ),
    Fault(
        "stream_positions_from_the_chunk",
        "rotary",
        STREAM,
        edit(f"{_STREAM}._compute", "dit.rotary_embed(n - start, start)", "dit.rotary_embed(n - start)"),
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
        edit(
            f"{_STREAM}._velocity",
            "self._block(step, layer, block",
            "self._block(self._state.steps[0], layer, block",
        ),
    ),
    Fault(
        "stream_chunk_sees_the_next",
        "mask",
        STREAM,
        edit(f"{_STREAM}._block", "Chunks(self._chunk_size, self._state.frames)", "None"),
    ),
    Fault(
        "stream_chunk_sees_only_the_first_keys",
        "cache",
        STREAM,
        edit("fast.attention:attention", "mask.start + min(", "min("),
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
        edit("stream.flow_state:FlowState.prompt", "tails=step.prompt_tails", "tails=step.tails"),
    ),
    Fault(
        "prompt_key_without_the_speaker",
        "state leak",
        MEMORY,
        edit(
            "stream.memory:prompt_key",
            "stream.prompt_feat, stream.embedding, stream.noise_of",
            "stream.prompt_feat, stream.noise_of",
        ),
    ),
    Fault(
        "prompts_outlive_their_weights",
        "state leak",
        MEMORY,
        edit("stream.memory:StreamMemory.find", "not prompt.made_by(stream.flow)", "False"),
    ),
    Fault(
        "prompts_do_not_count",
        "memory",
        MEMORY,
        edit("stream.memory:StreamMemory.reserve", "others + nbytes > limit", "nbytes > limit"),
    ),
)
