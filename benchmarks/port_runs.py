"""What the port runs in each kind of case: a function that prepares a run, and the run is what is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.streams import (
    Outputs,
    chunks_timed,
    fix_length,
    take_tokens,
    take_tokens_together,
    texts_of,
    voice_conversion,
)
from port.batched.decoder import Decoder
from port.batched.flow import flow_row, mels
from port.batched.spoken import Piece, Spoken
from port.batched.together import together
from port.batched.vocoder import waves
from port.llm.sampling import SeededDraws, greedy_sampling, ras_sampling
from port.model import CosyVoice3Model, SynthesisCache
from port.request import Options, Stream
from port.stream.flow import state_bytes

FIRST_TIME = np.float32(0)  # of every schedule
# Ways to stream: the port's; with a voice that it has streamed before; the original's (everything again for each
# chunk); without the original's last chunk.
WAYS = {
    None: {},
    "known_voice": {},
    "recompute": {"incremental": False},
    "causal_final": {"causal_final": True},
}
Run = Callable[[], Outputs]
Inputs = dict[str, Any]  # arrays by the name of the argument
Words = Mapping[str, Any]  # size or options of a case


def prefill(model: CosyVoice3Model, x: Inputs, *_: Any) -> Run:
    return lambda: {"scores": model.llm.step(x["inputs_embeds"], model.llm.qwen2.make_cache())}


def decode(model: CosyVoice3Model, x: Inputs, size: Words, options: Words) -> Run:
    sampling = greedy_sampling if options.get("check") else ras_sampling
    job = model.llm.inference(**x, draws=SeededDraws(0), sampling=sampling, strict_min_length=True)
    return take_tokens(job, size["tokens"])


def batch(model: CosyVoice3Model, x: Inputs, size: Words, options: Words) -> Run:
    """Tokens from one request alone, or from `rows` that decode together: the same one and shorter texts."""
    rows = options.get("rows")
    if rows is None:
        return decode(model, x, size, options)
    sampling = greedy_sampling if options.get("check") else ras_sampling
    decoder, given = Decoder(model.llm, rows), [{**x, "text": x["text"][:, i:]} for i in range(rows)]
    rowed = [decoder.inference(**of, draws=SeededDraws(0), sampling=sampling, strict_min_length=True) for of in given]
    return take_tokens_together(decoder, rowed, size["tokens"] if options.get("check") else size["tokens"] // rows)


def dit(model: CosyVoice3Model, x: Inputs, _: Words, options: Words) -> Run:
    guidance = options.get("guidance", "batched")
    return lambda: {"v": model.flow.decoder.velocity(t=FIRST_TIME, mask=None, **x, guidance=guidance)[0]}


def flow(model: CosyVoice3Model, x: Inputs, size: Words, options: Words) -> Run:
    guidance = options.get("guidance", "batched")
    return lambda: {"mel": model.flow.inference(**x, streaming=size["streaming"], guidance=guidance)}


def vocoder(model: CosyVoice3Model, x: Inputs, *_: Any) -> Run:
    return lambda: {"wav": model.vocoder.inference(**x)[0]}


def token2wav(model: CosyVoice3Model, x: Inputs, *_: Any) -> Run:
    prompt, chance = voice_conversion(x)
    return lambda: {
        "wav": model.token2wav(x["token"], prompt, 0, SynthesisCache(), stream=False, finalize=True, chance=chance)
    }


def networks(model: CosyVoice3Model, x: Inputs, _: Words, options: Words) -> Run:
    (prompt, chance), step = voice_conversion(x), options.get("rows", 1)

    def run() -> Outputs:
        rows, found = [flow_row(model.flow, token[None], prompt, chance.noise) for token in x["token"]], []
        for start in range(0, len(rows), step):
            made = mels(model.flow, rows[start : start + step])
            found += waves(model.vocoder, made, [chance.sine_waves] * len(made))
        return {"wav": mx.concatenate(found)}

    return run


def manifest(model: CosyVoice3Model, x: Inputs, size: Words, options: Words) -> Run:
    (prompt, chance), rows = voice_conversion(x), options.get("rows", 1)
    prompt = replace(prompt, prompt_text=x["prompt_text"], llm_prompt_speech_token=x["prompt_token"])
    texts = texts_of(size)
    fix_length(model.llm)

    def spoken(line: int) -> Spoken:
        chosen = Options(seed=line, noise=chance.noise, sine_waves=chance.sine_waves, strict_min_length=True)
        return Spoken(model, prompt, [Piece({"text": mx.array(texts[line])})], chosen, lambda: None)

    def run() -> Outputs:
        lines = ((line, partial(spoken, line)) for line in range(len(texts)))
        made: dict[int, Any] = dict(together(model, lines, rows))
        return {"samples": [made[line][0]["tts_speech"].shape[1] for line in range(len(texts))]}

    return run


def first(model: CosyVoice3Model, x: Inputs, size: Words, options: Words) -> Run:
    if options.get("way") != "hop":
        return stream(model, x, size, {**options, "chunks": 1})
    # Exactly the work of the first chunk: one hop through both networks, by their plain calls.
    config = model.config
    hop = config.streaming.token_hop_len
    tokens = hop + -size["prompt"] % hop + config.flow.pre_lookahead_len

    def run() -> Outputs:
        ready = {**x, "token": x["token"][:, :tokens]}
        sine_waves = ready.pop("sine_waves")
        mel = model.flow.inference(**ready, streaming=True, finalize=False)
        return {"wav": model.vocoder.inference(mel, finalize=False, sine_waves=sine_waves)[0]}

    return run


def stream(model: CosyVoice3Model, x: Inputs, size: Words, options: Words) -> Run:
    way = options.get("way")
    if way == "offline":
        return token2wav(model, x)
    further, (prompt, chance) = WAYS[way], voice_conversion(x)
    frames = x["noise"].shape[1]
    # Memory for the whole stream and its prompt, whatever the default: we compare the ways, not the limit.
    limit = 2 * state_bytes(model.config.flow, frames)

    def streamed(count: int | None) -> Outputs:
        how = Stream(reset_hop=True, max_cache_bytes=limit, **further)
        chunks = model.tts(prompt, source_speech_token=x["token"], stream=how, chance=chance)
        return chunks_timed(chunks, mx.concatenate, count)

    def run() -> Outputs:
        if way != "known_voice":
            model.stream_memory.clear()
        return streamed(options.get("chunks"))

    if way == "known_voice" and not model.stream_memory.prompts:
        streamed(2)  # the second chunk stores the prompt
    return run


RUNS: dict[str, Callable[..., Run]] = {
    "prefill": prefill,
    "decode": decode,
    "batch": batch,
    "dit": dit,
    "flow": flow,
    "vocoder": vocoder,
    "token2wav": token2wav,
    "networks": networks,
    "manifest": manifest,
    "first": first,
    "stream": stream,
}
