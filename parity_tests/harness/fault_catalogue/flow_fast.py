"""Faults of the flow decoder's fast forms: what is made once, joined, split or computed in another way."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, constant, edit

CFM = "flow.matching.CausalConditionalCFM"
FAULTS = (
    Fault(
        "exponential_of_degree_three",
        "constant",
        "fast.arithmetic.exp2",
        constant("fast.arithmetic:EXP_DEGREE", 3),
    ),
    Fault(
        "exponential_with_a_short_logarithm",
        "constant",
        "fast.attention.attention_in_blocks",
        constant("fast.arithmetic:LOG2_E", 1.4427),
    ),
    Fault(
        "fast_mish_without_its_square",
        "activation",
        "fast.arithmetic.mish",
        edit("fast.arithmetic:mish", "t = y * (y + 2)", "t = 2 * y"),
    ),
    Fault(
        "fast_softmax_summed_over_queries",
        "normalisation",
        "fast.attention.attention_in_blocks",
        edit("fast.attention:_softmax_product", "weights.sum(axis=-2", "weights.swapaxes(-1, -2).sum(axis=-2"),
    ),
    Fault(
        "keys_joined_before_queries",
        "order",
        "flow.layers.Attention",
        edit(
            "fast.attention:_joined", "([layer[name] for layer in layers])", "([layer[name] for layer in layers[::-1]])"
        ),
    ),
    Fault(
        "chunk_without_its_last_key",
        "off by one",
        "flow.dit.DiT",
        edit("fast.attention:by_chunks", "k[:, :, :seen], v[:, :, :seen]", "k[:, :, : seen - 1], v[:, :, : seen - 1]"),
    ),
    Fault(
        "block_of_scores_with_the_first_mask",
        "mask",
        "flow.layers.Attention",
        edit("fast.attention:attention_in_blocks", "mask[batch, head, :, row]", "mask[batch, head, :, :1]"),
    ),
    Fault(
        "fast_attention_sees_padding",
        "mask",
        "flow.layers.Attention",
        edit(
            "fast.attention:FastAttention.attend", "self.softmax(q, k, v, scale, mask)", "self.softmax(q, k, v, scale)"
        ),
    ),
    Fault(
        "fast_attention_blind_query_gets_the_mean",
        "mask",
        "flow.layers.Attention",
        edit(
            "fast.attention:FastAttention.attend",
            "y = mx.where(mask.any(axis=-1, keepdims=True), y, 0.0)",
            "pass",
        ),
    ),
    Fault(
        "fast_attention_without_rotary_keys",
        "rotary",
        "flow.layers.Attention",
        edit("fast.attention:FastAttention.project", "apply_rotary_pos_emb(k, rope)", "k"),
    ),
    Fault(
        "tables_in_reverse",
        "order",
        CFM,
        edit("fast.modulation:tables", "mx.array(times, mx.float32)", "mx.array(times[::-1], mx.float32)"),
    ),
    Fault(
        "unknown_time_takes_the_nearest_row",
        "schedule",
        f"{CFM}.velocity",
        edit("fast.modulation:TimeTable.__call__", "> SAME_TIME", "> 1"),
    ),
    Fault(
        "baked_table_of_the_time_after",
        "off by one",
        CFM,
        edit(
            "fast.modulation:TimeTable.__call__",
            "apart.argmin(axis=1).astype",
            "((apart.argmin(axis=1) + 1) % len(apart[0])).astype",
        ),
    ),
    Fault(
        "rotary_tables_of_the_position_after",
        "rotary",
        "flow.dit.DiT",
        edit(
            "fast.modulation:RotaryTables.tables",
            "self.cos[:, offset:end], self.sin[:, offset:end]",
            "self.cos[:, offset:end], self.sin[:, offset + 1 : end + 1]",
        ),
    ),
)
