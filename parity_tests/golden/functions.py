"""Golden files that cannot be replayed as a case of one part (`FUNCTIONS` says why): each has a function here.

A function is written once and runs on either side. It reads sizes, steps, seeds and windows from the file's `config`
and `call` and from the names of its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.utils.parametrizations import weight_norm

from mlx_parity.adapter import Side
from mlx_parity.record import Arrays, Recorded, RecordError
from mlx_parity.sides.truth import Reference
from parity_tests.adapters import own
from parity_tests.golden import driver, language
from parity_tests.golden.table import NAMES, part_of, runs
from parity_tests.parts import PARTS, swap
from port import noise
from port.config import CFMConfig, DiTConfig, FlowConfig

# How many numbers the original draws to initialise layers, between the flow's noise and the source's (measured).
DRAWS_OF_LAYERS = 3_852_961

Replay = Callable[[Recorded, Side], Arrays]


def _named(file: Recorded, pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
    """The file's outputs whose whole name matches a pattern."""
    for name in file.out:
        if match := re.fullmatch(pattern, name):
            yield name, match


def _weight_norm(file: Recorded, side: Side) -> Arrays:
    part = part_of(file.upstream.partition("(")[2], NAMES)
    if part is None:
        raise RecordError(f"no twin of {file.upstream!r}")
    target = PARTS[runs(part)[0].path]
    x = file.inputs["x"]
    if side.package == "port":
        module = own.OwnPort(forms=()).build(target, file.config, file.weights)
        return {"y": swap(side.array(module(side.tensor(swap(x))))), "weight": swap(side.array(module.weight))}
    assert isinstance(side, Reference)
    module = weight_norm(target.build("reference", file.config))
    module.load_state_dict({k: torch.from_numpy(v) for k, v in file.weights.items()}, strict=True)
    module.to(side.dtype)
    return {"y": side.array(module(side.tensor(x))), "weight": side.array(module.weight)}


def _rotary(file: Recorded, side: Side) -> Arrays:
    embedding = side.build(PARTS["flow.layers.RotaryEmbedding"], file.config, file.weights)
    freqs = embedding(file.call["seq_len"])
    freqs = freqs - freqs[:, :1]  # relative to the first position, which is 0 in the file
    tables, rotate = side.get("flow.layers.rotary_tables")(freqs), side.get("flow.layers.apply_rotary_pos_emb")
    found = {
        "freqs": freqs,
        "rotated": rotate(side.tensor(file.inputs["q"]), tables),
        "rotated_4d": rotate(side.tensor(file.inputs["x4"]), tables),
    }
    if side.package == "reference":
        found["inv_freq"] = embedding.inv_freq
    return {k: side.array(v) for k, v in found.items()}


def _schedule(file: Recorded, side: Side) -> Arrays:
    """The times as the solver yields them, with a tiny estimator."""
    sizes = DiTConfig(dim=16, depth=1, heads=1, dim_head=16, mel_dim=2, mu_dim=2, spk_dim=2, out_channels=2)
    if file.config.get("t_scheduler", "cosine") != "cosine":
        raise RecordError(f"t_scheduler {file.config['t_scheduler']!r}: both sides have the cosine only")
    found: Arrays = {}
    for steps in sorted({int(match[1]) for _, match in _named(file, r"(?:t|t_span|t_end|dt)_(\d+)")}):
        cfm = side.get("flow.matching.CausalConditionalCFM")(FlowConfig(dit=sizes, cfm=CFMConfig(n_timesteps=steps)))
        x, spks, mask = np.zeros((1, 2, 3), np.float32), np.zeros((1, 2), np.float32), np.ones((1, 1, 3), bool)
        if isinstance(side, Reference):
            cfm.to(side.dtype)
            t_span = side.get("flow.matching.cosine_schedule")(steps, side.dtype)
        else:
            x, mask = swap(x), mask[:, 0]
            t_span = side.get("flow.matching.cosine_schedule")(steps)
        x, spks, mask = (side.tensor(v) for v in (x, spks, mask))
        times = [side.array(t) for _, t in cfm.solve_euler(x, t_span, x, mask, spks, x)]
        span = side.array(t_span)
        t = np.stack(times[:-1])
        found |= {f"t_span_{steps}": span, f"t_{steps}": t, f"t_end_{steps}": times[-1].reshape(1)}
        found[f"dt_{steps}"] = span[1:] - t
    return found


