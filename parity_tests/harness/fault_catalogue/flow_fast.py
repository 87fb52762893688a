"""Faults of the flow decoder's fast paths: what is made once and kept, joined, split or computed in another way."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, constant, edit

FAST = "fast.attention"
_TABLES = "fast.modulation:ModulationTables.add"

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
        "fast.attention.attention",
        constant("fast.arithmetic:LOG2_E", 1.4427),
    ),
    Fault(
        "fast_mish_without_its_square",
        "activation",
        "fast.arithmetic.mish",
        edit("fast.arithmetic:mish_by_exp2", "t = y * (y + 2)", "t = 2 * y"),
    ),
    Fault(
        "fast_softmax_summed_over_queries",
        "normalisation",
        "fast.attention.attention",
        edit("fast.attention:_softmax_product", "weights.sum(axis=-2", "weights.swapaxes(-1, -2).sum(axis=-2"),
    ),
    Fault(
        "keys_joined_before_queries",
        "order",
        "flow.layers.Attention",
        edit(
            "fast.attention:_join", "([layer[name] for layer in layers])", "([layer[name] for layer in layers[::-1]])"
        ),
    ),
    Fault(
        "chunk_without_its_last_key",
        "off by one",
        "flow.dit.DiT",
        edit("fast.attention:attention", "k[:, :, :seen], v[:, :, :seen]", "k[:, :, : seen - 1], v[:, :, : seen - 1]"),
    ),
    Fault(
        "block_of_scores_with_the_first_mask",
        "mask",
        "flow.layers.Attention",
        edit("fast.attention:_attention_by_exp2", "mask[batch, head, :, row]", "mask[batch, head, :, :1]"),
    ),
    Fault(
        "tables_in_reverse",
        "order",
        "flow.dit.DiT",
        edit(_TABLES, "in enumerate(missing)}", "in enumerate(missing[::-1])}"),
    ),
    Fault(
        "baked_table_of_the_time_after",
        "off by one",
        FAST,
        edit("fast.modulation:BakedTimes.rows", "apart.argmin(axis=1)", "(apart.argmin(axis=1) + 1) % len(apart[0])"),
    ),
    Fault(
        "tables_of_old_weights",
        "cache",
        FAST,
        edit(_TABLES, "any(a is not b for", "any(a.shape != b.shape for"),
    ),
    Fault(
        "joined_weights_of_old",
        "cache",
        FAST,
        edit("fast.attention:FusedLinear.__call__", "any(a is not b for", "any(a.shape != b.shape for"),
    ),
)
