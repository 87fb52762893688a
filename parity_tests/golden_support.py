"""Make golden files like the original's: under other names, or in other sizes by running the reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from mlx_parity import record
from mlx_parity.record import Recorded
from mlx_parity.sides.truth import Reference
from parity_tests.golden.driver import requests
from parity_tests.golden.judge import EMBEDDED
from parity_tests.golden.replay import CONFIGS, Replays
from parity_tests.golden.table import NAMES, part_of, runs
from parity_tests.live import live_state
from parity_tests.parts import PARTS


def golden(name: str) -> Recorded:
    return Recorded.read(EMBEDDED / f"{name}.safetensors")


def write(files: Iterable[Recorded], folder: Path, manifest: bool = True, metadata: bool = True) -> None:
    """Write numbered files, described by a manifest like the original's, by metadata, or by both."""
    record.write((replace(f, path=Path(f"n{i:03}.safetensors")) for i, f in enumerate(files)), folder, "made in a test")
    listed = folder / record.MANIFEST
    if not metadata:
        content = json.loads(listed.read_text())
        for entry in content["cases"]:
            place = folder / entry["file"]
            save_file(record.read_tensors(place), place)
            entry["sha256"] = hashlib.sha256(place.read_bytes()).hexdigest()
        listed.write_text(json.dumps(content))
    if not manifest:
        listed.unlink()


def made(file: Recorded, *names: str, then: Iterable[str] = (), double: bool = True) -> Recorded:
    """The file with the reference's results: outputs `names`, then outputs `then`, which take some of them as inputs;
    with `double` also `out64`."""
    file = replace(file, out={}, out64={})
    for wanted in (names, tuple(then)):
        draft = replace(file, out={**dict.fromkeys(wanted, np.zeros(0, np.float32)), **file.out})
        found = Replays(draft).single
        file = replace(file, out={**file.out, **{k: _plain(found[k]) for k in wanted}})
    truth = Replays(file).double if double else {}
    return replace(file, out64={k: truth[k] for k, v in file.out.items() if k in truth and v.dtype == np.float32})


def _plain(value: np.ndarray) -> np.ndarray:
    """As the original's files have it: masks as bytes, floats in float32 (the pitch is computed in float64)."""
    return value.astype({"b": np.uint8, "f": np.float32}.get(value.dtype.kind, value.dtype))


def resized(file: Recorded, config: Mapping[str, Any], inputs: Mapping[str, Any], seed: int = 0) -> Recorded:
    """The file's part in another size: live weights, and inputs drawn by shape unless given as arrays."""
    rng = np.random.default_rng(seed)
    config = _merged(file.config, config)
    twin = PARTS[runs(part_of(file.upstream, NAMES))[0].path]
    translate = CONFIGS.get(twin.config)
    module = twin.build("reference", asdict(translate(config)) if translate else config)
    state = live_state({k: v.numpy() for k, v in module.state_dict().items()}, rng)
    drawn = {
        k: v if isinstance(v, np.ndarray) else rng.standard_normal(v).astype(np.float32) for k, v in inputs.items()
    }
    return replace(file, config=config, weights=state, inputs=drawn)


def shorter(file: Recorded, call: Mapping[str, Any], steps: int) -> Recorded:
    """The language model's file cut after `steps` tokens; the numbers are still the original's."""
    per_step = ("logits", "scores_given_to_sampling", "tokens")
    cut = [{k: v[:steps] if k in per_step else v for k, v in group.items()} for group in (file.out, file.out64)]
    return replace(file, call={**file.call, **call}, out=cut[0], out64=cut[1])


def driver(flow: Recorded, vocoder: Recorded) -> Recorded:
    """A file of the model driver with the weights of two others, and other requests than the original's."""
    rng = np.random.default_rng(5)
    weights = {f"{k}.{name}": v for k, f in (("flow", flow), ("hift", vocoder)) for name, v in f.weights.items()}
    inputs: dict[str, np.ndarray] = {
        "source_speech_token": rng.integers(0, 60, (1, 40)),
        "prompt_token": rng.integers(0, 60, (1, 3)),
        "prompt_feat": rng.standard_normal((1, 6, 80)).astype(np.float32),
        "embedding": rng.standard_normal((1, 24)).astype(np.float32),
        "sine_waves_tile": rng.uniform(0, 1, (1, 1000, 9)).astype(np.float32),
    }
    config, words = {"flow": flow.config, "hift": vocoder.config}, ["offline speed=0.8", "stream, shortest hop"]
    upstream = "cosyvoice.cli.model.CosyVoice3Model.tts"
    file = Recorded(Path(), upstream, config, {"rounds": words}, weights, inputs, {}, {})
    with torch.inference_mode():
        found, seen = requests(file, Reference())
    return replace(file, call={"rounds": words, **seen}, out=found)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, **{k: _merged(one[k], v) if isinstance(v, dict) else v for k, v in other.items()}}


def rotary(n: int, dim: int) -> np.ndarray:
    speeds = 1.0 / 10000 ** (np.arange(0, dim, 2) / dim)
    return np.repeat(np.arange(n)[:, None] * speeds, 2, axis=1)[None].astype(np.float32)