def _noise(file: Recorded, side: Side) -> Arrays:
    """Random numbers from torch for the reference, from the port's numpy generator for the port.

    `rand_noise_*` and `sine_waves_*` are windows of two buffers, given in `call`; `rand_N_seedS`, `randn_N_seedS` and
    `exponential_N_seedS` the first N numbers of a seed; `rand_after_N` those that follow `randn_N_seedS`.
    """
    found: Arrays = {}
    ported = side.package == "port"
    for name, _ in _named(file, r"rand_noise_\w+"):
        start, end = _window(file, "rand_noise_frames")
        whole = noise.rand_noise(end) if ported else side.get("flow.decoder._rand_noise")(80, noise.MAX_FRAMES).numpy()
        found[name] = np.array(whole[:, :, start:end])
    for name, _ in _named(file, r"sine_waves_\w+"):
        start, end = _window(file, "sine_waves_rows")
        found[name] = np.array(noise.sine_waves(end - start, start)) if ported else _source_noise(end)[1][start:]
    for name, _ in _named(file, "rand_ini"):
        found[name] = np.array(noise.rand_ini()[0]) if ported else _source_noise(0)[0]
    for name, match in _named(file, r"(rand|randn|exponential)_(\d+)_seed(\d+)"):
        kind, count, seed = match[1], int(match[2]), int(match[3])
        after = [(k, m[1]) for k, m in _named(file, rf"(rand|randn|exponential)_after_{count}") if kind == "randn"]
        draws = [(name, kind, count), *((k, other, file.out[k].size) for k, other in after)]
        found |= _draw(side, seed, draws)
    return found


def _window(file: Recorded, key: str) -> tuple[int, int]:
    window = file.call.get(key)
    if not (isinstance(window, list) and len(window) == 2 and all(isinstance(v, int) for v in window)):
        raise RecordError(f"call.{key} is {window!r}, not [first, last + 1]")
    if not 0 <= window[0] < window[1]:
        raise RecordError(f"call.{key} is {window}: no window")
    return window[0], window[1]


def _draw(side: Side, seed: int, draws: list[tuple[str, str, int]]) -> Arrays:
    """Consecutive draws from one seed; `draws` gives name, kind and count of each."""
    if side.package == "port":
        source = noise.TorchGenerator(seed)
        calls = {"rand": source.uniform, "randn": source.normal, "exponential": source.exponential}
        return {name: calls[kind](count) for name, kind, count in draws}
    generator = torch.Generator().manual_seed(seed)
    fill: dict[str, Callable[..., torch.Tensor]] = {
        "rand": torch.Tensor.uniform_,
        "randn": torch.Tensor.normal_,
        "exponential": torch.Tensor.exponential_,
    }
    return {name: fill[kind](torch.empty(count), generator=generator).numpy() for name, kind, count in draws}


def _source_noise(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """`rand_ini` (9,) and the first rows of `sine_waves` (rows, 9) as torch draws them, after all earlier draws."""
    generator = torch.Generator().manual_seed(0)
    torch.randn(1, 80, noise.MAX_FRAMES, generator=generator)
    torch.rand(DRAWS_OF_LAYERS, generator=generator)
    ini = torch.rand(9, generator=generator)
    ini[0] = 0
    return ini.numpy(), torch.rand(rows, 9, generator=generator).numpy()


# By the end of the original's path, as in `table.TABLE`.
FUNCTIONS: dict[str, Replay] = {
    # Torch's own weight norm, which neither side contains.
    "weight_norm": _weight_norm,
    # Several parts in turn; positions are relative to the file's first.
    "RotaryEmbedding": _rotary,
    "CausalConditionalCFM": _schedule,
    # Random numbers: they take a seed and no tensor.
    "CausalConditionalCFM.rand_noise": _noise,
    "CausalHiFTGenerator.m_source": _noise,
    "ras_sampling": language.sampling,
    "nucleus_sampling": language.sampling,
    # Drivers: they yield results one at a time and keep a state between calls.
    "CosyVoice3LM.inference": language.llm_greedy,
    "CosyVoice3LM.inference_bistream": language.llm_bistream,
    "CosyVoice3Model.tts": driver.model_tts_vc,
    "CosyVoice3Model.llm_job": driver.silent_filter,
}
_RMS = "transformers evaluates RMSNorm and the rotary angles in float32 in a float64 model too; the reference does not"
# Part -> outputs recorded as float64 but computed in float32, and why.
NOT_DOUBLE = {
    part: ({"prefill_hidden", "logits", "scores_given_to_sampling"}, _RMS)
    for part in ("CosyVoice3LM.inference", "CosyVoice3LM.inference_bistream")
}
