"""Which tests go with a module, beyond its isolated cases, and which module a failing test speaks of."""

from __future__ import annotations

from pathlib import Path

from parity_tests.cases import all_cases
from parity_tests.harness.golden_file import GoldenError, describe
from parity_tests.harness.golden_table import target_of

_GOLDEN = "test_golden.py::test_the_port_is_the_original"
GOLDEN_FILES = Path(__file__).parents[1] / "data" / "golden"
GOLDEN = (_GOLDEN,)  # all of them, where a stage's own tests have seen nothing
# What runs before the isolated cases, which all depend on it, by the first word of the fault's module.
BEFORE = {"convert": (("test_transforms.py",),)}
_FLOW = (
    ("test_edges.py", "-k", "time or flow_positions"),
    ("test_dtypes.py",),
    ("test_handed_noise.py", "-k", "whole_flow"),
    ("test_flow.py",),
    ("test_flow_fast.py",),
    (_GOLDEN, "-k", "dit or cfm or flow or masks or rotary"),
    ("test_walks.py", "-k", "flow"),
)
_VOCODER = (
    ("test_edges.py", "-k", "phases"),
    ("test_handed_noise.py", "-k", "whole_vocoder"),
    ("test_terms.py", "-k", "upsampling"),
    ("test_without_float64.py",),
    ("test_vocoder.py",),
    ("test_vocoder_fast.py",),
    (_GOLDEN, "-k", "causal or hift or sine"),
    ("test_walks.py", "-k", "vocoder"),
)
# Whose isolated cases run for a module that has none of its own, by the beginnings of their paths; "" is all.
CASES: dict[str, tuple[str, ...]] = {
    "convert": ("",),
    "flow": ("flow.", "fast."),
    "fast": ("fast.", "flow.", "llm.", "vocoder."),
    "stream.flow.StreamingFlow": ("flow.", "fast."),
    "stream.vocoder.StreamingVocoder": ("vocoder.",),
}
# What runs after the isolated cases, by the longest path that the fault's module starts with.
TESTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "frontend.text": (("test_text.py",), ("test_text_numbers.py",), ("test_threads.py", "-k", "normalizer")),
    "frontend.tokenizer": (("test_tokenizer_pieces.py",), ("test_tokenizer.py",), ("test_edges.py", "-k", "digits")),
    "frontend.frontend": (("test_frontend.py", "-k", "hand_over"), ("test_cosyvoice3.py",)),
    "frontend": (
        ("test_frontend_audio.py",),
        (_GOLDEN, "-k", "mel or resample"),
        ("test_golden_onnx.py",),
        ("test_onnx.py",),
    ),
    "llm.sampling": (
        (_GOLDEN, "-k", "sampling"),
        ("test_llm.py", "-k", "sampling"),
        ("test_edges.py", "-k", "scores or nucleus"),
        ("test_llm.py",),
    ),
    "llm": (
        ("test_llm.py",),
        ("test_edges.py", "-k", "cache or speech or llm_positions"),
        ("test_dtypes.py",),
        (_GOLDEN, "-k", "llm or sampling"),
        ("test_walks.py", "-k", "llm or tokens"),
    ),
    "flow": _FLOW,
    "fast": _FLOW + _VOCODER,
    "vocoder": _VOCODER,
    "stream.vocoder": (
        ("test_handed_noise.py", "-k", "streamed_vocoder"),
        ("test_vocoder_streaming.py",),
    ),
    "stream.flow": (
        ("test_handed_noise.py", "-k", "streamed_flow"),
        ("test_dtypes.py",),
        ("test_flow_streaming.py",),
    ),
    "stream.memory": (("test_threads.py", "-k", "memory"), ("test_streaming.py",)),
    "noise": (
        ("test_noise.py",),
        ("test_threads.py", "-k", "noise"),
        ("test_handed_noise.py",),
        (_GOLDEN, "-k", "noise"),
    ),
    "fast.precision": (("test_dtypes.py",),),
    "fast.convolution": (("test_ops.py",), ("test_terms.py",)),
    "cosyvoice3": (("test_cosyvoice3.py", "-k", "pieces or zero_is"), ("test_cosyvoice3.py",)),
    "model": (
        (_GOLDEN, "-k", "silent"),
        ("test_driver.py", "-k", "silences or interpolation or speed"),
        ("test_edges.py", "-k", "request"),
        ("test_driver.py",),
        ("test_streaming.py", "-k", "driver"),
        ("test_driver_requests.py",),
        ("test_config_fields.py", "-k", "streaming"),
        ("test_requests.py",),
        ("test_handed_noise.py", "-k", "request"),
        ("test_cosyvoice3.py",),
    ),
    "files.community": (("test_community_sizes.py",), ("test_community.py",)),
    "config": (("test_config_fields.py",), ("test_convert_config.py",)),
    "files.weights": (("test_weights.py",),),
    "convert": (
        ("test_mapping.py",),
        ("test_config_keys.py",),
        ("test_official_depth.py",),
        ("test_convert_tensors.py",),
        ("test_convert.py",),
        ("test_convert_refused.py",),
        ("test_weights.py",),
        ("test_golden_onnx.py",),
        ("test_onnx_files.py",),
        ("test_walks.py", "-k", "test_walk or tokens"),
    ),
}
# What a failing test says about the place of a fault, by the longest beginning of its name.
MODULES = {
    "test_golden.py::test_the_port_is_the_original[llm_bistream": "llm.speech_lm.CosyVoice3LM",
    "test_golden.py::test_the_port_is_the_original[llm_greedy": "llm.speech_lm.CosyVoice3LM",
    "test_golden.py::test_the_port_is_the_original[model_tts_vc": "model.CosyVoice3Model",
    "test_golden.py::test_the_port_is_the_original[sampling": "llm.sampling",
    "test_golden.py::test_the_port_is_the_original[silent": "model.drop_silence",
    "test_golden.py::test_the_port_is_the_original[upstream_noise": "noise",
    "test_llm.py": "llm.speech_lm.CosyVoice3LM",
    "test_llm.py::test_qwen2": "llm.qwen2.Qwen2Model",
    "test_llm.py::test_sampling": "llm.sampling",
    "test_cosyvoice3.py": "cosyvoice3",
    "test_dtypes.py::test_a_stream": "stream.flow.StreamingFlow",
    "test_edges.py::test_flow_positions": "flow.layers.RotaryEmbedding",
    "test_edges.py::test_llm_positions": "llm.qwen2.Qwen2RotaryEmbedding",
    "test_frontend.py::test_hand_over": "frontend.frontend",
    "test_handed_noise.py::test_a_request": "model.CosyVoice3Model",
    "test_handed_noise.py::test_a_streamed_flow": "stream.flow.StreamingFlow",
    "test_handed_noise.py::test_a_streamed_vocoder": "stream.vocoder.StreamingVocoder",
    "test_handed_noise.py::test_a_whole_flow": "flow.decoder.CausalMaskedDiffWithDiT.inference",
    "test_handed_noise.py::test_a_whole_vocoder": "vocoder.generator.CausalHiFTGenerator.inference",
    "test_handed_noise.py::test_windows": "noise",
    "test_transforms.py": "convert.transforms",
    "test_requests.py": "model.CosyVoice3Model",
    "test_terms.py::test_products": "fast.convolution",
    "test_terms.py::test_upsampling": "vocoder.convolution.CausalConv1dUpsample",
    "test_threads.py::test_one_at_a_time_in_the_memory": "stream.memory",
    "test_threads.py::test_one_at_a_time_in_the_noise": "noise",
    "test_threads.py::test_one_at_a_time_in_the_normalizer": "frontend.text",
    "test_edges.py::test_a_cache": "llm.qwen2.Qwen2Model",
    "test_edges.py::test_a_request": "model.CosyVoice3Model",
    "test_edges.py::test_digits": "frontend.tokenizer",
    "test_edges.py::test_equal_scores": "llm.sampling",
    "test_edges.py::test_phases": "vocoder.source.SineGen2",
    "test_edges.py::test_speech": "llm.speech_lm.CosyVoice3LM",
    "test_edges.py::test_the_nucleus": "llm.sampling",
    "test_edges.py::test_time": "flow.layers.SinusPositionEmbedding",
    "test_frontend_audio.py": "frontend.audio",
    "test_vocoder.py::test_polyphase": "vocoder.convolution.CausalConv1dUpsample",
    "test_vocoder_streaming.py": "stream.vocoder.StreamingVocoder",
    "test_vocoder.py::test_the_pitch": "vocoder.f0.CausalConvRNNF0Predictor",
    "test_vocoder.py::test_phases": "vocoder.source.SineGen2",
    "test_noise.py": "noise",
    "test_flow.py::test_a_streamed": "flow.dit.DiT",
    "test_flow_fast.py": "fast.attention",
    "test_vocoder_fast.py": "fast.arithmetic",
    "test_text.py": "frontend.text",
    "test_text_numbers.py": "frontend.text",
    "test_flow_streaming.py": "stream.flow.StreamingFlow",
    "test_streaming.py": "stream.memory",
    "test_streaming.py::test_the_driver": "model.CosyVoice3Model",
    "test_tokenizer": "frontend.tokenizer",
    "test_driver.py": "model.CosyVoice3Model",
    "test_driver_requests.py": "model.CosyVoice3Model",
    "test_driver.py::test_interpolation": "model.interpolate",
    "test_driver.py::test_long_silences": "model.drop_silence",
    "test_convert": "convert",
    "test_community": "files.community",
    "test_config_fields.py": "config",
    "test_config_fields.py::test_a_field_is_followed[streaming": "model.CosyVoice3Model",
    "test_config_keys.py": "convert",
    "test_golden_onnx.py": "frontend.speaker.CAMPPlus",
    "test_golden_onnx.py::test_a_file_that_does_not_count_padding_is_followed[reference]": "convert",
    "test_mapping.py": "convert",
    "test_official_depth.py": "convert",
    "test_onnx_files.py": "convert",
    "test_weights.py": "files.weights",
}


def module_of(nodeid: str) -> str:
    """Path below `port` that a failing test points at; its file where it points at none."""
    name = nodeid.removeprefix("parity_tests/")
    known = [beginning for beginning in MODULES if name.startswith(beginning)]
    if known:
        return MODULES[max(known, key=len)]
    inner = name.partition("[")[2].removesuffix("]")
    of_case = next((case.part.path for case in all_cases() if case.name == inner), None)
    if of_case:
        return of_case
    if name.startswith("test_dtypes.py::test_sums"):
        return inner.partition("-")[0]
    part = _golden_target(inner) if name.startswith(_GOLDEN) else None
    return part or name.partition("::")[0]


def _golden_target(file: str) -> str | None:
    try:
        return target_of(describe(GOLDEN_FILES / f"{file}.safetensors")[0])
    except GoldenError:
        return None