def variants() -> dict[str, Recorded]:
    """One file or more of each kind, with other sizes, lengths, chunks, windows, seeds, steps and requests."""
    rng = np.random.default_rng(7)

    def chunk_mask(rows: int, n: int, size: int) -> np.ndarray:
        seen = np.arange(n) < (np.arange(n)[:, None] // size + 1) * size
        return np.broadcast_to(seen, (rows, 1, n, n)).astype(np.uint8)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(0, 1, shape).astype(np.float32)

    block = golden("dit_block_chunk")
    wide = {"dim": 128, "heads": 2, "dim_head": 64}
    dit = golden("dit_stream1")
    flow = golden("flow_inference_stream1_final0")
    vocoder, decode = golden("hift_inference_final0"), golden("hift_decode_loud")
    sizes = {"base_channels": 32}
    masks, noise, schedule = golden("masks"), golden("upstream_noise"), golden("cfm_t_schedule")
    seeds = np.arange(5) + 71
    ras, chain = golden("sampling_ras"), golden("sampling_chain")
    ras_inputs = {k: v[:5].copy() for k, v in ras.inputs.items()} | {"seed": seeds}
    for k, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(int(seed))
        for name in ("exp1", "exp2"):
            count = ras.inputs[name].shape[1]
            ras_inputs[name][k] = torch.empty(count).exponential_(generator=generator).numpy()
    sine = golden("sinegen2_short")
    pitch = np.repeat(rng.uniform(0, 300, (1, 7, 1)), 240, axis=1).astype(np.float32)
    greedy, bistream = golden("llm_greedy"), golden("llm_bistream")
    lengths = bistream.call["input_lengths"]
    mel, fbank = golden("mel_wav0"), golden("resample_fbank")
    return {
        "block": made(
            resized(block, wide, {"x": (1, 31, 128), "t": (1, 128), "freqs": rotary(31, 64),
                                  "mask": chunk_mask(1, 31, 9)}),
            "y",
        ),
        "dit": made(
            resized(
                dit,
                {"depth": 3, "static_chunk_size": 5},
                {"x": (1, 12, 17), "mask": np.ones((1, 1, 17), np.uint8), "mu": (1, 16, 17), "t": uniform(1),
                 "spks": (1, 10), "cond": (1, 12, 17)},
            ),
            "y", "block0", "block2",
        ),
        "flow": made(
            replace(
                resized(
                    flow,
                    {"vocab_size": 40, "decoder": {"estimator": {"depth": 1, "static_chunk_size": 6}}},
                    {"token": rng.integers(0, 40, (1, 11)), "prompt_token": rng.integers(0, 40, (1, 4)),
                     "prompt_feat": (1, 8, 80), "embedding": (1, 24), "noise": (1, 80, 40)},
                ),
                call={"streaming": True, "finalize": True},
            ),
            "feat", "prelookahead", "spks", "mu", "cond",
        ),
        "vocoder": made(
            resized(vocoder, sizes, {"speech_feat": (1, 80, 13), "sine_waves": uniform(1, 13 * 480, 9)}),
            "wav", "s", "f0", then=["wav_given_s32"],
        ),
        "decode": made(
            replace(resized(decode, sizes, {"x": (2, 80, 7), "s": (2, 1, 7 * 480)}), call={"finalize": False}),
            "wav", "conv_pre", "conv_post", "up1", "up2",
        ),
        "masks": made(
            replace(masks, config={"n": 17, "chunk": 5}, inputs={
                "lengths": np.array([17, 4, 9]), "mask": chunk_mask(3, 17, 6)[:, :, 2],
                "mask_zero_len": np.stack([np.ones((1, 17), np.uint8), np.zeros((1, 17), np.uint8)]),
            }),
            "pad_mask", "pad_mask_auto", "subsequent_chunk_mask_c2", "subsequent_chunk_mask_c40_left2", "chunk_mask_c5",
            "chunk_mask_c0", "chunk_mask_zero_len", "chunk_mask_zero_len_c0", "mask_zero_len_mutated_by_c0",
        ),
        "noise": made(
            replace(noise, call={"rand_noise_frames": [14_900, 15_000], "sine_waves_rows": [700_001, 700_011]}),
            "rand_noise_100", "sine_waves_10", "rand_ini", "rand_33_seed7", "randn_21_seed5", "randn_9_seed3",
            "exponential_12_seed8", double=False,
        ),
        "schedule": made(schedule, *(f"{name}_{steps}" for name in ("t_span", "t", "dt", "t_end") for steps in (3, 7))),
        "draws": made(replace(ras, inputs=ras_inputs), *ras.out, double=False),
        "chain": made(replace(chain, call={"seed": 9}, inputs={"scores": chain.inputs["scores"][:20]}), *chain.out,
                      double=False),
        "sines": made(
            replace(sine, config={**sine.config, "upsample_scale": 240},
                    inputs={"f0": pitch, "sine_waves": uniform(1, 1680, 9), "rand_ini": uniform(1, 9)}),
            "y", "uv", "sine_unit",
        ),
        "greedy": shorter(greedy, {"steps": 4}, 4),
        "bistream": shorter(bistream, {"eos_after_sampler_calls": 60, "input_lengths": lengths[:-10]}, 60),
        "mel": made(
            replace(mel, config={**mel.config, "fmax": 8000, "num_mels": 40},
                    inputs={"y": 0.3 * mel.inputs["y"][:, :9000]}),
            "mel", "mel_basis",
        ),
        "fbank": made(
            replace(fbank, inputs={"y22": 0.3 * uniform(1, 9000) - 0.1},
                    upstream="torchaudio.transforms.Resample(22050,16000) + torchaudio.compliance.kaldi.fbank"),
            "y16", then=["fbank", "fbank_norm"], double=False,
        ),
        "silence": made(
            replace(golden("silent_filter"), config={"silent_tokens": [3, 4], "max_silent_token_num": 2},
                    inputs={"tokens": np.array([3, 4, 3, 9, 3, 3, 3, 3, 8])}),
            "tokens", double=False,
        ),
        "driver": driver(flow, vocoder),
    }  # fmt: skip
