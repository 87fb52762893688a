"""Golden files that hold many calls, random draws or a driver's state: each has a function of its own here.

A function is written once and runs on either side: `Kit` gives it the side's package and tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch.nn.utils.parametrizations import weight_norm

from parity_tests.adapters import own
from parity_tests.harness import golden_driver, golden_llm
from parity_tests.harness.golden_file import Arrays, GoldenFile, Kit, Side
from parity_tests.harness.targets import TARGETS, swap
from port import noise
from port.config import CFMConfig, DiTConfig, FlowConfig


@dataclass(frozen=True)
class Replayed:
    """Results of both precisions of the reference and of the port (empty when the port was not asked for)."""

    single: Arrays
    double: Arrays
    port: Arrays
    omitted: Mapping[str, str] = field(default_factory=dict)
    exceptions: Mapping[str, str] = field(default_factory=dict)


# Numbers that initialising the original's layers draws between the flow's noise and the source's (measured).
DRAWS_OF_LAYERS = 3_852_961

Replay = Callable[[GoldenFile, Kit], Arrays]


def replay(file: GoldenFile, side: Side) -> Replayed:
    """Replay one file on both precisions of the reference, and on the port when `side` asks for it.

    Raises:
        KeyError: no function knows the file.
    """
    function = next((f for glob, f in FUNCTIONS.items() if fnmatchcase(file.name, glob)), None)
    if function is None:
        raise KeyError(f"{file.name}: no function of golden_special.py knows it")
    with torch.inference_mode():
        single, double = (function(file, Kit("reference", dtype)) for dtype in (torch.float32, torch.float64))
    port = function(file, Kit("port")) if side == "port" else {}
    notes = next((n for glob, n in NOTES.items() if fnmatchcase(file.name, glob)), {})
    omitted = {k: v for (k, s), v in notes.items() if s in ("omitted", side)}
    return Replayed(single, double, port, omitted, {k: v for (k, s), v in notes.items() if s == "float64"})


def _weight_norm(file: GoldenFile, kit: Kit) -> Arrays:
    target = TARGETS["vocoder.convolution.CausalConv1d"]
    x = file.inputs["x"]
    if kit.package == "port":
        module = own.OwnPort().build(target, file.config, file.weights)
        return {"y": swap(kit.array(module(kit.tensor(swap(x))))), "weight": swap(kit.array(module.weight))}
    module = weight_norm(target.build("reference", file.config))
    module.load_state_dict({k: torch.from_numpy(v) for k, v in file.weights.items()}, strict=True)
    module.to(kit.dtype)
    return {"y": kit.array(module(kit.tensor(x))), "weight": kit.array(module.weight)}


def _masks(file: GoldenFile, kit: Kit) -> Arrays:
    pad, chunks, optional = (
        kit.get(f"flow.masks.{name}") for name in ("make_pad_mask", "subsequent_chunk_mask", "add_optional_chunk_mask")
    )
    n, lengths, mask = file.config["n"], file.inputs["lengths"], file.inputs["mask"].astype(bool)
    zero = file.inputs["mask_zero_len"].astype(bool)
    found = {"pad_mask": pad(kit.tensor(lengths), n), "pad_mask_auto": pad(kit.tensor(lengths))}
    for size in (1, 3, 8, 23, 28):
        found[f"subsequent_chunk_mask_c{size}"] = chunks(n, size)
        found[f"subsequent_chunk_mask_c{size}_left1"] = chunks(n, size, 1)
        found[f"chunk_mask_c{size}"] = optional(kit.tensor(mask), size)
    found["chunk_mask_c0"] = optional(kit.tensor(mask), 0)
    found["chunk_mask_zero_len"] = optional(kit.tensor(zero), file.config["chunk"])
    edited = kit.tensor(zero)
    found["chunk_mask_zero_len_c0"] = optional(edited, 0)
    found["mask_zero_len_mutated_by_c0"] = edited
    return {k: kit.array(v) for k, v in found.items()}


def _rotary(file: GoldenFile, kit: Kit) -> Arrays:
    embedding = kit.get("flow.layers.RotaryEmbedding")(file.config["dim"])
    if kit.package == "reference":
        embedding.load_state_dict({k: torch.from_numpy(v) for k, v in file.weights.items()}, strict=True)
        embedding.to(kit.dtype)
    freqs = embedding(file.call["seq_len"])
    freqs = freqs - freqs[:, :1]  # positions may be counted from anywhere, the file's are from 0
    tables, rotate = kit.get("flow.layers.rotary_tables")(freqs), kit.get("flow.layers.apply_rotary_pos_emb")
    found = {
        "freqs": freqs,
        "rotated": rotate(kit.tensor(file.inputs["q"]), tables),
        "rotated_4d": rotate(kit.tensor(file.inputs["x4"]), tables),
    }
    if kit.package == "reference":
        found["inv_freq"] = embedding.inv_freq
    return {k: kit.array(v) for k, v in found.items()}


def _schedule(file: GoldenFile, kit: Kit) -> Arrays:
    """The times as the solver yields them, around an estimator too small to matter."""
    sizes = DiTConfig(dim=16, depth=1, heads=1, dim_head=16, mel_dim=2, mu_dim=2, spk_dim=2, out_channels=2)
    found: Arrays = {}
    for steps in (10, 6, 1):
        cfm = kit.get("flow.matching.CausalConditionalCFM")(FlowConfig(dit=sizes, cfm=CFMConfig(n_timesteps=steps)))
        x, spks, mask = np.zeros((1, 2, 3), np.float32), np.zeros((1, 2), np.float32), np.ones((1, 1, 3), bool)
        if kit.package == "reference":
            cfm.to(kit.dtype)
            t_span = kit.get("flow.matching.cosine_schedule")(steps, kit.dtype)
        else:
            x, mask = swap(x), mask[:, 0]
            t_span = kit.get("flow.matching.cosine_schedule")(steps)
        x, spks, mask = (kit.tensor(v) for v in (x, spks, mask))
        times = [kit.array(t) for _, t in cfm.solve_euler(x, t_span, x, mask, spks, x)]
        span = kit.array(t_span)
        t = np.stack(times[:-1])
        found |= {f"t_span_{steps}": span, f"t_{steps}": t, f"t_end_{steps}": times[-1].reshape(1)}
        found[f"dt_{steps}"] = span[1:] - t
    return found


def _noise(file: GoldenFile, kit: Kit) -> Arrays:
    """Torch itself on the side of the reference, the port's numpy generator on the other."""

    def draw(seed: int, *names: str) -> list[np.ndarray]:
        if kit.package == "port":
            generator = noise.TorchGenerator(seed)
            return [getattr(generator, name)(int(n)) for name, n in (call.split(":") for call in names)]
        generator = torch.Generator().manual_seed(seed)
        fill = {"uniform": torch.rand, "normal": torch.randn}
        exponential = {"exponential": lambda n, generator: torch.empty(n).exponential_(generator=generator)}
        calls = (call.split(":") for call in names)
        return [kit.array((fill | exponential)[name](int(n), generator=generator)) for name, n in calls]

    if kit.package == "port":
        start = noise.rand_noise(64)
    else:
        start = kit.array(kit.get("flow.decoder._rand_noise")(80, 15000)[:, :, :64])
    ini, sines = (noise.rand_ini()[0], noise.sine_waves(64)) if kit.package == "port" else _source_noise()
    randn, after = draw(42, "normal:1003", "uniform:8")
    return {
        "rand_noise_64": start,
        "sine_waves_64": np.array(sines),
        "rand_ini": np.array(ini),
        "rand_1000_seed42": draw(42, "uniform:1000")[0],
        "randn_1003_seed42": randn,
        "rand_after_1003": after,
        "randn_15_seed42": draw(42, "normal:15")[0],
        "exponential_64_seed43": draw(43, "exponential:64")[0],
    }


