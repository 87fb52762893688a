"""Faults of conversion, configuration and loading that small checkpoints and small merges hide."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault, Patch, constant, edit
from port.frontend.tokenizer import PRETOKENIZE_REGEX

_CONVERT, _CONFIG, _COMMUNITY, _WEIGHTS = "convert", "config", "files.community", "files.weights"
_TOKENIZER, _DRIVER = "frontend.tokenizer", "model.CosyVoice3Model"


def exchanged_in_the_plan(one: str, other: str) -> Patch:
    """Exchange two port parameters, or two groups of them, on every way through the table."""
    return edit(
        "convert.mapping:plan",
        "        sources = tuple(spelled[m] for m in members if m)",
        f"        one, other = {one!r}, {other!r}\n"
        "        part = part and part.replace(one, '@').replace(other, one).replace('@', other)\n"
        "        sources = tuple(spelled[m] for m in members if m)",
    )


def cut_by(old: str, new: str) -> Patch:
    """Another rule for the pieces of a text."""
    assert PRETOKENIZE_REGEX.count(old) == 1, old
    return constant("frontend.tokenizer:PRETOKENIZE_REGEX", PRETOKENIZE_REGEX.replace(old, new))


FAULTS = (
    # the mapping at official depth
    Fault("deep_layers_exchanged", "swapped tensors", _CONVERT, exchanged_in_the_plan(".layers.12.", ".layers.13.")),
    Fault(
        "deep_flow_blocks_exchanged",
        "swapped tensors",
        _CONVERT,
        exchanged_in_the_plan("transformer_blocks.2.", "transformer_blocks.21."),
    ),
    Fault(
        "deep_speaker_layers_exchanged",
        "swapped tensors",
        _CONVERT,
        exchanged_in_the_plan("tdnnd9.cam_layer", "tdnnd10.cam_layer"),
    ),
    # unknown and missing tensors
    Fault(
        "unknown_tensors_without_a_known_ending_pass",
        "unread input",
        _CONVERT,
        edit(
            "convert.checkpoint:read_state_dict",
            "if beside or (key in COUNTERS",
            'if beside or str(key).endswith(".extra") or (key in COUNTERS',
        ),
    ),
    Fault(
        "witness_may_be_missing",
        "unread input",
        _CONVERT,
        edit("convert.audit:prove", "row.part == part and row.part is None", "row.part == part and not row.sources"),
    ),
    # keys of the official text files
    Fault(
        "schedule_of_the_flow_not_read",
        "unread input",
        _CONVERT,
        edit(
            "convert.official:_decoder_config",
            'cfm.expect(solver="euler", t_scheduler="cosine")',
            'cfm.expect(solver="euler")\n    cfm.ignore("t_scheduler")',
        ),
    ),
    Fault(
        "rotary_base_of_the_backbone_not_read",
        "unread input",
        _CONVERT,
        edit(
            "convert.qwen2:qwen2_config",
            "    config = from_dict(Qwen2Config, values",
            '    values.pop("rope_theta", None)\n    config = from_dict(Qwen2Config, values',
        ),
    ),
    Fault(
        "missing_keys_take_the_ports_defaults",
        "unread input",
        _CONVERT,
        edit("convert.arguments:Arguments.take", "if self.complete and (", "if False and ("),
    ),
    # fields of config.json
    Fault(
        "streaming_section_not_read",
        "unread input",
        _CONFIG,
        edit("config:CosyVoice3Config.from_dict", '"provenance"):', '"provenance", "streaming"):'),
    ),
    Fault(
        "chunks_always_doubled",
        "constant",
        _DRIVER,
        edit("model:CosyVoice3Model._chunks", "config.stream_scale_factor * token_hop_len", "2 * token_hop_len"),
    ),
    # heads, which no shape shows
    Fault(
        "heads_of_the_weights_not_compared",
        "heads",
        _WEIGHTS,
        edit("files.weights:check_heads", "!= wanted:", '== "":'),
    ),
    Fault("community_heads_of_32", "heads", _COMMUNITY, constant("files.community_config:HEAD_DIM", 32)),
    Fault(
        "community_heads_not_read",
        "heads",
        _COMMUNITY,
        edit(
            "files.community_config:_tokenizer",
            'hearing.get("n_audio_head", max(1, dim // HEAD_DIM))',
            "max(1, dim // HEAD_DIM)",
        ),
    ),
    # the tokenizer's pieces before merging
    Fault("marks_are_letters", "token ids", _TOKENIZER, cut_by(r"?\p{L}+", r"?[\p{L}\p{M}]+")),
    Fault("contractions_in_small_letters_alone", "token ids", _TOKENIZER, cut_by("(?i:", "(?:")),
    Fault(
        "line_ends_apart_from_signs", "token ids", _TOKENIZER, cut_by(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}]+")
    ),
    Fault("spaces_not_left_to_the_next_word", "token ids", _TOKENIZER, cut_by(r"|\s+(?!\S)", "")),
)
