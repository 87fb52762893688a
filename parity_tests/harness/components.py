"""The verification plan: each component of the model, what was checked of it, and the rows and tests that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mlx_parity.report.data import Component, Gap, Row, Test
from mlx_parity.report.rows import BAD


@dataclass(frozen=True)
class Planned:
    """A line of the plan; `rows` are globs of checkpoint names, `tests` globs of pytest node ids."""

    name: str
    checked: str
    rows: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> bool:
        """Shown by no parity test."""
        return not self.rows and all(glob.startswith(ELSEWHERE) for glob in self.tests)


ELSEWHERE = "tests/"
PLAN: tuple[Planned, ...] = (
    Planned(
        "Fixed noise",
        "the flow's and the source's noise, drawn without torch, against the original's sha256 and torch itself",
        rows=("golden.upstream_noise.*",),
        tests=("test_noise.py::*",),
    ),
    Planned("Resampler", "six pairs of rates against torchaudio's kernel", ("frontend.resample.*", "golden.resample*")),
    Planned(
        "Mel and log-mel", "filterbanks and spectra, odd lengths", ("frontend.mel*", "frontend.log_mel*", "golden.mel*")
    ),
    Planned("Kaldi fbank", "filterbank, energies, mean over time", ("frontend.kaldi*", "frontend.fbank*")),
    Planned(
        "Text",
        "token ids against transformers, normalisation and splitting by the original's examples",
        ("text_tokenizer*",),
        ("test_text.py::*", "test_tokenizer.py::*"),
    ),
    Planned(
        "Speech tokenizer",
        "attention with memory, quantiser before and after rounding, padded batches, whole encoder",
        ("speech_tokenizer.*", "walk.speech_tokenizer*"),
    ),
    Planned(
        "Speaker encoder", "every layer, segments around 100 frames, whole encoder", ("speaker.*", "walk.speaker*")
    ),
    Planned(
        "Qwen2",
        "norm, half-split rotary, grouped attention, feed-forward, layer, stack; with cache and without",
        ("llm.rms_norm*", "llm.rotary*", "llm.attention*", "llm.mlp*", "llm.layer*", "llm.qwen2*", "walk.llm*"),
        ("test_llm.py::test_qwen2*",),
    ),
    Planned(
        "Speech language model",
        "input layout, scores, greedy and seeded generation, bistream, length rules",
        ("llm.scores*", "golden.llm*"),
        (
            "test_llm.py::test_seeded*",
            "test_llm.py::test_greedy*",
            "test_llm.py::test_the_minimum*",
            "test_walks.py::test_seeded*",
        ),
    ),
    Planned(
        "Sampling",
        "nucleus and repetition-aware stage, replayed from torch seeds and recorded draws",
        ("golden.sampling*",),
        ("test_llm.py::test_sampling*", "test_llm.py::test_no_other*"),
    ),
    Planned(
        "Time embedding",
        "sinusoids up to 1000 rad, two-layer network",
        ("flow.sinus*", "flow.time_embed*", "golden.sinus*", "golden.timestep*"),
    ),
    Planned("Rotary", "interleaved pairs, head 0 only, offsets", ("flow.rotary*", "golden.rotary*")),
    Planned("Causal position convolution", "31 taps in 16 groups, masked and one frame long", ("flow.conv_pos*",)),
    Planned(
        "GRN and ConvNeXt-V2",
        "not used by CosyVoice 3; verified as units",
        ("flow.grn*", "flow.convnext*", "golden.grn*", "golden.convnext*"),
    ),
    Planned("AdaLN-Zero", "both forms, with their two orders of chunks", ("flow.adaln*", "golden.adaln*")),
    Planned("Feed-forward", "erf and tanh GELU", ("flow.feed_forward*", "golden.feedforward*")),
    Planned(
        "Attention and masks",
        "no mask, padding, chunks, the last-query-row quirk, drawn lengths and chunk edges",
        ("flow.attention*", "flow.masks*", "golden.attention*", "golden.masks*"),
        ("test_flow.py::test_pad*", "test_flow.py::test_chunk*", "test_flow.py::test_attention*"),
    ),
    Planned(
        "DiT",
        "block, input embedding, whole estimator, full and chunked",
        ("flow.block*", "flow.input*", "flow.dit*", "golden.dit*"),
    ),
    Planned("Pre-lookahead", "zeros or context on the right", ("flow.lookahead*", "golden.prelookahead*")),
    Planned(
        "Schedule and Euler steps",
        "cosine times, running t, float32 state",
        ("flow.schedule*", "golden.cfm*", "flow.cfm.steps*"),
    ),
    Planned(
        "Guidance",
        "one batch of two against two passes; equal rows in give equal rows out",
        ("flow.cfm*", "walk.flow.separate*"),
        ("test_flow.py::test_guidance*", "test_flow.py::test_equal_rows*"),
    ),
    Planned(
        "Flow decoder",
        "prompt, none, streaming, finalize, drawn lengths, whole on the checkpoint",
        ("flow.decoder*", "golden.flow_inference*", "walk.flow*"),
        ("test_flow.py::test_decoder*", "test_flow.py::test_a_streamed*"),
    ),
    Planned(
        "Streaming",
        "any cut of the input against whole recomputation by the reference; memory, kept prompts, overlapping requests",
        ("walk.flow.stream*", "walk.vocoder.stream*"),
        ("test_streaming.py::*", "test_flow_streaming.py::*", "test_vocoder_streaming.py::*"),
    ),
    Planned(
        "Causal padding",
        "left, right, down, up, caches, both back ends, drawn shapes",
        ("vocoder.conv*", "golden.causal*"),
        (
            "test_vocoder.py::test_causal*",
            "test_vocoder.py::test_down*",
            "test_vocoder.py::test_up*",
            "test_vocoder.py::test_both*",
        ),
    ),
    Planned("Snake", "alpha on a linear scale", ("vocoder.snake*", "golden.snake*")),
    Planned("Residual blocks", "three kernels, three dilations", ("vocoder.resblock*", "golden.resblock*")),
    Planned(
        "Pitch predictor",
        "in float64, both finalize modes",
        ("vocoder.f0*", "golden.f0*"),
        ("test_vocoder.py::test_the_pitch*",),
    ),
    Planned(
        "SineGen2 and source",
        "phases by the original's roundings up to 30 s, voiced and unvoiced, uniform noise",
        ("vocoder.sine*", "vocoder.source*", "golden.sinegen2*"),
        ("test_vocoder.py::test_sines*", "test_vocoder.py::test_phases*"),
    ),
    Planned(
        "STFT and ISTFT",
        "16 points, periodic Hann, clip at 100, drawn lengths, one undoes the other",
        ("vocoder.stft*", "vocoder.istft*", "golden.stft*", "golden.istft*"),
        ("test_vocoder.py::test_stft*", "test_vocoder.py::test_istft*"),
    ),
    Planned(
        "Generator",
        "both finalize modes, a chunk equals the start of the whole, loud input, whole on the checkpoint",
        ("vocoder.decode*", "vocoder.inference*", "golden.hift*", "walk.vocoder*"),
        ("test_vocoder.py::test_a_chunk*", "test_vocoder.py::test_polyphase*"),
    ),
    Planned("Tokens to samples", "flow and vocoder in one go", ("walk.whole*",)),
    Planned(
        "Driver and every synthesis mode",
        "hop schedule, chunk lengths, zero-shot, cross-lingual, instruct, voice conversion, streamed and whole",
        ("golden.model_tts_vc*", "golden.silent*", "speech.*"),
        ("test_driver.py::*", "test_driver_requests.py::*", "test_cosyvoice3.py::*"),
    ),
    Planned(
        "Conversion",
        "each of the 1766 tensors at its place at the official depth, by a list of its own; folding, tied and constant "
        "tensors, fine-tuned variants, the proof by counts",
        tests=(
            "tests/convert/test_official_depth.py::*",
            "tests/convert/test_mapping.py::*",
            "tests/convert/test_convert.py::*",
        ),
    ),
    Planned(
        "Readers of the two graphs",
        "weights by node, against onnxruntime and the modules they came from; damage",
        tests=("tests/convert/test_onnx.py::*", "tests/convert/test_onnx_files.py::*"),
    ),
    Planned(
        "Refusals of a conversion",
        "tensors missing, unknown or of another shape in each of the six files; code in pickles and yaml; damage; "
        "broken downloads",
        tests=(
            "tests/convert/test_convert_refused.py::*",
            "tests/convert/test_convert_tensors.py::*",
            "tests/convert/test_convert_hub.py::*",
            "tests/fuzz/test_fuzz.py::*",
        ),
    ),
    Planned(
        "Configuration",
        "every key of the official text files and of config.json with another value: followed, refused or known to be "
        "read by training alone",
        tests=(
            "tests/convert/test_config_keys.py::*",
            "test_config_fields.py::*",
            "tests/convert/test_convert_config.py::*",
        ),
    ),
    Planned(
        "Converted folders",
        "bit for bit as written, whole or in shards; damaged ones, other heads; from the hub",
        tests=("tests/port/test_weights.py::*", "tests/port/test_hub.py::*"),
    ),
    Planned(
        "Reduced precision and quantization",
        "what stays float32, each part and width, quality against float32, values that leave the range",
        tests=("tests/convert/test_quantize.py::*", "test_precision.py::*", "test_quality.py::*"),
    ),
    Planned(
        "Baked timesteps", "tables in place of layers, wrong and swapped ones", tests=("tests/convert/test_bake.py::*",)
    ),
    Planned(
        "Community folders",
        "every tensor and setting of mlx-community's layout, official sizes by shapes alone, each part's results",
        tests=("tests/convert/test_community.py::*", "tests/convert/test_community_sizes.py::*"),
    ),
)

NOT_CHECKED = (
    Gap(
        "speech that people can judge by ear", "the checkpoint has random weights unless --checkpoint names a real one"
    ),
    Gap("training", "neither side has training code"),
    Gap("the original on a GPU", "its float32 there follows another order of sums; the float64 oracle is the CPU's"),
    Gap("ttsfrd text normalisation", "a closed binary that the original uses when it is installed"),
)


def components(rows: Sequence[Row], tests: Sequence[Test], partial: bool = False) -> tuple[Component, ...]:
    """Judge each line of the plan by its evidence.

    A line without any evidence is an ERROR, or a SKIP when the run was told to leave tests out (`partial`), or none of
    tests/ and the line is shown there alone.
    """
    ran = any(test.nodeid.startswith(ELSEWHERE) for test in tests)
    return tuple(_judge(planned, rows, tests, partial or (planned.elsewhere and not ran)) for planned in PLAN)


def _judge(planned: Planned, rows: Sequence[Row], tests: Sequence[Test], partial: bool) -> Component:
    rows = [row for row in rows if any(fnmatchcase(row.name, glob) for glob in planned.rows)]
    tests = [test for test in tests if any(fnmatchcase(test.nodeid, f"*{glob}") for glob in planned.tests)]
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
    evidence = (*(row.name for row in rows), *(test.nodeid for test in tests))
    return Component(planned.name, status, planned.checked, evidence, tuple(issues))
