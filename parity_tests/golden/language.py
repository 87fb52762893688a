"""Golden files of the language model: sampling from recorded draws, and generation token by token.

Each function runs on either side, like those of `functions.py`.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from convert.official import llm_config
from mlx_parity.adapter import Side
from mlx_parity.compare import agreement
from mlx_parity.record import Arrays, Recorded, RecordError, describe, read_manifest
from mlx_parity.sides.truth import Reference
from parity_tests.parts import PARTS, recorded
from port.config import LLMConfig, SamplingConfig


def _scores(side: Side, row: np.ndarray) -> Any:
    """A copy of a row for the sampler; the port samples on the host, in numpy."""
    return row.copy() if side.package == "port" else side.tensor(row)


def sampling(file: Recorded, side: Side) -> Arrays:
    """Independent draws with one seed each (`in.seed`), or consecutive draws from one seed in `call`."""
    config = SamplingConfig(**file.config)
    return _draws(file, side, config) if "seed" in file.inputs else _chain(file, side, config)


def _draws(file: Recorded, side: Side, config: SamplingConfig) -> Arrays:
    """Each draw twice: from the torch seed and from the recorded numbers; both must give the same id."""
    sample, nucleus = (side.get(f"llm.sampling.{name}") for name in ("ras_sampling", "nucleus"))
    plain, seeded, recorded = (
        side.get(f"llm.sampling.{name}") for name in ("nucleus_sampling", "SeededDraws", "RecordedDraws")
    )
    inputs, sizes = file.inputs, (config.top_p, config.top_k)
    found: dict[str, list[Any]] = {k: [] for k in ("id", "nucleus_id", "triggered", "kept", "prob", "n_neg_inf_after")}
    for k, row in enumerate(inputs["scores"]):
        if getattr(side, "dtype", None) == torch.float64:
            # The float32 sum decides the nucleus (`kept`, judged by itself); float64 gives only its probabilities.
            probabilities, _ = nucleus(_scores(side, row), math.inf, int(file.out["kept"][k]))
            found["prob"].append(_padded(side.array(probabilities), config.top_k))
            continue
        history = [int(i) for i in inputs["history"][k] if i >= 0]
        seed, scores = int(inputs["seed"][k]), _scores(side, row)
        token = sample(scores, history, seeded(seed), config)
        replayed = sample(_scores(side, row), history, recorded([inputs["exp1"][k], inputs["exp2"][k]]), config)
        if token != replayed:
            raise RecordError(f"draw {k}: {token} from the seed, {replayed} from the recorded numbers")
        probabilities, _ = nucleus(_scores(side, row), *sizes)
        masked = int(np.isneginf(side.array(scores)).sum())
        found["id"].append(token)
        found["nucleus_id"].append(plain(_scores(side, row), seeded(seed), *sizes))
        found["n_neg_inf_after"].append(masked)
        found["triggered"].append(masked > int(np.isneginf(row).sum()))
        found["kept"].append(len(probabilities))
        found["prob"].append(_padded(side.array(probabilities), config.top_k))
    return {k: np.array(v) for k, v in found.items() if v}


def _padded(probabilities: np.ndarray, count: int) -> np.ndarray:
    return np.pad(probabilities, (0, count - len(probabilities)))


def _chain(file: Recorded, side: Side, config: SamplingConfig) -> Arrays:
    ras, nucleus, seeded = (
        side.get(f"llm.sampling.{name}") for name in ("ras_sampling", "nucleus_sampling", "SeededDraws")
    )
    draws, history = seeded(file.call["seed"]), list[int]()
    for row in file.inputs["scores"]:
        history.append(ras(_scores(side, row), history, draws, config))
    draws = seeded(file.call["seed"])
    plain = [nucleus(_scores(side, row), draws, config.top_p, config.top_k) for row in file.inputs["scores"]]
    return {"ras_ids": np.array(history), "nucleus_ids": np.array(plain)}


def language_model(file: Recorded, weights: Recorded, side: Side) -> tuple[Any, LLMConfig]:
    """The language model of a golden file, with its weights or those of another file; these hold only the used rows
    of the embedding (`in.embed_row_ids`)."""
    config, state = llm_config(dict(file.config)), dict(weights.weights)
    table = np.zeros((config.qwen2.vocab_size, config.qwen2.hidden_size), np.float32)
    table[weights.inputs["embed_row_ids"]] = state.pop("llm.model.model.embed_tokens.weight_rows")
    state["llm.model.model.embed_tokens.weight"] = state["llm.model.lm_head.weight"] = table
    return side.build(PARTS["llm.speech_lm.CosyVoice3LM.scores"], asdict(config), state), config


def weights_beside(file: Recorded) -> list[Recorded]:
    """Files of the same folder with weights for a model of its sizes, for a file recorded without weights.

    Raises:
        RecordError: there is none.
    """
    found: list[Recorded] = []
    entries = read_manifest(file.path.parent) or {}
    for path in sorted(file.path.parent.glob("*.safetensors")):
        try:
            upstream, config, _ = describe(path, entries.get(path.name))
            if "CosyVoice3LM" not in upstream or any(config.get(k, v) != v for k, v in file.config.items()):
                continue
            other = Recorded.read(path, entries.get(path.name))
        except RecordError:
            continue  # reported in its own row
        rows = other.inputs.get("embed_row_ids", ())
        if other.weights and np.isin(file.inputs["embed_row_ids"], rows).all():
            found.append(other)
    if not found:
        raise RecordError("has no weights, and no file beside it has them for a model of its sizes and embed_row_ids")
    return found


class GreedyRecorder:
    """A sampler that takes the best id, keeps the scores it saw, and can end the speech after some calls."""

    def __init__(self, side: Side, limit: int | None, end_after: int | None = None, end: int | None = None) -> None:
        self.side, self.limit, self.end_after, self.end = side, limit, end_after, end
        self.seen: list[np.ndarray] = []

    def __call__(self, scores: Any, decoded_tokens: Any, draws: Any, config: SamplingConfig) -> int:
        self.seen.append(np.array(self.side.array(scores)))
        if self.end_after is not None and len(self.seen) > self.end_after:
            return int(self.end)
        return int(self.seen[-1][: self.limit].argmax())


def _logits(side: Side, model: Any, hidden: list[np.ndarray]) -> np.ndarray:
    last = np.stack([h[0, -1] for h in hidden])
    return side.array(model.llm_decoder(side.tensor(last)))


def llm_greedy(file: Recorded, side: Side) -> Arrays:
    model, config = language_model(file, file, side)
    limit = config.speech_token_size if file.call["stop_ids_excluded_by_recorder"] else None
    sampler = GreedyRecorder(side, limit)
    texts = [side.tensor(file.inputs[k]) for k in ("text", "prompt_text", "prompt_speech_token")]
    tokens: list[int] = []
    with recorded(side.package, model) as recorder:
        for token in model.inference(*texts, None, sampler):
            tokens.append(token)
            if len(tokens) == file.call["steps"]:
                break
    hidden = [call.results["hidden"] for call in recorder.of("llm.qwen2.Qwen2Model")]
    (lm_input,) = recorder.of("llm.speech_lm.CosyVoice3LM.prepare_input")
    return {
        "lm_input": lm_input.results["lm_input"],
        "prefill_hidden": hidden[0],
        "logits": _logits(side, model, hidden),
        "scores_given_to_sampling": np.stack(sampler.seen),
        "tokens": np.array(tokens),
    }


def llm_bistream(file: Recorded, side: Side) -> Arrays:
    """Text arrives token by token; the recorded sampler ended the speech at its last call.

    A file without weights uses those of the file beside it whose results come nearest.
    """
    sources = [file] if file.weights else weights_beside(file)
    if len(sources) > 1:
        sources.sort(key=lambda one: _distance(_bistream(file, one, Reference()), file.out))
    return _bistream(file, sources[0], side)


def _distance(found: Arrays, out: Arrays) -> tuple[bool, float]:
    tokens = np.array_equal(found["tokens"], out.get("tokens"))
    return not tokens, agreement(found["logits"], out["logits"]) if "logits" in out else 0.0


def _bistream(file: Recorded, weights: Recorded, side: Side) -> Arrays:
    model, config = language_model(file, weights, side)
    sampler = GreedyRecorder(side, config.speech_token_size, file.call["eos_after_sampler_calls"], config.eos)
    text = (side.tensor(token.reshape(1, 1)) for token in file.inputs["text_stream"])
    prompt = [side.tensor(file.inputs[k]) for k in ("prompt_text", "prompt_speech_token")]
    with recorded(side.package, model) as recorder:
        tokens = list(model.inference_bistream(text, *prompt, None, sampler))
    calls = recorder.of("llm.qwen2.Qwen2Model")
    lengths = [call.arguments["inputs_embeds"].shape[1] for call in calls]
    if lengths != file.call["input_lengths"]:
        raise RecordError(f"input lengths {lengths} differ from the original's {file.call['input_lengths']}")
    hidden = [call.results["hidden"] for call in calls[: len(file.out.get("logits", calls))]]
    return {"tokens": np.array(tokens), "logits": _logits(side, model, hidden)}
