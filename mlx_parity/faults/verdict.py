"""The verdict on each fault, and the score.

A fault is caught when a check fails under it that passes without it. The checks run smallest parts first and stop
at the first failure. It names the right part if it is the part of the fault.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from mlx_parity.faults.patch import Fault, FaultError, clear_caches, patched
from mlx_parity.faults.worker import Outcome, Say, Workers

LIMIT = 300.0  # seconds for one check; one that exceeds it failed, if it normally takes at most a tenth
# A fault that no longer fits the code shows as one of these; catching it proves nothing.
BROKEN = ("NameError", "AttributeError", "UnboundLocalError", "ImportError", "SyntaxError")


@dataclass(frozen=True)
class Check:
    """One check: how to run it, and the part that it judges."""

    by: str
    part: str


@dataclass(frozen=True)
class Finding:
    """The first check that failed under a fault.

    Args:
        check: the failed check.
        shown: the very tensor or test that failed.
        message: what it said.
        endless: it exceeded the time limit.
    """

    check: Check
    shown: str
    message: str
    endless: bool = False


class Suite(Protocol):
    """The checks of a model. Methods with an argument `say` run in workers."""

    @property
    def packages(self) -> Sequence[str]:
        """Packages that faults are planted in."""

    def batches(self, faults: Sequence[Fault]) -> Sequence[Sequence[Check]]:
        """Checks that must pass before any fault is planted, in batches for a worker each."""

    def lasts(self, fault: Fault) -> int:
        """Expected duration of a fault, in any unit: the longest begin first, so that no worker ends alone."""

    def alone(self, checks: Sequence[Check], say: Say) -> dict[str, float]:
        """Run some checks without any fault; seconds of those that passed, by `Check.by`."""

    def look(self, fault: Fault, say: Say) -> tuple[Finding | None, Any]:
        """Run a fault's checks up to the first failure, announcing each `Check`; and compute its signature."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one fault."""

    fault: Fault
    finding: Finding | None
    seconds: float = 0.0
    problem: str = ""
    signature: Any = field(default=None, repr=False)

    @property
    def caught(self) -> bool:
        return self.finding is not None

    @property
    def right_part(self) -> bool | None:
        return None if self.finding is None else self.finding.check.part == self.fault.part

    @property
    def as_wanted(self) -> bool:
        """Caught; or not caught, if proved equivalent."""
        return not self.problem and self.caught == (self.fault.equivalent is None)

    def to_dict(self) -> dict[str, Any]:
        """A row of a report's section on faults."""
        fault, finding = self.fault, self.finding
        return {
            "name": fault.name,
            "family": fault.family,
            "module": fault.part,
            "seen_in": fault.seen_in,
            "caught": self.caught,
            "by": finding and finding.check.by + (" (did not end)" if finding.endless else ""),
            "first_failing": finding and finding.shown,
            "right_module": self.right_part,
            "equivalent": fault.equivalent,
        }

    def __str__(self) -> str:
        fault, finding = self.fault, self.finding
        state = "caught" if self.caught else "SURVIVED" if fault.equivalent is None else "equal"
        line = f"{state:8} {self.seconds:5.1f} s  {fault.name:45} {fault.family:18} "
        if finding is None:
            return line + self.problem
        place = "right" if self.right_part else f"WRONG ({finding.check.part}, not {fault.part})"
        return f"{line}{finding.shown}  {place}"


def examine(
    faults: Sequence[Fault], suite: Suite, workers: Workers, tell: Callable[[str], None] = lambda line: None
) -> Iterator[Verdict]:
    """Yield each verdict as soon as it is known; faults caught by a test last, after the test ran without a fault.

    Args:
        tell: gets a line on each fault that has to wait.

    Raises:
        FaultError: a check fails without any fault.
    """
    batches = suite.batches(faults)
    seconds, problems = _alone(batches, suite, workers)
    if failed := [check.by for batch in batches for check in batch if check.by not in seconds]:
        raise FaultError("; ".join(problems) or f"{failed[0]} fails without any fault")
    doubtful: dict[str, list[Check]] = {}
    spent: dict[str, float] = defaultdict(float)
    waiting: list[Verdict] = []
    for fault, outcome in workers.run(partial(_under, suite), sorted(faults, key=suite.lasts, reverse=True)):
        verdict = _verdict(fault, outcome)
        if verdict.finding is None or (check := verdict.finding.check).by in seconds:
            yield _proved(verdict, seconds, workers.limit)
        else:
            waiting.append(verdict)
            tell(f"waits    {verdict.seconds:5.1f} s  {fault.name:45} {check.by}")
            batch = doubtful.setdefault(file := check.by.partition("::")[0], [])
            batch += [check] * (check not in batch)
            spent[file] += verdict.seconds
    longest_first = sorted(doubtful, key=lambda file: spent[file], reverse=True)
    seconds |= _alone([doubtful[file] for file in longest_first], suite, workers)[0]
    for verdict in waiting:
        yield _proved(verdict, seconds, workers.limit)


def _under(suite: Suite, fault: Fault, say: Say) -> tuple[Finding | None, Any]:
    clear_caches(suite.packages)  # tables made before must not hide it
    with patched(fault, suite.packages):
        return suite.look(fault, say)


def _alone(batches: Sequence[Sequence[Check]], suite: Suite, workers: Workers) -> tuple[dict[str, float], list[str]]:
    """Seconds of the checks that pass without any fault, and why workers ended early."""
    seconds: dict[str, float] = {}
    outcomes = [outcome for _, outcome in workers.run(suite.alone, batches)]
    for outcome in outcomes:
        seconds |= outcome.result or {}
    return seconds, [outcome.problem for outcome in outcomes if outcome.problem]


def _verdict(fault: Fault, outcome: Outcome) -> Verdict:
    if outcome.result is not None:
        finding, signature = outcome.result
        return Verdict(fault, finding, outcome.seconds, signature=signature)
    if not outcome.killed or not outcome.said:
        return Verdict(fault, None, outcome.seconds, outcome.problem)
    check = outcome.said[-1]
    return Verdict(fault, Finding(check, check.by, outcome.problem, outcome.endless), outcome.seconds)


def _proved(verdict: Verdict, seconds: Mapping[str, float], limit: float) -> Verdict:
    """The verdict; its finding is replaced by a problem if it proves nothing about the fault."""
    if (finding := verdict.finding) is None:
        return verdict
    by, problem = finding.check.by, ""
    if any(name in finding.message for name in BROKEN):
        problem = f"the edit is broken: {finding.message}"
    elif by not in seconds:
        problem = f"{by} fails without the fault too"
    elif finding.endless and seconds[by] > limit / 10:
        problem = f"{by} takes {seconds[by]:.0f} s without the fault too"
    return replace(verdict, finding=None, problem=problem) if problem else verdict


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line: how many were caught, and how often the right part was named first."""
    counted = [v for v in verdicts if v.fault.equivalent is None]
    caught = [v for v in counted if v.caught]
    right = sum(bool(v.right_part) for v in caught)
    return (
        f"{len(caught)} of {len(counted)} faults caught, {len(verdicts) - len(counted)} proved equivalent; "
        f"right part first for {right} of {len(caught)}"
    )
