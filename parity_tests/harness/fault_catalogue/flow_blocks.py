"""Faults of the norms, the attention and the blocks of the diffusion transformer, and of its unused units."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, constant, edit

LAYERS = "flow.layers"
_ADALN, _FINAL = "flow.layers:AdaLayerNormZero", "flow.layers:AdaLayerNormZero_Final"
_ATTENTION, _BLOCK = "flow.layers:Attention", "flow.layers:DiTBlock"

FAULTS = (
    # units
    Fault(
        "grn_over_channels",
        "normalisation",
        f"{LAYERS}.GRN",
        edit("flow.layers:GRN.__call__", "mx.sum(x * x, axis=1,", "mx.sum(x * x, axis=2,"),
    ),
    Fault(
        "grn_without_residual",
        "missing step",
        f"{LAYERS}.GRN",
        edit("flow.layers:GRN.__call__", "+ self.beta + x", "+ self.beta"),
    ),
    Fault("grn_eps_1e-5", "epsilon", f"{LAYERS}.GRN", edit("flow.layers:GRN.__call__", "1e-6", "1e-5")),
    Fault(
        "convnext_tanh_gelu",
        "activation",
        f"{LAYERS}.ConvNeXtV2Block",
        edit("flow.layers:ConvNeXtV2Block.__call__", "nn.gelu(", "nn.gelu_approx("),
    ),
    # norms
    Fault("layer_norm_eps_1e-5", "epsilon", f"{LAYERS}.AdaLayerNormZero", constant("flow.layers:LAYER_NORM_EPS", 1e-5)),
    Fault(
        "adaln_eps_1e-5",
        "epsilon",
        f"{LAYERS}.AdaLayerNormZero",
        edit(f"{_ADALN}.__init__", "eps=LAYER_NORM_EPS", "eps=1e-5"),
    ),
    Fault(
        "adaln_final_eps_1e-5",
        "epsilon",
        f"{LAYERS}.AdaLayerNormZero_Final",
        edit(f"{_FINAL}.__init__", "eps=LAYER_NORM_EPS", "eps=1e-5"),
    ),
    Fault(
        "block_norm_eps_1e-5",
        "epsilon",
        f"{LAYERS}.DiTBlock",
        edit(f"{_BLOCK}.__init__", "eps=LAYER_NORM_EPS", "eps=1e-5"),
    ),
    Fault(
        "adaln_scale_before_shift",
        "order",
        f"{LAYERS}.AdaLayerNormZero",
        edit(f"{_ADALN}.__call__", "shift_msa, scale_msa, gate_msa,", "scale_msa, shift_msa, gate_msa,"),
    ),
    Fault(
        "adaln_final_shift_before_scale",
        "order",
        f"{LAYERS}.AdaLayerNormZero_Final",
        edit(f"{_FINAL}.__call__", "scale, shift = self", "shift, scale = self"),
    ),
    Fault(
        "adaln_without_one_plus",
        "missing step",
        f"{LAYERS}.AdaLayerNormZero",
        edit(f"{_ADALN}.__call__", "(1 + scale_msa[:, None])", "scale_msa[:, None]"),
    ),
    Fault(
        "adaln_without_silu",
        "activation",
        f"{LAYERS}.AdaLayerNormZero",
        edit(f"{_ADALN}.modulation", "self.silu(emb)", "emb"),
    ),
    Fault(
        "adaln_final_in_half_precision",
        "precision",
        f"{LAYERS}.AdaLayerNormZero_Final",
        edit(f"{_FINAL}.__call__", "self.norm(x)", "self.norm(x.astype(mx.float16))"),
        "mobius 42",
    ),
    # feed-forward
    Fault(
        "gelu_always_tanh",
        "activation",
        f"{LAYERS}.FeedForward",
        edit(f"{LAYERS}:FeedForward.__init__", "nn.GELU(approximate)", 'nn.GELU("tanh")'),
    ),
    Fault(
        "gelu_constant_off_by_a_thousandth",
        "constant",
        "fast.arithmetic.gelu_tanh",
        constant("fast.arithmetic:TANH_CUBE", 0.044760),
    ),
    Fault(
        "block_with_erf_gelu",
        "activation",
        f"{LAYERS}.DiTBlock",
        edit(f"{_BLOCK}.__init__", 'approximate="tanh"', 'approximate="none"'),
    ),
    # attention
    Fault(
        "attention_scale_of_the_whole_width",
        "normalisation",
        f"{LAYERS}.Attention",
        edit(f"{_ATTENTION}.attend", "scale=q.shape[-1] ** -0.5", "scale=(q.shape[-1] * self.heads) ** -0.5"),
    ),
    Fault(
        "attention_scale_off_by_a_thousandth",
        "constant",
        f"{LAYERS}.Attention",
        edit(f"{_ATTENTION}.attend", "scale=q.shape[-1] ** -0.5", "scale=1.001 * q.shape[-1] ** -0.5"),
    ),
    Fault(
        "attention_in_tf32",
        "precision",
        f"{LAYERS}.Attention",
        edit(
            f"{_ATTENTION}.attend",
            "swapaxes(1, 2) for t in (q, k, v))",
            "swapaxes(1, 2).astype(mx.float16).astype(mx.float32) for t in (q, k, v))",
        ),
        "mlx 3534",
    ),
    Fault(
        "attention_sees_padding",
        "mask",
        f"{LAYERS}.Attention",
        edit(f"{_ATTENTION}.attend", "scale=q.shape[-1] ** -0.5, mask=mask", "scale=q.shape[-1] ** -0.5"),
    ),
    Fault(
        "attention_padding_not_zeroed",
        "mask",
        f"{LAYERS}.Attention",
        edit(f"{_ATTENTION}.__call__", "return mx.where(frames[:, -x.shape[1] :, None], y, 0.0)", "return y"),
    ),
    Fault(
        "attention_frame_mask_of_the_first_query",
        "mask",
        f"{LAYERS}.Attention",
        edit(f"{_ATTENTION}.__call__", "mask[:, 0, -1]", "mask[:, 0, 0]"),
    ),
    Fault(
        "attention_blind_query_gets_the_mean",
        "mask",
        f"{LAYERS}.Attention",
        edit(f"{_ATTENTION}.attend", "y = mx.where(mask.any(axis=-1, keepdims=True), y, 0.0)", "pass"),
    ),
    Fault(
        "attention_heads_and_channels_exchanged",
        "heads",
        f"{LAYERS}.Attention",
        edit(f"{_ATTENTION}.attend", "y.swapaxes(1, 2).flatten(-2)", "y.transpose(0, 2, 3, 1).flatten(-2)"),
    ),
    # block
    Fault(
        "block_gates_exchanged",
        "swapped",
        f"{LAYERS}.DiTBlock",
        edit(
            f"{_BLOCK}.__call__",
            "y, gate_msa, shift_mlp, scale_mlp, gate_mlp =",
            "y, gate_mlp, shift_mlp, scale_mlp, gate_msa =",
        ),
    ),
    Fault(
        "block_without_attention_gate",
        "missing step",
        f"{LAYERS}.DiTBlock",
        edit(f"{_BLOCK}.__call__", "gate_msa[:, None] * self.attn", "self.attn"),
    ),
    Fault(
        "block_second_norm_missing",
        "missing step",
        f"{LAYERS}.DiTBlock",
        edit(f"{_BLOCK}.__call__", "self.ff_norm(x)", "x"),
    ),
    Fault(
        "block_rope_missing",
        "missing step",
        f"{LAYERS}.DiTBlock",
        edit(f"{_BLOCK}.__call__", "mask=mask, rope=rope, ", "mask=mask, "),
    ),
)
