"""Golden files of the model driver: several requests on one object, and the silent-token filter.

Each function runs on either side, like those of `functions.py`. They also check values that are no tensors: lengths of
the chunks, the calls of the two networks, and how the hop grows.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import Any

import numpy as np

from convert.official import flow_config, vocoder_config
from mlx_parity.adapter import Side
from mlx_parity.record import Arrays, Recorded, RecordError
from parity_tests.parts import PARTS, recorded, swap
from port.config import CosyVoice3Config, LLMConfig, Qwen2Config, SpeakerConfig, SpeechTokenizerConfig, StreamingConfig
from port.request import Chance, Prompt, Stream

FLOW, VOCODER = "flow.decoder.CausalMaskedDiffWithDiT.inference", "vocoder.generator.CausalHiFTGenerator.inference"
# The file has no weights for these parts; voice conversion from tokens does not use them.
UNUSED: dict[str, Any] = {
    "llm": LLMConfig(qwen2=Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                       num_attention_heads=2, num_key_value_heads=1), speech_token_size=8),
    "speech_tokenizer": SpeechTokenizerConfig(dim=16, heads=2, depth=1),
    "speaker": SpeakerConfig(head_channels=2, init_channels=8, growth_rate=4, bottleneck_channels=8, block_layers=(1,),
                             block_dilations=(1,)),
}  # fmt: skip


def model_tts_vc(file: Recorded, side: Side) -> Arrays:
    """Run the requests of `call.rounds` in turn on one object, with given tokens.

    Raises:
        RecordError: chunk lengths, runs of the networks or the hop differ from the original's.
    """
    found, seen = requests(file, side)
    for what, value in seen.items():
        if value != file.call.get(what):
            raise RecordError(f"{what}: {value}, the original has {file.call.get(what)}")
    return found


def requests(file: Recorded, side: Side) -> tuple[Arrays, dict[str, list[Any]]]:
    """Chunks and mels by golden name; and what `call` records: chunk lengths, calls of the networks, the hop."""
    config = CosyVoice3Config(
        flow=flow_config(file.config["flow"]), vocoder=vocoder_config(file.config["hift"]), **UNUSED
    )
    model = side.get("model.CosyVoice3Model")(config)
    for attribute, (part, path) in {"flow": ("flow", FLOW), "vocoder": ("hift", VOCODER)}.items():
        state = {k.removeprefix(f"{part}."): v for k, v in file.weights.items() if k.startswith(f"{part}.")}
        setattr(model, attribute, side.build(PARTS[path], asdict(getattr(config, attribute)), state))
    model.eval()
    given = {
        "flow_embedding": "embedding",
        "flow_prompt_speech_token": "prompt_token",
        "prompt_speech_feat": "prompt_feat",
    }
    voice = {field: side.tensor(file.inputs[name]) for field, name in given.items() if name in file.inputs}
    inputs = {"prompt": Prompt(**voice), "source_speech_token": side.tensor(file.inputs["source_speech_token"])}
    tile = file.inputs["sine_waves_tile"]
    slowest = min([1.0, *(options.get("speed", 1.0) for options in map(request, file.call["rounds"]))])
    tokens = file.inputs["source_speech_token"].shape[1] / slowest
    samples = math.ceil(config.vocoder.hop_samples * config.flow.token_mel_ratio * tokens)
    inputs["chance"] = Chance(sine_waves=side.tensor(np.tile(tile, (1, -(-samples // tile.shape[1]), 1))))
    with recorded(side.package, model) as recorder:  # incremental streams, below, compute less
        found, seen = _rounds(model, file, side, inputs, incremental=False)
    if side.package == "port":
        model.token_hop_len = config.streaming.token_hop_len
        streamed, chunks = _rounds(model, file, side, inputs, incremental=True)
        if chunks != seen:
            raise RecordError(f"incremental streams differ in hops or chunks: {chunks}, {seen}")
        found = {name: _further(found[name], streamed[name], file.out[name]) for name in found.keys() & file.out.keys()}
    flow, vocoder = recorder.of(FLOW), recorder.of(VOCODER)
    frames = 1 if side.package == "port" else 2
    seen["flow_calls"] = [
        {"tokens": c.arguments["token"].shape[1], **{k: c.arguments[k] for k in ("streaming", "finalize")}}
        for c in flow
    ]
    seen["hift_calls"] = [
        {"mel_frames": c.arguments["speech_feat"].shape[frames], "finalize": c.arguments["finalize"]} for c in vocoder
    ]
    mels = (swap(c.results["feat"]) if side.package == "port" else c.results["feat"] for c in flow)
    return {**{f"mel_{number}": mel for number, mel in enumerate(mels)}, **found}, seen


def request(words: str) -> dict[str, Any]:
    """Options of a request, parsed from an entry of `call.rounds`: "stream ..." or "offline ...", and "speed=1.25".

    Raises:
        RecordError: it says neither.
    """
    way = re.match(r"(stream|offline)\b", words)
    if way is None:
        raise RecordError(f"call.rounds: {words!r} begins with neither 'stream' nor 'offline'")
    speed = re.search(r"\bspeed=(\d+(?:\.\d+)?)", words)
    return {"stream": way[1] == "stream"} | ({"speed": float(speed[1])} if speed else {})


def _rounds(
    model: Any, file: Recorded, side: Side, inputs: dict[str, Any], incremental: bool
) -> tuple[Arrays, dict[str, list[Any]]]:
    """Run all requests in turn; returns their chunks by golden name, and the hops and chunk lengths."""
    found: Arrays = {}
    seen: dict[str, list[Any]] = {"hop_before": [], "hop_after": [], "chunks": []}
    for number, words in enumerate(file.call["rounds"]):
        seen["hop_before"].append(model.token_hop_len)
        asked = request(words)
        asked["stream"] = Stream(incremental=incremental) if asked.get("stream") else None
        results = [side.array(result["tts_speech"]) for result in model.tts(**inputs, **asked)]
        seen["hop_after"].append(model.token_hop_len)
        seen["chunks"].append([speech.shape[1] for speech in results])
        found |= {f"call{number}_speech_{chunk}": speech for chunk, speech in enumerate(results)}
    return found, seen


def _further(one: np.ndarray, other: np.ndarray, original: np.ndarray) -> np.ndarray:
    """The one of two results of one shape that is further from the original."""
    return max(one, other, key=lambda found: np.abs(found - original).max())


def silent_filter(file: Recorded, side: Side) -> Arrays:
    """The tokens of a language model that the filter keeps."""
    config = StreamingConfig(
        silent_tokens=tuple(file.config["silent_tokens"]), max_silent_tokens=file.config["max_silent_token_num"]
    )
    kept = side.get("model.drop_silence")(file.inputs["tokens"].tolist(), config)
    return {"tokens": np.array(list(kept))}
