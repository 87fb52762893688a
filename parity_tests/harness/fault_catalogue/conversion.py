"""Faults of the way from the official files to the port: a tensor swapped, dropped, rounded, or left as it was."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, Patch, edit

_CONVERT, _FOLD = "convert.mapping:convert", "convert.transforms:fold_weight_norm"
_BLOCK, _DIT = "flow.layers.DiTBlock", "flow.dit.DiT"


def wrong(suffix: str, value: str) -> Patch:
    """Put another value, an expression of `result`, where a port parameter's name ends with `suffix`."""
    return edit(
        _CONVERT,
        "done.tensors[step.target] = result",
        f"done.tensors[step.target] = {value} if step.target.endswith({suffix!r}) else result",
    )


def exchanged(one: str, other: str) -> Patch:
    """Exchange two port parameters, or two groups of them, by a piece of their names."""
    return edit(
        _CONVERT,
        "    return done",
        f"    done.tensors = {{k.replace({one!r}, '@').replace({other!r}, {one!r}).replace('@', {other!r}): v "
        "for k, v in done.tensors.items()}\n    return done",
    )


FAULTS = (
    Fault(
        "bias_of_queries_dropped",
        "dropped tensor",
        "flow.layers.Attention",
        wrong("to_q.bias", "0 * result"),
        "mlx-audio-swift 216",
    ),
    Fault(
        "bias_of_lookahead_dropped",
        "dropped tensor",
        "flow.lookahead.PreLookaheadLayer",
        wrong("pre_lookahead_layer.conv2.bias", "0 * result"),
        "mlx-audio-swift 216",
    ),
    Fault(
        "bias_of_upsampling_dropped",
        "dropped tensor",
        "vocoder.convolution.CausalConv1dUpsample",
        wrong("ups.0.bias", "0 * result"),
        "mlx-audio-swift 216",
    ),
    Fault("alpha_left_at_one", "tensor left at init", "vocoder.generator.Snake", wrong("alpha", "result ** 0")),
    Fault(
        "norm_weight_left_at_one",
        "tensor left at init",
        "llm.qwen2.Qwen2RMSNorm",
        wrong("layernorm.weight", "result ** 0"),
    ),
    Fault(
        "second_layer_left_at_zero",
        "tensor left at init",
        "llm.qwen2.Qwen2Model",
        wrong("layers.1.mlp.down_proj.weight", "0 * result"),
        "CosyVoice3-MNN",
    ),
    Fault("query_rows_reversed", "transpose", "llm.qwen2.Qwen2Attention", wrong("q_proj.weight", "result[::-1]")),
    Fault("gate_and_up_weights_exchanged", "swapped tensors", "llm.qwen2.Qwen2MLP", exchanged("gate_proj", "up_proj")),
    Fault("flow_queries_and_keys_exchanged", "swapped tensors", "flow.layers.Attention", exchanged("to_q", "to_k")),
    Fault("blocks_exchanged", "swapped tensors", _DIT, exchanged("transformer_blocks.0", "transformer_blocks.1")),
    Fault("llm_layers_exchanged", "swapped tensors", "llm.qwen2.Qwen2Model", exchanged("layers.0", "layers.1")),
    Fault(
        "residual_convolutions_exchanged",
        "swapped tensors",
        "vocoder.generator.ResBlock",
        exchanged("convs1", "convs2"),
    ),
    Fault(
        "snakes_exchanged", "swapped tensors", "vocoder.generator.ResBlock", exchanged("activations1", "activations2")
    ),
    Fault(
        "pitch_layers_exchanged",
        "swapped tensors",
        "vocoder.f0.CausalConvRNNF0Predictor",
        exchanged("condnet.2", "condnet.3"),
    ),
    Fault(
        "position_convolutions_exchanged",
        "swapped tensors",
        "flow.layers.CausalConvPositionEmbedding",
        exchanged("conv_pos_embed.conv1", "conv_pos_embed.conv2"),
    ),
    Fault(
        "weight_norm_in_half_precision",
        "precision",
        "convert.transforms",
        edit(
            _FOLD,
            "return gain * (direction / norm)",
            "return (gain.astype(np.float16) * (direction / norm).astype(np.float16)).astype(np.float32)",
        ),
    ),
    Fault(
        "weight_norm_not_divided",
        "normalisation",
        "convert.transforms",
        edit(_FOLD, "gain * (direction / norm)", "gain * direction"),
    ),
    Fault(
        "weight_norm_of_all_channels_at_once",
        "normalisation",
        "convert.transforms",
        edit(
            _FOLD,
            "np.sqrt((flat * flat).sum(axis=1))[:, None, None]",
            "np.sqrt((direction * direction).sum(axis=(1, 2)).mean() * np.ones((len(direction), 1, 1), np.float32))",
        ),
    ),
    Fault(
        "weight_norm_with_epsilon",
        "epsilon",
        "convert.transforms",
        edit(_FOLD, "np.sqrt((flat * flat).sum(axis=1))", "np.sqrt((flat * flat).sum(axis=1) + 1e-5)"),
    ),
    Fault(
        "taps_reversed",
        "transpose",
        "vocoder.convolution.CausalConv1dDownSample",
        wrong("source_downs.0.weight", "result[:, ::-1]"),
    ),
    Fault(
        "lookahead_taps_reversed",
        "transpose",
        "flow.lookahead.PreLookaheadLayer",
        wrong("pre_lookahead_layer.conv1.weight", "result[:, ::-1]"),
    ),
    Fault(
        "linear_transposed",
        "transpose",
        "flow.layers.TimestepEmbedding",
        wrong("time_embed.linear_2.weight", "result.T"),
    ),
    Fault(
        "one_row_of_the_speech_table",
        "dropped tensor",
        "flow.decoder.CausalMaskedDiffWithDiT.inference",
        wrong("flow.input_embedding.weight", "result * (np.arange(len(result)) != 60)[:, None]"),
    ),
    Fault(
        "one_row_of_the_language_models_table",
        "dropped tensor",
        "llm.speech_lm.CosyVoice3LM.prepare_input",
        wrong("llm.speech_embedding.weight", "result * (np.arange(len(result)) != 42)[:, None]"),
    ),
    Fault(
        "weights_in_half_precision",
        "precision",
        "frontend.speech_tokenizer.FSMNMultiHeadAttention",
        edit(
            _CONVERT,
            "done.tensors[step.target] = result",
            "done.tensors[step.target] = result.astype(np.float16).astype(np.float32)",
        ),
        "sglang-omni 1713",
    ),
    Fault(
        "rotary_table_not_checked",
        "dropped tensor",
        "convert",
        edit("convert.transforms:_rotary_constant", "4 * np.finfo(np.float32).eps", "np.inf"),
    ),
    Fault(
        "tied_head_not_checked",
        "dropped tensor",
        "convert",
        edit("convert.transforms:_equal_to_witness", "not np.array_equal(copy, original)", "False"),
    ),
    Fault(
        "onnx_padding_count_not_read",
        "configuration",
        "convert",
        edit("convert.onnx_weights:read_speaker", "divide_by_full_segment=divides", "divide_by_full_segment=True"),
    ),
    Fault(
        "onnx_stride_taken_for_granted",
        "configuration",
        "convert",
        edit("convert.onnx_ops:check_conv", 'values.get("strides", ones)', 'wanted["strides"]'),
    ),
    Fault(
        "onnx_constants_taken_for_granted",
        "configuration",
        "convert",
        edit("convert.onnx_weights:read_speech_tokenizer", "    prove_speech_tokenizer(graph, weights)\n", ""),
    ),
)
