"""Apply every fault of the catalogue to the port, one at a time, and see whether the ordinary suite notices.

    python -m parity_tests.harness.faults [--only NAME] [--quick] [--json FILE]

A fault is caught when a case or test of the suite fails under it that passes without it. The checks run in the order of
the pipeline, smallest parts first, and stop at the first failure. That failure names the right module when it belongs
to the very module of the fault; a module that merely contains it counts as wrong. Code with no isolated case (sampling,
text, noise, driver) is named by its module path.

The reference does not change under a fault of the port, so its results are computed once for each case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # before MLX is imported: see conftest.py

import pytest
import torch

from parity_tests.adapters.own import OwnPort
from parity_tests.harness.cases import Case, all_cases
from parity_tests.harness.fault_catalogue import (
    conversion,
    driver,
    flow,
    flow_blocks,
    flow_layers,
    frontend,
    llm,
    source,
    text,
    unseen,
    vocoder,
)
from parity_tests.harness.fault_catalogue.base import Fault, FaultError, clear_caches
from parity_tests.harness.golden_table import find
from parity_tests.harness.judge import compare_all
from parity_tests.harness.oracle import Arrays, reference_state, run_reference
from port import noise

ROOT = Path(__file__).parents[2]
PARTS = (frontend, text, llm, flow_layers, flow_blocks, flow, vocoder, source, driver, conversion, unseen)
FAULTS: tuple[Fault, ...] = tuple(fault for part in PARTS for fault in part.FAULTS)
# One of each family, cheap to catch: for the ordinary run of the suite.
QUICK = (
    "resampler_rolloff_0.95",
    "mel_window_symmetric",
    "speaker_norm_by_the_batch",
    "qwen2_cache_lost_when_it_grows",
    "top_p_leaves_out_the_token_that_crosses",
    "chunk_edge_one_frame_early",
    "rope_half_split",
    "rope_on_all_heads",
    "adaln_eps_1e-5",
    "adaln_final_shift_before_scale",
    "unconditional_half_keeps_mu",
    "guidance_rate_off_by_a_thousandth",
    "lookahead_relu",
    "convolution_one_frame_early",
    "stage_slope_0.01",
    "synthesis_normalised_by_the_window",
    "magnitude_not_clipped",
    "noise_gaussian",
    "phase_summed_in_float32",
    "noise_one_word_late",
    "bias_of_queries_dropped",
    "one_row_of_the_speech_table",
)

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
        (_GOLDEN, "-k", "dit or cfm or flow or masks or rotary"),
        ("test_walks.py", "-k", "flow"),
    ),
    "vocoder": (
        ("test_edges.py", "-k", "phases"),
        ("test_vocoder.py",),
        (_GOLDEN, "-k", "causal or hift or sine"),
        ("test_walks.py", "-k", "vocoder"),
    ),
    "noise": (("test_noise.py",), (_GOLDEN, "-k", "noise")),
    "model": (
        (_GOLDEN, "-k", "silent"),
        ("test_driver.py", "-k", "silences or interpolation or speed"),
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
    "test_edges.py::test_digits": "frontend.tokenizer",
    "test_edges.py::test_equal_scores": "llm.sampling",
    "test_edges.py::test_phases": "vocoder.source.SineGen2",
    "test_edges.py::test_speech": "llm.speech_lm.CosyVoice3LM",
    "test_edges.py::test_the_nucleus": "llm.sampling",
    "test_edges.py::test_time": "flow.layers.SinusPositionEmbedding",
    "test_frontend_audio.py": "frontend.audio",
    "test_vocoder.py::test_polyphase": "vocoder.convolution.CausalConv1dUpsample",
    "test_vocoder.py::test_phases": "vocoder.source.SineGen2",
    "test_noise.py": "noise",
    "test_text.py": "frontend.text",
    "test_tokenizer.py": "frontend.tokenizer",
    "test_driver.py": "model.CosyVoice3Model",
    "test_driver.py::test_interpolation": "model.interpolate",
    "test_driver.py::test_long_silences": "model.drop_silence",
    "test_convert.py": "convert",
    "test_weights.py": "convert",
}
# An edit that no longer makes sense shows as one of these, which is no merit of the suite.
BROKEN = ("NameError", "AttributeError", "UnboundLocalError", "ImportError", "SyntaxError")


@dataclass(frozen=True)
class Finding:
    """The first check that failed under a fault."""

    by: str
    first_failing: str
    module: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """What became of one fault."""

    fault: Fault
    finding: Finding | None
    seconds: float
    problem: str = ""

    @property
    def caught(self) -> bool:
        return self.finding is not None

    @property
    def right_module(self) -> bool | None:
        return None if self.finding is None else self.finding.module == self.fault.module

    def to_dict(self) -> dict[str, Any]:
        """A row of the report's section `faults`."""
        fault, finding = self.fault, self.finding
        return {
            "name": fault.name,
            "family": fault.family,
            "module": fault.module,
            "seen_in": fault.seen_in,
            "caught": self.caught,
            "by": finding and finding.by,
            "first_failing": finding and finding.first_failing,
            "right_module": self.right_module,
            "equivalent": fault.equivalent,
        }


