"""The verification plan: each component of the model, what was checked of it, and the rows and tests that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_parity.report.data import Component, Gap, Row, Test
from mlx_parity.report.rows import BAD


@dataclass(frozen=True)
class Planned:
    """A line of the plan; what is marked or compared below one of its `parts` is of it; the longest path counts."""

    name: str
    checked: str
    parts: tuple[str, ...]
    elsewhere: bool = False  # shown by the tests in tests/ alone


ELSEWHERE = "tests/"
_AUDIO, _LAYERS, _VOCODER = "frontend.audio", "flow.layers", "vocoder.generator"
PLAN: tuple[Planned, ...] = (
    Planned(
        "Reference",
        "the original's own numbers: its float64 to 1e-12, its float32 within the budget",
        ("reference",),
    ),
    Planned(
        "Fixed noise",
        "the flow's and the source's noise, drawn without torch, against the original's sha256 and torch itself",
        ("noise",),
    ),
    Planned("Resampler", "six pairs of rates against torchaudio's kernel", (f"{_AUDIO}.resample",)),
    Planned(
        "Mel and log-mel",
        "filterbanks and spectra, odd lengths",
        tuple(f"{_AUDIO}.{name}" for name in ("mel_filterbank", "mel_spectrogram", "log_mel_spectrogram")),
    ),
    Planned("Kaldi fbank", "filterbank, energies, mean over time", (f"{_AUDIO}.kaldi_mel_banks", f"{_AUDIO}.fbank")),
    Planned(
        "Recordings",
        "signals of many kinds through every feature, speech whose numbers were recorded, formats, broken files",
        (_AUDIO,),
    ),
    Planned(
        "Text",
        "token ids against transformers, normalisation and splitting by the original's examples",
        ("frontend.text", "frontend.tokenizer"),
    ),
    Planned(
        "Speech tokenizer",
        "attention with memory, quantiser before and after rounding, padded batches, whole encoder",
        ("frontend.speech_tokenizer", "walk.speech_tokenizer"),
    ),
    Planned(
        "Speaker encoder",
        "every layer, segments around 100 frames, whole encoder",
        ("frontend.speaker", "walk.speaker"),
    ),
    Planned(
        "Qwen2",
        "norm, half-split rotary, grouped attention, feed-forward, layer, stack; with cache and without",
        ("llm.qwen2",),
    ),
    Planned(
        "Speech language model",
        "input layout, scores, greedy and seeded generation, bistream, length rules",
        ("llm", "walk.llm"),
    ),
    Planned(
        "Sampling",
        "nucleus and repetition-aware stage, replayed from torch seeds and recorded draws; on the device as on the host",
        ("llm.sampling", "fast.sampling"),
    ),
    Planned(
        "Time embedding",
        "sinusoids up to 1000 rad, two-layer network",
        (f"{_LAYERS}.SinusPositionEmbedding", f"{_LAYERS}.TimestepEmbedding"),
    ),
    Planned(
        "Rotary",
        "interleaved pairs, head 0 only, offsets",
        (f"{_LAYERS}.RotaryEmbedding", f"{_LAYERS}.apply_rotary_pos_emb"),
    ),
    Planned(
        "Causal position convolution",
        "31 taps in 16 groups, masked and one frame long",
        (f"{_LAYERS}.CausalConvPositionEmbedding",),
    ),
    Planned(
        "GRN and ConvNeXt-V2",
        "not used by CosyVoice 3; verified as units",
        (f"{_LAYERS}.GRN", f"{_LAYERS}.ConvNeXtV2Block"),
    ),
    Planned(
        "AdaLN-Zero",
        "both forms, with their two orders of chunks",
        (f"{_LAYERS}.AdaLayerNormZero", f"{_LAYERS}.AdaLayerNormZero_Final"),
    ),
    Planned("Feed-forward", "erf and tanh GELU", (f"{_LAYERS}.FeedForward",)),
    Planned(
        "Attention and masks",
        "no mask, padding, chunks, the last-query-row quirk, drawn lengths and chunk edges",
        (f"{_LAYERS}.Attention", "flow.masks"),
    ),
    Planned(
        "DiT",
        "block, input embedding, whole estimator, full and chunked",
        (f"{_LAYERS}.DiTBlock", "flow.dit"),
    ),
    Planned("Pre-lookahead", "zeros or context on the right", ("flow.lookahead",)),
    Planned(
        "Schedule and Euler steps",
        "cosine times, running t, float32 state",
        ("flow.matching.cosine_schedule", "flow.matching.CausalConditionalCFM"),
    ),
    Planned(
        "Guidance",
        "one batch of two against two passes; equal rows in give equal rows out",
        ("flow.matching.CausalConditionalCFM.velocity", "walk.flow.separate"),
    ),
    Planned(
        "Flow decoder",
        "prompt, none, streaming, finalize, drawn lengths, whole on the checkpoint",
        ("flow", "walk.flow"),
    ),
    Planned(
        "Fast forms",
        "powers of two, activations, attention in blocks, back ends of a convolution; kept sums in half precision",
        ("fast",),
    ),
    Planned(
        "Streaming",
        "any cut of the input against whole recomputation by the reference; memory, kept prompts, overlapping requests",
        ("stream", "walk.flow.stream", "walk.vocoder.stream"),
    ),
    Planned(
        "Batches",
        "rows of unlike length against each alone by the reference; equal, exchanged and broken neighbours",
        ("batched", "walk.batched"),
    ),
    Planned("Causal padding", "left, right, down, up, caches, both back ends, drawn shapes", ("vocoder.convolution",)),
    Planned("Snake", "alpha on a linear scale", (f"{_VOCODER}.Snake",)),
    Planned("Residual blocks", "three kernels, three dilations", (f"{_VOCODER}.ResBlock",)),
    Planned("Pitch predictor", "in float64, both finalize modes", ("vocoder.f0",)),
    Planned(
        "SineGen2 and source",
        "phases by the original's roundings up to 30 s, voiced and unvoiced, uniform noise",
        ("vocoder.source",),
    ),
    Planned(
        "STFT and ISTFT",
        "16 points, periodic Hann, clip at 100, drawn lengths, one undoes the other",
        ("vocoder.stft",),
    ),
    Planned(
        "Generator",
        "both finalize modes, a chunk equals the start of the whole, loud input, whole on the checkpoint",
        ("vocoder", "walk.vocoder"),
    ),
    Planned("Tokens to samples", "flow and vocoder in one go", ("walk.whole",)),
    Planned(
        "Driver and every synthesis mode",
        "hop schedule, chunk lengths, zero-shot, cross-lingual, instruct, voice conversion, streamed and whole",
        ("model", "cosyvoice3", "frontend.frontend"),
    ),
    Planned(
        "Conversion",
        "each of the 1766 tensors at its place at the official depth, by a list of its own; folding, tied and constant "
        "tensors, the proof by counts; damage, and tensors missing, unknown or of another shape",
        ("convert",),
        elsewhere=True,
    ),
    Planned(
        "Layouts of a checkpoint",
        "fine-tuned variants, wrappers, prefixes, half precision",
        ("convert.layouts",),
        elsewhere=True,
    ),
    Planned(
        "Readers of the two graphs",
        "weights by node, against onnxruntime and the modules they came from; damage",
        ("convert.onnx",),
        elsewhere=True,
    ),
    Planned(
        "Configuration",
        "every key of the official text files and of config.json with another value: followed, refused or known to be "
        "read by training alone",
        ("config",),
    ),
    Planned(
        "Converted folders",
        "bit for bit as written, whole or in shards; damaged ones, other heads; from the hub",
        ("files",),
        elsewhere=True,
    ),
    Planned(
        "Reduced precision and quantization",
        "what stays float32, each part and width, quality against float32, values that leave the range",
        ("convert.quantize", "fast.precision"),
    ),
    Planned("Baked timesteps", "tables in place of layers, wrong and swapped ones", ("convert.bake",), elsewhere=True),
    Planned(
        "Community folders",
        "every tensor and setting of mlx-community's layout, official sizes by shapes alone, each part's results",
        ("files.community",),
        elsewhere=True,
    ),
    Planned("Command line", "every mode, texts from files and pipes, devices", ("app",), elsewhere=True),
    Planned("Liveness", "every weight and input moves a result, both sides of every branch are reached", ("liveness",)),
    Planned("Planted faults", "one of each family is caught in its own part", ("faults",)),
)

NOT_CHECKED = (
    Gap(
        "speech that people can judge by ear", "the checkpoint has random weights unless --checkpoint names a real one"
    ),
    Gap("training", "neither side has training code"),
    Gap("the original on a GPU", "its float32 there follows another order of sums; the float64 oracle is the CPU's"),
    Gap("ttsfrd text normalisation", "a closed binary that the original uses when it is installed"),
)


def line_of(path: str) -> str | None:
    """The line of the plan that a part belongs to."""
    found = [(part, planned.name) for planned in PLAN for part in planned.parts if f"{path}.".startswith(f"{part}.")]
    return max(found, key=lambda pair: len(pair[0]), default=(None, None))[1]


def components(rows: Sequence[Row], tests: Sequence[Test], partial: bool = False) -> tuple[Component, ...]:
    """Judge each line of the plan by its evidence: rows by their module, tests by the part that they are marked with.

    A line without any evidence is an ERROR, or a SKIP when the run was told to leave tests out (`partial`), or none of
    tests/ and the line is shown there alone.
    """
    shown: dict[str | None, tuple[list[Row], list[Test]]] = {planned.name: ([], []) for planned in PLAN}
    for row in rows:
        shown.setdefault(line_of(row.module), ([], []))[0].append(row)
    for test in tests:
        if test.part:
            shown.setdefault(line_of(test.part), ([], []))[1].append(test)
    ran = any(test.nodeid.startswith(ELSEWHERE) for test in tests)
    found = [_judge(line, *shown[line.name], partial or (line.elsewhere and not ran)) for line in PLAN]
    if None in shown:
        evidence = _evidence(*shown[None])
        found.append(Component("Elsewhere", "ERROR", "parts that no line of the plan has", evidence, evidence))
    return tuple(found)


def _judge(planned: Planned, rows: Sequence[Row], tests: Sequence[Test], partial: bool) -> Component:
    broken = [row for row in rows if row.status in BAD]
    issues = [f"{row.name}: {row.message}" for row in broken]
    issues += [f"{test.nodeid}: {test.reason}" for test in tests if test.outcome in ("failed", "error")]
    if issues:
        status = "ERROR" if any(row.status == "ERROR" for row in broken) else "FAIL"
    elif any(row.status == "PASS" for row in rows) or any(test.outcome == "passed" for test in tests):
        status = "PASS"
    else:
        status = "SKIP" if rows or tests or partial else "ERROR"
        issues = ["not selected in this run" if partial and not (rows or tests) else "nothing was compared"]
    return Component(planned.name, status, planned.checked, _evidence(rows, tests), tuple(issues))


def _evidence(rows: Sequence[Row], tests: Sequence[Test]) -> tuple[str, ...]:
    return (*(row.name for row in rows), *(test.nodeid for test in tests))
