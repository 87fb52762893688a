"""`config.json` of the language model's backbone, as transformers 4 and 5 save it."""

from __future__ import annotations

from typing import Any

from convert.arguments import Arguments
from port.config import Qwen2Config, from_dict
from port.files.errors import Refused, brief

# Written for every transformers model; decoders do not read them.
SAVED_BESIDE = (
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "use_mrope",
)


def qwen2_config(content: dict[str, Any], where: str = "qwen2", complete: bool = False) -> Qwen2Config:
    """`config.json` of a Qwen2 model (transformers `Qwen2Config`) as a `Qwen2Config`.

    Raises:
        Refused: a key or a value that the port has no counterpart for.
    """
    given = Arguments(where, content, complete)
    if "rope_parameters" in given.values:  # transformers 5
        rope = Arguments(f"{where}.rope_parameters", given.require("rope_parameters"))
        theta = rope.require("rope_theta")
        rope.allow(rope_type="default")
        rope.done()
        if given.values.setdefault("rope_theta", theta) != theta:
            raise Refused(f"{where}.rope_theta: differs from rope_parameters")
    values = given.take(*Qwen2Config.__dataclass_fields__)
    layers, head = given.values.pop("layer_types", None), given.values.pop("head_dim", None)
    given.allow(
        model_type="qwen2", hidden_act="silu", tie_word_embeddings=True, use_sliding_window=False, rope_scaling=None
    )
    given.ignore("architectures", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
    given.ignore("initializer_range", "max_position_embeddings", "max_window_layers", "sliding_window")
    given.ignore("torch_dtype", "dtype", "transformers_version", *SAVED_BESIDE)
    given.done()
    config = from_dict(Qwen2Config, values, f".{where}")
    if config.hidden_size % config.num_attention_heads or config.head_dim % 2:
        raise Refused(f"{where}.num_attention_heads: {config.num_attention_heads} heads do not divide hidden_size")
    if config.num_attention_heads % config.num_key_value_heads:
        raise Refused(f"{where}.num_key_value_heads: {config.num_key_value_heads} does not divide the heads")
    if layers is not None and layers != ["full_attention"] * config.num_hidden_layers:
        raise Refused(f"{where}.layer_types: only full_attention is supported, in every layer")
    if head not in (None, config.head_dim):
        raise Refused(f"{where}.head_dim: {brief(head)} is not hidden_size / num_attention_heads")
    return config