def section(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The report's section `faults`; faults proved equivalent are listed but leave the score."""
    counted = [v for v in verdicts if v.fault.equivalent is None]
    score = {"caught": sum(v.caught for v in counted), "total": len(counted)}
    return {"score": score, "rows": [v.to_dict() for v in verdicts]}


def examine(fault: Fault) -> Verdict:
    """Apply one fault, run the suite until something fails, undo it."""
    start = time.perf_counter()
    finding, problem = None, ""
    try:
        with _clean(), fault.patch():
            clear_caches()
            finding = _isolated(_cases(fault.stage)) or _tests(_selections(fault.module))
            if finding is None and fault.equivalent is None:  # the rest of the suite, before it may count as survived
                finding = _isolated(all_cases()) or _tests([t for group in TESTS.values() for t in group])
        if finding is not None and "::" in finding.by and _passes(finding.by) is not True:
            finding, problem = None, f"{finding.by} fails without the fault too"
        elif finding is not None and any(name in finding.message for name in BROKEN):
            finding, problem = None, f"the edit is broken: {finding.message}"
    except FaultError as error:
        problem = str(error)
    return Verdict(fault, finding, time.perf_counter() - start, problem)


def baseline() -> Finding | None:
    """What fails without any fault; nothing should."""
    with _clean():
        return _isolated(all_cases())


@contextmanager
def _clean() -> Iterator[None]:
    """Tables and noise made under a fault must not outlive it, nor those made before hide it."""
    kept = noise._FIXED
    clear_caches()
    noise._FIXED = noise._FixedNoise()
    try:
        yield
    finally:
        noise._FIXED = kept
        clear_caches()


def _cases(stage: str) -> list[Case]:
    return [case for case in all_cases() if case.target.path.startswith(f"{stage}.")]


def _selections(module: str) -> Sequence[tuple[str, ...]]:
    return TESTS[max((prefix for prefix in TESTS if module.startswith(prefix)), key=len)]


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
    for file in sorted({selection[0].partition("::")[0] for group in TESTS.values() for selection in group}):
        _pytest((file, "--collect-only"))


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

    first, path = _FirstFailure(), str(ROOT / "parity_tests" / selection[0].removeprefix("parity_tests/"))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    outer, current = getattr(Session, "current", None), os.environ.get("PYTEST_CURRENT_TEST")
    threads, printed = torch.get_num_threads(), StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            pytest.main([path, "-m", "not full", *selection[1:], *options], plugins=[first])
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
    with _clean():
        return _pytest((nodeid,)) is None


def _module_of(nodeid: str) -> str:
    name = nodeid.removeprefix("parity_tests/")
    known = [beginning for beginning in MODULES if name.startswith(beginning)]
    if known:
        return MODULES[max(known, key=len)]
    file = name.partition("[")[2].removesuffix("]")
    golden = find(file) if name.startswith(_GOLDEN) else None
    return golden.runs[0].target if golden else name.partition("::")[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.harness.faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", metavar="NAME", help="faults whose name or family holds this")
    parser.add_argument("--quick", action="store_true", help="the selection that the ordinary suite runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report's section `faults`")
    options = parser.parse_args(argv)
    faults = [f for f in FAULTS if not options.quick or f.name in QUICK]
    if options.only:
        faults = [f for f in faults if options.only in (f.name, f.family)] or [
            f for f in faults if options.only in f.name
        ]
    if not faults:
        print(f"faults: no fault is named {options.only}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    warm()
    if (broken := baseline()) is not None:
        print(f"faults: the suite fails without any fault: {broken.by}: {broken.message}", file=sys.stderr)
        return 1
    verdicts = []
    for fault in faults:
        verdicts.append(examine(fault))
        print(_line(verdicts[-1]), flush=True)
    print(_summary(verdicts))
    if options.json:
        options.json.write_text(json.dumps(section(verdicts), indent=1) + "\n", encoding="utf-8")
    wrong = any(v.problem for v in verdicts) or any(v.caught for v in verdicts if v.fault.equivalent)
    score = section(verdicts)["score"]
    return 0 if score["caught"] == score["total"] and not wrong else 1


def _line(verdict: Verdict) -> str:
    fault, finding = verdict.fault, verdict.finding
    state = "caught" if verdict.caught else "equal" if fault.equivalent else "SURVIVED"
    if finding is None:
        return f"{state:8} {verdict.seconds:5.1f} s  {fault.name:45} {fault.family:18} {verdict.problem}"
    place = "right" if verdict.right_module else f"WRONG ({finding.module}, not {fault.module})"
    return f"{state:8} {verdict.seconds:5.1f} s  {fault.name:45} {fault.family:18} {finding.first_failing}  {place}"


def _summary(verdicts: Sequence[Verdict]) -> str:
    score = section(verdicts)["score"]
    caught = [v for v in verdicts if v.caught and not v.fault.equivalent]
    right = sum(bool(v.right_module) for v in caught)
    equal = sum(v.fault.equivalent is not None for v in verdicts)
    seconds = sum(v.seconds for v in verdicts)
    return (
        f"{score['caught']} of {score['total']} faults caught, {equal} proved equivalent; "
        f"right module first for {right} of {len(caught)}; {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
