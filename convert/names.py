"""Names of tensors as training code leaves them, and the official file's."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import accumulate, takewhile

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
# Prefixes of peft's methods.
_ADAPTERS = "lora|hada|lokr|b?oft|ia3|vera|vblora|randlora|fourierft|hra|bone|miss|shira|c3a|road|ln_tuning|poly"
ADAPTER = re.compile(rf"(^|\.)(({_ADAPTERS}|trainable_tokens)_\w+|lora|base_layer|modules_to_save)(\.|$)")


def strip_prefixes(part: str, key: str) -> str:
    """The key as the official file spells it, without the names of wrapped modules."""
    key = WRAPPED.sub("", key) if part in PREFIXES else key
    while prefix := next((prefix for prefix in PREFIXES.get(part, ()) if key.startswith(prefix)), ""):
        key = key.removeprefix(prefix)
    return key


def shared_prefixes(keys: Collection[str]) -> list[str]:
    """What all keys begin with, up to each of its dots."""
    pairs = zip(min(keys).split(".")[:-1], max(keys).split("."), strict=False)  # what these share is shared by all
    return list(accumulate(f"{name}." for name, other in takewhile(lambda pair: pair[0] == pair[1], pairs)))