def _source_noise() -> tuple[np.ndarray, np.ndarray]:
    """`rand_ini` (9,) and the first rows of `sine_waves` (64, 9) as torch draws them after all that comes before."""
    generator = torch.Generator().manual_seed(0)
    torch.randn(1, 80, 15000, generator=generator)
    torch.rand(DRAWS_OF_LAYERS, generator=generator)
    ini = torch.rand(9, generator=generator)
    ini[0] = 0
    return ini.numpy(), torch.rand(64, 9, generator=generator).numpy()


def _mel(file: GoldenFile, kit: Kit) -> Arrays:
    sizes = {k: v for k, v in file.config.items() if k != "center"}
    mel = kit.array(kit.get("frontend.audio.mel_spectrogram")(kit.tensor(file.inputs["y"]), **sizes))
    found = {"mel": mel if kit.package == "reference" else swap(mel)}
    found["mel_basis"] = np.asarray(kit.get("frontend.audio.mel_filterbank")(24000, 1920, 80, 0.0, 12000.0))
    return found


def _resample_fbank(file: GoldenFile, kit: Kit) -> Arrays:
    resample, fbank = (kit.get(f"frontend.audio.{name}") for name in ("resample", "fbank"))
    y16 = resample(kit.tensor(file.inputs["y24"]), 24000, 16000)
    recorded = kit.tensor(file.out["y16"])  # so that the energies are judged on their own
    found = {"y16": y16, "fbank": fbank(recorded), "fbank_norm": fbank(recorded, subtract_mean=True)}
    return {k: kit.array(v) for k, v in found.items()}


FUNCTIONS: dict[str, Replay] = {
    "causalconv1d_weightnorm": _weight_norm,
    "masks": _masks,
    "rotary": _rotary,
    "cfm_t_schedule": _schedule,
    "upstream_noise": _noise,
    "sampling_ras": golden_llm.sampling_ras,
    "sampling_chain": golden_llm.sampling_chain,
    "llm_greedy*": golden_llm.llm_greedy,
    "llm_bistream": golden_llm.llm_bistream,
    "mel_*": _mel,
    "resample_fbank": _resample_fbank,
    "model_tts_vc": golden_driver.model_tts_vc,
    "silent_filter": golden_driver.silent_filter,
}

_RMS = "transformers evaluates RMSNorm and the rotary angles in float32 in a float64 model too; the reference does not"
_UNREAD = "the original draws this buffer and never reads it"
NOTES: dict[str, dict[tuple[str, str], str]] = {
    "masks": {
        ("mask_zero_len_mutated_by_c0", "port"): "MLX arrays are values: the port cannot edit its caller's mask",
    },
    "rotary": {("inv_freq", "port"): "the port computes the angles and keeps no frequencies"},
    "mel_chirp": {("hann_window", "omitted"): "both sides keep the window to themselves; it is judged through mel"},
    "upstream_noise": {("uv_64", "omitted"): _UNREAD},
    "llm_greedy*": {(name, "float64"): _RMS for name in ("prefill_hidden", "logits", "scores_given_to_sampling")},
}
