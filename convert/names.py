"""Names of tensors as training code writes them, mapped to those of the official file."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import accumulate, takewhile

# What training code adds to a state dict and to its names: a prefix (the original strips `generator.` itself:
# cosyvoice/cli/model.py, load), or wherever a wrapped module stands.
COUNTERS = frozenset({"epoch", "step", "grad_norm"})
# Tensors that users' files often lack, and why they are not needed.
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
    """The key as the official file spells it, without the prefixes of wrappers."""
    key = WRAPPED.sub("", key) if part in PREFIXES else key
    while prefix := next((prefix for prefix in PREFIXES.get(part, ()) if key.startswith(prefix)), ""):
        key = key.removeprefix(prefix)
    return key


def shared_prefixes(keys: Collection[str]) -> list[str]:
    """Common prefixes of all keys, each up to a dot."""
    pairs = zip(min(keys).split(".")[:-1], max(keys).split("."), strict=False)  # all share what these two share
    return list(accumulate(f"{name}." for name, other in takewhile(lambda pair: pair[0] == pair[1], pairs)))
