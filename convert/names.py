"""Names of tensors as training code leaves them, and the official file's."""

from __future__ import annotations

import re

# What training code puts beside a state dict, and into its names: in front (the original strips `generator.` itself:
# cosyvoice/cli/model.py, load), or wherever a wrapped module stands.
COUNTERS = frozenset({"epoch", "step", "grad_norm"})
# Tensors without which people's files come, and what that costs.
MAY_LACK = {
    "llm.model.lm_head.weight": "it is tied to embed_tokens and never used",
    "decoder.estimator.rotary_embed.inv_freq": "only cosyvoice3.yaml shows how wide a head is",
}
PREFIXES = {"hift": ("module.", "generator."), "llm": ("module.",), "flow": ("module.",)}
WRAPPED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
ADAPTER = re.compile(r"(^|\.)(lora_\w+|lora|base_layer|hada_\w+|lokr_\w+|oft_\w+|ia3_\w+|modules_to_save)(\.|$)")


def strip_prefixes(part: str, key: str) -> str:
    """The key as the official file spells it, without the names of wrapped modules."""
    key = WRAPPED.sub("", key) if part in PREFIXES else key
    while prefix := next((prefix for prefix in PREFIXES.get(part, ()) if key.startswith(prefix)), ""):
        key = key.removeprefix(prefix)
    return key
