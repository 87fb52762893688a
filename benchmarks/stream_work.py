"""Plot the work of a stream against its length, counted and not timed.

A tiny model streams tokens, and counts the frames that pass through the Euler steps of the flow decoder. Their number
depends on the lengths alone, so the plot holds for every size, device and checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from benchmarks.plots import lines
from port.fast import speed_up
from port.files.strict import TOKENS_PER_SECOND
from port.model import CosyVoice3Model, SynthesisCache
from port.request import Prompt, Stream
from reference.synthesize import tiny_config

PROMPT_SECONDS = 10
SECONDS = (1, 2, *range(5, 61, 5))
WAYS = {
    "everything again for each chunk, as the original": Stream(reset_hop=True, incremental=False),
    "the port: new frames, then one whole pass for the last chunk": Stream(reset_hop=True),
    "the port with causal_final: new frames only": Stream(reset_hop=True, causal_final=True),
}


class Counted(CosyVoice3Model):
    """A model that keeps the cache of its last request."""

    cache: SynthesisCache

    def token2wav(self, *args: Any, **named: Any) -> mx.array:
        """As in `CosyVoice3Model`."""
        self.cache = named["cache"]
        return super().token2wav(*args, **named)


def counted() -> Counted:
    """A model with one block and one Euler step: the count does not depend on them."""
    sizes = tiny_config()
    flow = replace(sizes.flow, dit=replace(sizes.flow.dit, depth=1), cfm=replace(sizes.flow.cfm, n_timesteps=1))
    model = Counted(replace(sizes, flow=flow))
    speed_up(model)
    return model


def passes(model: Counted, seconds: float, stream: Stream) -> float:
    """Frames that a stream of this length computes, over those of one pass over its prompt and speech."""
    flow, before = model.config.flow, PROMPT_SECONDS * TOKENS_PER_SECOND
    count = round(seconds * TOKENS_PER_SECOND)
    prompt = Prompt(
        mx.ones((1, flow.spk_embed_dim)),
        flow_prompt_speech_token=np.zeros((1, before), np.int32),
        prompt_speech_feat=mx.zeros((1, before * flow.token_mel_ratio, flow.output_size)),
    )
    model.stream_memory.clear()  # a prompt of the stream before would save work
    for _ in model.tts(prompt, source_speech_token=np.zeros((1, count), np.int32), stream=stream):
        pass
    return model.cache.work.frames / ((before + count) * flow.token_mel_ratio)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream_work", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.svg", help="file to write")
    out = parser.parse_args().out
    model = counted()
    found = {}
    for name, stream in WAYS.items():
        found[name] = [(s, passes(model, s, stream)) for s in tqdm(SECONDS, desc=name, file=sys.stderr)]
        print(f"{name}: " + ", ".join(f"{s} s {v:.2f}" for s, v in found[name]))
    lines(found, "seconds of speech", f"frames computed, over one pass; prompt of {PROMPT_SECONDS} s", out)


if __name__ == "__main__":
    main()
