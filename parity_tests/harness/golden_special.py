"""Golden files that hold many calls, random draws or a driver's state: each has a function of its own here.

A function is written once and runs on either side: `Kit` gives it the side's package and tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch.nn.utils.parametrizations import weight_norm

from convert.official import llm_config
from parity_tests.adapters import own
from parity_tests.harness import golden_driver
from parity_tests.harness.capture import Recorder
from parity_tests.harness.golden_file import Arrays, GoldenFile, Kit, Side
from parity_tests.harness.targets import TARGETS, swap
from port import noise
from port.config import CFMConfig, DiTConfig, FlowConfig, LLMConfig, SamplingConfig


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


def _scores(kit: Kit, row: np.ndarray) -> Any:
    return row.copy() if kit.package == "port" else torch.from_numpy(row.copy())


def _sampling_ras(file: GoldenFile, kit: Kit) -> Arrays:
    """Each draw twice: from the torch seed and from the recorded numbers; both must give the same id."""
    config = SamplingConfig(**file.config)
    sample, nucleus = (kit.get(f"llm.sampling.{name}") for name in ("ras_sampling", "nucleus"))
    plain, seeded, recorded = (
        kit.get(f"llm.sampling.{name}") for name in ("nucleus_sampling", "SeededDraws", "RecordedDraws")
    )
    found: dict[str, list[Any]] = {k: [] for k in ("id", "nucleus_id", "triggered", "kept", "prob", "n_neg_inf_after")}
    inputs = file.inputs
    for k, row in enumerate(inputs["scores"]):
        history = [int(i) for i in inputs["history"][k] if i >= 0]
        scores = _scores(kit, row)
        token = sample(scores, history, seeded(int(inputs["seed"][k])), config)
        replayed = sample(_scores(kit, row), history, recorded([inputs["exp1"][k], inputs["exp2"][k]]), config)
        if token != replayed:
            raise ValueError(f"draw {k}: {token} from the seed, {replayed} from the recorded numbers")
        probabilities, _ = nucleus(_scores(kit, row), config.top_p, config.top_k)
        masked = int(np.isneginf(kit.array(scores)).sum())
        found["id"].append(token)
        found["nucleus_id"].append(plain(_scores(kit, row), seeded(int(inputs["seed"][k])), config.top_p, config.top_k))
        found["n_neg_inf_after"].append(masked)
        found["triggered"].append(masked > int(np.isneginf(row).sum()))
        found["kept"].append(len(probabilities))
        found["prob"].append(np.pad(kit.array(probabilities), (0, config.top_k - len(probabilities))))
    return {k: np.array(v) for k, v in found.items()}


def _sampling_chain(file: GoldenFile, kit: Kit) -> Arrays:
    config = SamplingConfig(**file.config)
    ras, nucleus, seeded = (
        kit.get(f"llm.sampling.{name}") for name in ("ras_sampling", "nucleus_sampling", "SeededDraws")
    )
    draws, history = seeded(file.call["seed"]), []
    for row in file.inputs["scores"]:
        history.append(ras(_scores(kit, row), history, draws, config))
    draws = seeded(file.call["seed"])
    plain = [nucleus(_scores(kit, row), draws, config.top_p, config.top_k) for row in file.inputs["scores"]]
    return {"ras_ids": np.array(history), "nucleus_ids": np.array(plain)}


def language_model(file: GoldenFile, weights: Arrays, kit: Kit) -> tuple[Any, LLMConfig]:
    """The language model of a golden file; only the embedding rows that its text uses were recorded."""
    config = llm_config(dict(file.config))
    state = dict(weights)
    rows = state.pop("llm.model.model.embed_tokens.weight_rows")
    table = np.zeros((config.qwen2.vocab_size, config.qwen2.hidden_size), np.float32)
    table[file.inputs["embed_row_ids"]] = rows
    state["llm.model.model.embed_tokens.weight"] = state["llm.model.lm_head.weight"] = table
    model = kit.get("llm.speech_lm.CosyVoice3LM")(config)
    if kit.package == "port":
        own.load_part(model, TARGETS["llm.speech_lm.CosyVoice3LM.scores"], {}, state)
    else:
        model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
        model.to(kit.dtype)
    return model, config


class GreedyRecorder:
    """A sampler that takes the best id, keeps the scores it saw, and can end the speech at a given call."""

    def __init__(self, kit: Kit, limit: int | None, end_after: int | None = None, end: int | None = None) -> None:
        self.kit, self.limit, self.end_after, self.end = kit, limit, end_after, end
        self.seen: list[np.ndarray] = []

    def __call__(self, scores: Any, decoded_tokens: Any, draws: Any, config: SamplingConfig) -> int:
        self.seen.append(np.array(self.kit.array(scores)))
        if self.end_after is not None and len(self.seen) > self.end_after:
            return int(self.end)  # type: ignore[arg-type]
        return int(self.seen[-1][: self.limit].argmax())


def _logits(kit: Kit, model: Any, hidden: list[np.ndarray]) -> np.ndarray:
    last = np.stack([h[0, -1] for h in hidden])
    return kit.array(model.llm_decoder(kit.tensor(last)))


def _llm_greedy(file: GoldenFile, kit: Kit) -> Arrays:
    model, config = language_model(file, file.weights, kit)
    limit = config.speech_token_size if file.call["stop_ids_excluded_by_recorder"] else None
    sampler = GreedyRecorder(kit, limit)
    texts = [kit.tensor(file.inputs[k]) for k in ("text", "prompt_text", "prompt_speech_token")]
    tokens: list[int] = []
    with Recorder(kit.package, model) as recorder:
        for token in model.inference(*texts, None, sampler):
            tokens.append(token)
            if len(tokens) == file.call["steps"]:
                break
    hidden = [call.results["hidden"] for call in recorder.of("llm.qwen2.Qwen2Model")]
    (lm_input,) = recorder.of("llm.speech_lm.CosyVoice3LM.prepare_input")
    return {
        "lm_input": lm_input.results["lm_input"],
        "prefill_hidden": hidden[0],
        "logits": _logits(kit, model, hidden),
        "scores_given_to_sampling": np.stack(sampler.seen),
        "tokens": np.array(tokens),
    }


def _llm_bistream(file: GoldenFile, kit: Kit) -> Arrays:
    """Text that arrives token by token; the recording sampler ends the speech at its last call."""
    model, config = language_model(file, GoldenFile.read(file.path.with_name("llm_greedy.safetensors")).weights, kit)
    sampler = GreedyRecorder(kit, config.speech_token_size, file.call["eos_after_sampler_calls"], config.eos)
    text = (kit.tensor(token.reshape(1, 1)) for token in file.inputs["text_stream"])
    prompt = [kit.tensor(file.inputs[k]) for k in ("prompt_text", "prompt_speech_token")]
    with Recorder(kit.package, model) as recorder:
        tokens = list(model.inference_bistream(text, *prompt, None, sampler))
    calls = recorder.of("llm.qwen2.Qwen2Model")
    lengths = [call.arguments["inputs_embeds"].shape[1] for call in calls]
    if lengths != file.call["input_lengths"]:
        raise ValueError(f"input lengths {lengths} differ from the original's {file.call['input_lengths']}")
    hidden = [call.results["hidden"] for call in calls[: len(file.out["logits"])]]
    return {"tokens": np.array(tokens), "logits": _logits(kit, model, hidden)}


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
    "sampling_ras": _sampling_ras,
    "sampling_chain": _sampling_chain,
    "llm_greedy*": _llm_greedy,
    "llm_bistream": _llm_bistream,
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
