"""The suite as the fault catalogue runs it: in this process, smallest parts first, up to the first failure.

The reference does not change under a fault of the port, so its results are computed once for each isolated case.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch

from parity_tests.adapters.own import OwnPort
from parity_tests.harness.cases import Case, all_cases
from parity_tests.harness.fault_catalogue.base import FaultError, clear_caches
from parity_tests.harness.golden_table import find
from parity_tests.harness.judge import compare_all
from parity_tests.harness.oracle import Arrays, reference_state, run_reference
from port import noise

ROOT = Path(__file__).parents[2]

_GOLDEN = "test_golden.py::test_the_port_is_the_original"
# What runs after the isolated cases, by the longest path that the fault's module starts with.
TESTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "frontend.text": (("test_text.py",),),
    "frontend.tokenizer": (("test_tokenizer.py",), ("test_edges.py", "-k", "digits")),
    "frontend": (("test_frontend_audio.py",), (_GOLDEN, "-k", "mel or resample"), ("test_onnx.py",)),
    "llm.sampling": (
        (_GOLDEN, "-k", "sampling"),
        ("test_llm.py", "-k", "sampling"),
        ("test_edges.py", "-k", "scores or nucleus"),
        ("test_llm.py",),
    ),
    "llm": (
        ("test_llm.py",),
        ("test_edges.py", "-k", "cache or speech"),
        (_GOLDEN, "-k", "llm or sampling"),
        ("test_walks.py", "-k", "llm or tokens"),
    ),
    "flow": (
        ("test_edges.py", "-k", "time"),
        ("test_flow.py",),
        ("test_flow_fast.py",),
        (_GOLDEN, "-k", "dit or cfm or flow or masks or rotary"),
        ("test_walks.py", "-k", "flow"),
    ),
    "vocoder": (
        ("test_edges.py", "-k", "phases"),
        ("test_vocoder.py",),
        ("test_vocoder_fast.py",),
        (_GOLDEN, "-k", "causal or hift or sine"),
        ("test_walks.py", "-k", "vocoder"),
    ),
    "vocoder.incremental": (("test_vocoder_streaming.py",),),
    "flow.incremental": (("test_streaming.py", "-k", "not memory and not prompt and not driver"),),
    "streaming": (("test_streaming.py", "-k", "memory or prompt or weights"),),
    "noise": (("test_noise.py",), (_GOLDEN, "-k", "noise")),
    "model": (
        (_GOLDEN, "-k", "silent"),
        ("test_driver.py", "-k", "silences or interpolation or speed"),
        ("test_edges.py", "-k", "request"),
        ("test_driver.py",),
        ("test_cosyvoice3.py",),
    ),
    "convert": (("test_convert.py",), ("test_weights.py",), ("test_walks.py", "-k", "test_walk or tokens")),
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
    "test_edges.py::test_a_cache": "llm.qwen2.Qwen2Model",
    "test_edges.py::test_a_request": "model.CosyVoice3Model",
    "test_edges.py::test_digits": "frontend.tokenizer",
    "test_edges.py::test_equal_scores": "llm.sampling",
    "test_edges.py::test_phases": "vocoder.source.SineGen2",
    "test_edges.py::test_speech": "llm.speech_lm.CosyVoice3LM",
    "test_edges.py::test_the_nucleus": "llm.sampling",
    "test_edges.py::test_time": "flow.layers.SinusPositionEmbedding",
    "test_flow_fast.py": "flow.fast",
    "test_vocoder_fast.py": "vocoder.fast",
    "test_frontend_audio.py": "frontend.audio",
    "test_vocoder.py::test_polyphase": "vocoder.convolution.CausalConv1dUpsample",
    "test_vocoder_streaming.py": "vocoder.incremental.StreamingVocoder",
    "test_vocoder.py::test_phases": "vocoder.source.SineGen2",
    "test_noise.py": "noise",
    "test_text.py": "frontend.text",
    "test_streaming.py": "flow.incremental.StreamingFlow",
    "test_streaming.py::test_a_second": "streaming",
    "test_streaming.py::test_each_thing": "streaming",
    "test_streaming.py::test_memory": "streaming",
    "test_streaming.py::test_other_weights": "streaming",
    "test_tokenizer.py": "frontend.tokenizer",
    "test_driver.py": "model.CosyVoice3Model",
    "test_driver.py::test_interpolation": "model.interpolate",
    "test_driver.py::test_long_silences": "model.drop_silence",
    "test_convert.py": "convert",
    "test_weights.py": "convert",
}


@dataclass(frozen=True)
class Finding:
    """The first check that failed under a fault."""

    by: str
    first_failing: str
    module: str
    message: str


def look(module: str) -> Finding | None:
    """The first failure of the isolated cases of a module's stage, then of the tests that go with it."""
    stage = module.split(".")[0]
    cases = [case for case in all_cases() if case.target.path.startswith(f"{stage}.")]
    beginning = max((prefix for prefix in TESTS if module.startswith(prefix)), key=len)
    return _isolated(cases) or _tests(TESTS[beginning])


