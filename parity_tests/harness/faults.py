"""Apply every fault of the catalogue to the port, one at a time, and see whether the ordinary suite notices.

    python -m parity_tests.harness.faults [--only NAME ...] [--quick] [--json FILE] [--signatures FILE]

A fault is caught when a case or test of the suite fails under it that passes without it. The checks run in the order of
the pipeline, smallest parts first, and stop at the first failure. That failure names the right module when it belongs
to the very module of the fault; a module that merely contains it counts as wrong. Code with no isolated case (sampling,
text, noise, driver) is named by its module path.

`make faults` runs all and records score and signatures (see signatures.py) in parity_tests/data, for the report.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from mlx_parity.report.codec import plain, read
from mlx_parity.report.model import write_atomically
from mlx_parity.report.sections import Faults
from mlx_parity.sides import regime
from parity_tests.harness import fault_checks, signatures
from parity_tests.harness.fault_catalogue import (
    conversion,
    driver,
    flow,
    flow_blocks,
    flow_fast,
    flow_layers,
    flow_stream,
    frontend,
    kinds,
    llm,
    loading,
    source,
    text,
    unseen,
    vocoder,
    vocoder_layers,
    vocoder_stream,
)
from parity_tests.harness.fault_catalogue.base import Fault, FaultError
from parity_tests.harness.fault_checks import Finding
from parity_tests.harness.fingerprint import ROOT, fingerprint
from parity_tests.harness.signatures import Signature

SCORE = ROOT / "parity_tests" / "data" / "fault_score.json"
CODE = ("port", "convert", "reference", "parity_tests")  # what the score depends on
PARTS = (frontend, text, llm, flow_layers, flow_blocks, flow, flow_fast, flow_stream)
PARTS += (vocoder_layers, vocoder, vocoder_stream, source, driver, conversion, unseen, loading, kinds)
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

# An edit that no longer makes sense shows as one of these, which is no merit of the suite.
BROKEN = ("NameError", "AttributeError", "UnboundLocalError", "ImportError", "SyntaxError")


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
            "by": finding and finding.by + (" (did not end)" if finding.endless else ""),
            "first_failing": finding and finding.first_failing,
            "right_module": self.right_module,
            "equivalent": fault.equivalent,
        }


def section(verdicts: Sequence[Verdict]) -> Faults:
    """The report's section `faults`."""
    return read(Faults, {"rows": [verdict.to_dict() for verdict in verdicts]}, "faults")


def record(verdicts: Sequence[Verdict], started: datetime) -> str:
    """Text of a file of the score, one row a line, with the circumstances it was measured in."""
    found = plain(section(verdicts))
    about = {
        "started": started.isoformat(timespec="seconds"),
        "duration_s": round((datetime.now(UTC) - started).total_seconds(), 1),
        "commit": regime.commit(ROOT)[0],
        "mlx": regime.versions()["mlx"],
        "device": regime.machine()["device"],
        "fingerprint": fingerprint(CODE),
    }
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found["rows"])
    return f'{{"recorded": {json.dumps(about)},\n"score": {json.dumps(found["score"])},\n"rows": [\n{rows}\n]}}\n'


