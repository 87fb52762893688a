"""Faults of the flow decoder's masks, time embedding, convolutional and rotary positions."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, constant, edit

MASKS, LAYERS = "flow.masks", "flow.layers"
_PAD, _CHUNK = "flow.masks:make_pad_mask", "flow.masks:subsequent_chunk_mask"
_ROTATE, _ATTENTION = "flow.layers:apply_rotary_pos_emb", "flow.layers:Attention"
_POSITION = "flow.layers:CausalConvPositionEmbedding.__call__"

FAULTS = (
    Fault("pad_mask_inverted", "mask", f"{MASKS}.make_pad_mask", edit(_PAD, ">= lengths", "< lengths")),
    Fault("pad_mask_one_frame_late", "off by one", f"{MASKS}.make_pad_mask", edit(_PAD, ">= lengths", "> lengths")),
    Fault(
        "chunk_mask_one_frame_ahead",
        "off by one",
        f"{MASKS}.subsequent_chunk_mask",
        edit(_CHUNK, "frames[None] <", "frames[None] <="),
    ),
    Fault(
        "chunk_mask_without_chunks",
        "mask",
        f"{MASKS}.subsequent_chunk_mask",
        edit(
            _CHUNK, "frames[None] < (frames[:, None] // chunk_size + 1) * chunk_size", "frames[None] <= frames[:, None]"
        ),
    ),
    Fault(
        "chunk_edge_one_frame_early",
        "off by one",
        f"{MASKS}.subsequent_chunk_mask",
        edit(_CHUNK, "(frames[:, None] // chunk_size + 1)", "((frames[:, None] + 1) // chunk_size + 1)"),
    ),
    Fault(
        "one_chunk_of_left_context",
        "mask",
        f"{MASKS}.subsequent_chunk_mask",
        edit(
            _CHUNK,
            "return frames[None] < (frames[:, None] // chunk_size + 1) * chunk_size",
            "return abs(frames[:, None] // chunk_size - frames[None] // chunk_size - 0.5) <= 0.5",
        ),
    ),
    Fault(
        "blind_query_stays_blind",
        "mask",
        f"{MASKS}.add_optional_chunk_mask",
        edit(
            "flow.masks:add_optional_chunk_mask",
            "return chunk_masks | ~chunk_masks.any(axis=-1, keepdims=True)",
            "return chunk_masks",
        ),
    ),
    Fault(
        "chunk_mask_forgets_padding",
        "mask",
        f"{MASKS}.add_optional_chunk_mask",
        edit("flow.masks:add_optional_chunk_mask", "masks & subsequent", "(masks | True) & subsequent"),
    ),
    # time
    Fault(
        "time_not_scaled",
        "constant",
        f"{LAYERS}.SinusPositionEmbedding",
        edit("flow.layers:SinusPositionEmbedding.__call__", "scale * times", "times"),
    ),
    Fault(
        "time_period_off_by_a_thousandth",
        "constant",
        f"{LAYERS}.SinusPositionEmbedding",
        constant("flow.layers:MAX_PERIOD", 10010.0),
    ),
    Fault(
        "time_frequencies_of_the_transformer_paper",
        "off by one",
        f"{LAYERS}.SinusPositionEmbedding",
        edit("flow.layers:sinus_frequencies", "(half - 1)", "half"),
    ),
    Fault(
        "cosines_before_sines",
        "order",
        f"{LAYERS}.SinusPositionEmbedding",
        edit(
            "flow.layers:SinusPositionEmbedding.__call__",
            "(np.sin(angles), np.cos(angles))",
            "(np.cos(angles), np.sin(angles))",
        ),
    ),
    Fault(
        "time_without_silu",
        "activation",
        f"{LAYERS}.TimestepEmbedding",
        edit("flow.layers:TimestepEmbedding.__call__", "nn.silu(", "("),
    ),
    # convolutional positions
    Fault(
        "position_convolution_looks_ahead",
        "padding",
        f"{LAYERS}.CausalConvPositionEmbedding",
        edit(_POSITION, "(past, 0)", "(0, past)"),
    ),
    Fault(
        "position_convolution_centred",
        "padding",
        f"{LAYERS}.CausalConvPositionEmbedding",
        edit(_POSITION, "(past, 0)", "(past // 2, past // 2)"),
    ),
    Fault(
        "position_convolution_one_frame_late",
        "off by one",
        f"{LAYERS}.CausalConvPositionEmbedding",
        edit(
            _POSITION,
            "mx.pad(x, ((0, 0), (past, 0), (0, 0)))",
            "mx.pad(x, ((0, 0), (past + 1, 0), (0, 0)))[:, :-1]",
        ),
    ),
    Fault(
        "position_convolution_silu",
        "activation",
        f"{LAYERS}.CausalConvPositionEmbedding",
        edit(_POSITION, "self.mish(", "nn.silu("),
    ),
    Fault(
        "position_convolution_mask_ignored_after",
        "mask",
        f"{LAYERS}.CausalConvPositionEmbedding",
        edit(_POSITION, "return x if mask is None else mx.where(mask[..., None], x, 0.0)", "return x"),
    ),
    # rotary positions
    Fault(
        "rope_half_split",
        "rotary layout",
        f"{LAYERS}.apply_rotary_pos_emb",
        edit(
            _ROTATE,
            "mx.stack((-rotated[..., 1::2], rotated[..., ::2]), axis=-1).flatten(-2)",
            "mx.concatenate([-mx.split(rotated, 2, axis=-1)[1], mx.split(rotated, 2, axis=-1)[0]], axis=-1)",
        ),
        "transformers 47328",
    ),
    Fault(
        "rope_turns_back",
        "sign",
        f"{LAYERS}.apply_rotary_pos_emb",
        edit(_ROTATE, "(-rotated[..., 1::2], rotated[..., ::2])", "(rotated[..., 1::2], -rotated[..., ::2])"),
    ),
    Fault(
        "rope_on_all_heads",
        "rotary layout",
        f"{LAYERS}.Attention",
        edit(
            f"{_ATTENTION}.project",
            "q, k = apply_rotary",
            "rope = [mx.tile(table, (1, 1, self.heads)) for table in rope]\n            q, k = apply_rotary",
        ),
        "transformers 47328",
    ),
    Fault(
        "rope_on_the_last_head",
        "rotary layout",
        f"{LAYERS}.Attention",
        edit(
            f"{_ATTENTION}.project",
            "q, k = apply_rotary_pos_emb(q, rope), apply_rotary_pos_emb(k, rope)",
            "q, k = (apply_rotary_pos_emb(t[..., ::-1], rope)[..., ::-1] for t in (q, k))",
        ),
        "transformers 47328",
    ),
    Fault(
        "rope_on_queries_only",
        "rotary layout",
        f"{LAYERS}.Attention",
        edit(f"{_ATTENTION}.project", "apply_rotary_pos_emb(k, rope)", "k"),
    ),
    Fault(
        "rope_theta_off_by_a_thousandth",
        "constant",
        f"{LAYERS}.RotaryEmbedding",
        constant("flow.layers:ROTARY_THETA", 10010.0),
    ),
    Fault(
        "rope_exponent_of_half_the_width",
        "constant",
        f"{LAYERS}.RotaryEmbedding",
        edit(
            "flow.layers:rotary_frequencies",
            "np.arange(0, dim, 2, dtype=np.float32)",
            "np.arange(dim // 2, dtype=np.float32)",
        ),
        "mlx-audio-swift 216",
    ),
    Fault(
        "rope_starts_at_one",
        "off by one",
        f"{LAYERS}.RotaryEmbedding",
        edit(
            "flow.layers:RotaryEmbedding.__call__",
            "np.arange(offset, offset + seq_len,",
            "np.arange(offset + 1, offset + seq_len + 1,",
        ),
        equivalent="attention sees how far apart two positions are: each is one later, so that none moves",
    ),
    Fault(
        "rope_ignores_the_offset",
        "cache",
        f"{LAYERS}.RotaryEmbedding",
        edit("flow.layers:RotaryEmbedding.__call__", "np.arange(offset, offset + seq_len,", "np.arange(seq_len,"),
        "mlx 3494",
    ),
)
