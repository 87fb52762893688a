"""Which part a fault belongs to, and in which order the parts' tests run for it.

A test says by `@pytest.mark.part("stream.memory")` which part its failure names; nothing here refers to a test.
"""

from __future__ import annotations

from functools import cache

from parity_tests.cases import all_cases
from parity_tests.parts import PARTS

# Prefix of a group of parts -> other groups whose tests run for it too. Smallest groups first: tests run in this
# order, so that the smallest wrong part is named.
GROUPS: dict[str, tuple[str, ...]] = {
    "convert.transforms": ("convert",),
    "frontend.text": (),
    "frontend.tokenizer": (),
    "frontend": (),
    "frontend.frontend": ("cosyvoice3",),
    "llm.sampling": ("llm",),
    "llm": ("llm.sampling",),
    "batched.cache": (),
    "batched.decoder": (),
    "fast.sampling": ("llm.sampling",),
    "fast.precision": (),
    "fast.attention": ("fast", "flow"),
    "fast.convolution": (),
    "fast.layout": (),
    "fast.cores": (),
    "fast.arithmetic": ("fast", "flow", "vocoder"),
    "flow": ("fast",),
    "vocoder": ("fast",),
    "fast": ("flow", "vocoder"),
    "noise": (),
    "stream.memory": (),
    "stream.flow": (),
    "stream.vocoder": (),
    "stream.threads": (),
    "batched.rows": (),
    "batched.flow": (),
    "batched.vocoder": (),
    "batched.together": (),
    "files.weights": (),
    "files.community": (),
    "config": ("convert",),
    "convert": ("files.weights",),
    "convert.run": ("convert",),
    "convert.onnx": (),
    "convert.layouts": (),
    "convert.quantize": (),
    "convert.bake": (),
    "files": (),
    "model.drop_silence": ("model",),
    "model.interpolate": ("model",),
    "model": ("model.drop_silence", "model.interpolate", "cosyvoice3"),
    "cosyvoice3": (),
    "app": (),
}
# Part -> prefixes of the isolated cases that run for it, in this order; by default those of its own package.
CASES: dict[str, tuple[str, ...]] = {
    "convert": ("",),
    "flow": ("flow.", "fast."),
    "fast": ("fast.", "flow.", "llm.", "vocoder."),
    "fast.sampling": ("llm.",),
    "fast.layout": (),  # every linear layer has it
    "fast.cores": (),
    "stream.flow": ("flow.", "fast."),
    "stream.vocoder": ("vocoder.",),
    "batched": (),
}
# Package -> groups whose tests run before its isolated cases, which depend on them.
BEFORE = {"convert": ("convert.transforms",)}
# Parts that tests name and that have no isolated case.
WITHOUT_CASES = frozenset(
    {
        *("frontend.audio", "frontend.frontend", "frontend.text", "frontend.tokenizer"),
        *("llm.sampling", "llm.speech_lm.CosyVoice3LM"),
        *(
            "fast.arithmetic",
            "fast.attention",
            "fast.convolution",
            "fast.cores",
            "fast.layout",
            "fast.precision",
            "fast.sampling",
        ),
        *("stream.flow.StreamingFlow", "stream.memory", "stream.threads", "stream.vocoder.StreamingVocoder"),
        *("batched.cache", "batched.decoder", "batched.rows", "batched.flow", "batched.vocoder", "batched.together"),
        *("config", "convert", "convert.bake", "convert.layouts", "convert.onnx", "convert.quantize"),
        *("convert.run", "convert.transforms", "files", "files.community", "files.weights", "app"),
        *("noise", "model.CosyVoice3Model", "model.drop_silence", "model.interpolate", "cosyvoice3"),
    }
)
STAGES = ("llm", "flow", "vocoder", "model")  # named by walks
# Other names that tests may use; no fault of the port belongs to them.
ASIDE = ("reference", "liveness", "faults")


def is_part(path: str) -> bool:
    """Whether a test may name it."""
    return path in PARTS or path in WITHOUT_CASES or path in STAGES or path in ASIDE


def part_of(where: str) -> str | None:
    """The smallest known part that `module:qualified.name` lies in; None if there is none."""
    words = where.replace(":", ".").split(".")
    paths = [".".join(words[:n]) for n in range(len(words), 0, -1)]
    return next((path for path in paths if path in PARTS or path in WITHOUT_CASES), None)


def group_of(part: str) -> str | None:
    """The group of a part: the longest prefix of its path."""
    return _longest(GROUPS, part)


def cases_of(part: str) -> tuple[str, ...]:
    """Prefixes of the parts whose isolated cases run for a fault in `part`."""
    found = _longest(CASES, part)
    return CASES[found] if found else (f"{part.split('.')[0]}.",)


@cache
def place(part: str) -> tuple[int, int]:
    """Sort key of a part: its group, then the order of the isolated cases; parts without one come last."""
    paths = list(dict.fromkeys(case.part.path for case in all_cases()))
    group = group_of(part)
    at = paths.index(part) if part in paths else len(paths) + (part in STAGES)
    return list(GROUPS).index(group) if group else len(GROUPS), at


def _longest(beginnings: dict[str, tuple[str, ...]], part: str) -> str | None:
    found = [b for b in beginnings if part == b or part.startswith(f"{b}.")]
    return max(found, key=len, default=None)