def look_everywhere() -> Finding | None:
    """The first failure of all isolated cases, then of all tests."""
    return _isolated(all_cases()) or _tests([selection for group in TESTS.values() for selection in group])


def baseline() -> Finding | None:
    """What fails without any fault; nothing should."""
    with clean():
        return _isolated(all_cases())


def holds_otherwise(finding: Finding) -> bool:
    """Whether the test that failed under a fault passes without it; isolated cases are known to, from `baseline`."""
    return "::" not in finding.by or _passes(finding.by)


@contextmanager
def clean() -> Iterator[None]:
    """Tables and noise made under a fault must not outlive it, nor those made before hide it."""
    kept, noise._FIXED = noise._FIXED, noise._FixedNoise()
    clear_caches()
    try:
        yield
    finally:
        noise._FIXED = kept
        clear_caches()


@dataclass(frozen=True)
class _Truth:
    state: Arrays
    inputs: Arrays
    single: Arrays
    double: Arrays


_TRUTHS: dict[str, _Truth] = {}


def _truth(case: Case) -> _Truth:
    if case.name not in _TRUTHS:
        state, inputs = reference_state(case), case.draw()
        run = (case.target, case.config, state, inputs, case.call)
        single, double = (run_reference(*run, dtype) for dtype in (torch.float32, torch.float64))
        _TRUTHS[case.name] = _Truth(state, inputs, single, double)
    return _TRUTHS[case.name]


def warm() -> None:
    """While the port is whole, compute the reference's results of all cases and import the tests.

    A test module computes constants when it is imported; made under a fault, they would outlive it.
    """
    for case in all_cases():
        _truth(case)
    files = {selection[0].partition("::")[0] for group in TESTS.values() for selection in group}
    _pytest(("", "--collect-only", *(str(ROOT / "parity_tests" / file) for file in sorted(files))))


def _isolated(cases: Sequence[Case]) -> Finding | None:
    port = OwnPort()
    for case in cases:
        truth = _truth(case)
        try:
            found = port.run(case.target, case.config, truth.state, truth.inputs, case.call)
        except Exception as error:
            return Finding(case.name, case.name, case.target.path, f"ERROR: {type(error).__name__}: {error}")
        for output, reading in compare_all(found, truth.single, truth.double).items():
            if reading.status != "PASS":
                message = f"{reading.status}: {reading.message}"
                return Finding(case.name, f"{case.name}.{output}", case.target.path, message)
    return None


def _tests(selections: Sequence[Sequence[str]]) -> Finding | None:
    for selection in selections:
        if (failed := _pytest(selection)) is not None:
            nodeid, message = failed
            return Finding(nodeid, nodeid, _module_of(nodeid), message)
    return None


class _FirstFailure:
    """A pytest plugin that remembers the first test that failed."""

    found: tuple[str, str] | None = None
    ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call" and not report.skipped
        if report.failed and self.found is None:
            lines = str(report.longrepr).strip().splitlines()
            self.found = report.nodeid, lines[-1][:300] if lines else ""

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.found is None:
            self.found = report.nodeid, str(report.longrepr).strip().splitlines()[-1][:300]


def _pytest(selection: Sequence[str]) -> tuple[str, str] | None:
    """Run a part of the suite in this process up to its first failure: its node id and last line.

    Raises:
        FaultError: nothing ran.
    """
    from parity_tests.harness.session import Session

    first, (name, *further) = _FirstFailure(), selection
    path = [str(ROOT / "parity_tests" / name.removeprefix("parity_tests/"))] if name else []
    options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    outer, current = getattr(Session, "current", None), os.environ.get("PYTEST_CURRENT_TEST")
    threads, printed = torch.get_num_threads(), StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            pytest.main([*path, "-m", "not full", *further, *options], plugins=[first])
    finally:
        torch.set_num_threads(threads)
        if outer is not None:
            Session.current = outer
        if current is not None:
            os.environ["PYTEST_CURRENT_TEST"] = current
    if not first.ran and first.found is None and "--collect-only" not in selection:
        raise FaultError(f"no test ran: {' '.join(selection)}")
    return first.found


@cache
def _passes(nodeid: str) -> bool:
    with clean():
        return _pytest((nodeid,)) is None


def _module_of(nodeid: str) -> str:
    name = nodeid.removeprefix("parity_tests/")
    known = [beginning for beginning in MODULES if name.startswith(beginning)]
    if known:
        return MODULES[max(known, key=len)]
    file = name.partition("[")[2].removesuffix("]")
    golden = find(file) if name.startswith(_GOLDEN) else None
    return golden.runs[0].target if golden else name.partition("::")[0]