def catalogue_section(path: Path = SCORE) -> dict[str, Any] | None:
    """The report's section `fault_catalogue`: the recorded score, and whether the code has not changed since."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text("utf-8"))
    return found | {"fresh": found["recorded"]["fingerprint"] == fingerprint(CODE)}


def examine(fault: Fault) -> Verdict:
    """Apply one fault, run the suite until something fails, undo it."""
    start = time.perf_counter()
    finding, problem = None, ""
    try:
        with fault_checks.clean(), fault.patch():
            finding = fault_checks.look(fault.module)
            if finding is None and fault.equivalent is None:  # before it may count as survived
                finding = fault_checks.look_everywhere()
        if finding is not None:
            problem = fault_checks.objection(finding)
            if any(name in finding.message for name in BROKEN):
                problem = f"the edit is broken: {finding.message}"
    except FaultError as error:
        problem = str(error)
    return Verdict(fault, None if problem else finding, time.perf_counter() - start, problem)


def _begin() -> None:
    """Prepare a worker: results of the whole port, and that nothing fails without a fault."""
    torch.set_num_threads(1)
    fault_checks.warm()
    if (broken := fault_checks.baseline()) is not None:
        raise RuntimeError(f"{broken.by}: {broken.message}")


def _examine(name: str, signed: bool) -> tuple[Verdict, Signature | None]:
    """Verdict on a fault, and its signature where one is wanted and the fault is caught."""
    fault = next(fault for fault in FAULTS if fault.name == name)
    verdict, signature = examine(fault), None
    if signed and verdict.caught:
        with fault_checks.clean(), fault.patch():
            signature = fault_checks.signature(fault.module)
    return replace(verdict, fault=replace(fault, patch=nullcontext)), signature  # no patch travels between processes


def _selected(faults: Sequence[Fault], names: Sequence[str]) -> Sequence[Fault]:
    """Faults of the given names or families, else those whose name holds the given one; all where none is given.

    Raises:
        ValueError: a name that selects nothing.
    """
    wanted: set[str] = set()
    for name in names:
        found = [f.name for f in faults if name in (f.name, f.family)] or [f.name for f in faults if name in f.name]
        if not found:
            raise ValueError(f"no fault is named {name}")
        wanted |= set(found)
    return [fault for fault in faults if not names or fault.name in wanted]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.harness.faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="faults of this name or family, else those whose name holds it; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="the selection that the ordinary suite runs")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the score, for the report")
    parser.add_argument("--signatures", type=Path, metavar="FILE", help="record what fails under each fault as well")
    options = parser.parse_args(argv)
    faults = [f for f in FAULTS if not options.quick or f.name in QUICK]
    try:
        faults = _selected(faults, options.only)
        if options.jobs < 1:
            raise ValueError(f"--jobs {options.jobs}: 1 or more is needed")
    except ValueError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    started, verdicts, found = datetime.now(UTC), [], {}
    with ProcessPoolExecutor(min(options.jobs, len(faults)), get_context("spawn"), _begin) as workers:
        try:
            for verdict, signature in workers.map(_examine, [f.name for f in faults], repeat(bool(options.signatures))):
                verdicts.append(verdict)
                print(_line(verdict), flush=True)
                if signature is not None:
                    found[verdict.fault.name] = verdict.fault.family, signature
        except BrokenProcessPool:
            print("faults: a worker ended: the suite fails without any fault, or it was killed", file=sys.stderr)
            return 1
    print(_summary(verdicts))
    if options.json:
        write_atomically(options.json, record(verdicts, started))
    if options.signatures:
        write_atomically(options.signatures, signatures.record(found))
    wrong = any(v.problem for v in verdicts) or any(v.caught for v in verdicts if v.fault.equivalent)
    score = section(verdicts).score
    return 0 if score.caught == score.total and not wrong else 1


def _line(verdict: Verdict) -> str:
    fault, finding = verdict.fault, verdict.finding
    state = "caught" if verdict.caught else "equal" if fault.equivalent else "SURVIVED"
    if finding is None:
        return f"{state:8} {verdict.seconds:5.1f} s  {fault.name:45} {fault.family:18} {verdict.problem}"
    place = "right" if verdict.right_module else f"WRONG ({finding.module}, not {fault.module})"
    return f"{state:8} {verdict.seconds:5.1f} s  {fault.name:45} {fault.family:18} {finding.first_failing}  {place}"


def _summary(verdicts: Sequence[Verdict]) -> str:
    score = section(verdicts).score
    caught = [v for v in verdicts if v.caught and not v.fault.equivalent]
    right = sum(bool(v.right_module) for v in caught)
    equal = sum(v.fault.equivalent is not None for v in verdicts)
    seconds = sum(v.seconds for v in verdicts)
    return (
        f"{score.caught} of {score.total} faults caught, {equal} proved equivalent; "
        f"right module first for {right} of {len(caught)}; {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
