"""Judge a subject: every part as it is, then the proof of each finding, then the generic fault score."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tqdm import tqdm

from mlx_parity.comparison import Comparison
from mlx_parity.models import Comparer
from mlx_parity.score import Score, score_of
from mlx_parity.sides.regime import SIDES, Side
from mlx_parity.subject import Finding, Load, Pair, Subject, SubjectError, mended


@dataclass(frozen=True)
class Judged:
    """One part and its comparison; `comparer` holds the PyTorch runs."""

    part: Pair
    comparison: Comparison
    comparer: Comparer


Parts = dict[str, Judged]  # by name


@dataclass(frozen=True)
class Proof:
    """The effect of one finding's line alone.

    Args:
        before: with all findings mended except this one.
        after: all mended.
    """

    finding: Finding
    before: Parts
    after: Parts

    @property
    def parts(self) -> list[str]:
        """Names of the parts that diverge because of this line: with it mended too, they pass."""
        wrong = [name for name, judged in self.before.items() if not judged.comparison.passed]
        return [name for name in wrong if self.after[name].comparison.passed]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Args:
        parts: the port unchanged.
        proofs: one for each finding.
        mended: with the lines of all findings mended; `parts` where there are none.
        scores: generic faults by part, measured with all lines mended; empty where they were not asked for.
    """

    subject: Subject
    parts: Parts
    proofs: Sequence[Proof]
    mended: Parts
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def conforms(self) -> bool:
        return all(judged.comparison.passed for judged in self.parts.values())

    @property
    def unexplained(self) -> list[str]:
        """Names of parts that diverge although the lines of all findings are mended."""
        return [name for name, judged in self.mended.items() if not judged.comparison.passed]

    @property
    def as_declared(self) -> bool:
        """Exactly the known findings diverge: each is proved, and nothing diverges when all are mended."""
        return not self.unexplained and all(proof.parts for proof in self.proofs)


def judge(load: Load, seed: int = 0, only: str = "*", faults: bool = False) -> Outcome:
    """Judge a subject; it is rebuilt for each proof, because a mended line may act during construction.

    Args:
        load: gives the subject for a seed.
        only: glob of names of parts.
        faults: measure the generic fault score of each part too.

    Raises:
        SubjectError: the subject cannot be built, or has no such part, or a finding's line is not where it says.
        ValueError: weights are not float32, or this machine computes in less than float32.
    """
    subject = load(seed)
    parts = judged(subject, only, "parts")
    findings = subject.findings

    def run(which: Sequence[Finding], said: str) -> Parts:
        with mended(which):
            return judged(load(seed), only, said, known=parts)

    after = run(findings, "all mended") if findings else parts
    proofs = []
    for finding in findings:
        others = [other for other in findings if other is not finding]
        proofs.append(Proof(finding, run(others, f"proof: {finding.title}") if others else parts, after))
    scores = {}
    if faults:
        with mended(findings):
            scores = dict(_scores(after))
    return Outcome(subject, parts, proofs, after, scores)


def judged(
    subject: Subject, only: str, said: str, sides: Collection[Side] = tuple(SIDES), known: Parts | None = None
) -> Parts:
    """Judge every part as it is.

    Args:
        only: glob of names of parts.
        said: label of the progress bar.
        sides: which must compute in float32.
        known: parts judged before: PyTorch runs again only if weights or inputs differ.

    Raises:
        SubjectError, ValueError: as `judge`.
    """
    chosen = [part for part in subject.parts if fnmatchcase(part.name, only)]
    if not chosen:
        names = ", ".join(part.name for part in subject.parts)
        raise SubjectError(f"--only {only!r}: no part has such a name; there are {names}")
    found = {}
    for part in tqdm(chosen, desc=said, unit="part", file=sys.stderr, disable=None, leave=False):
        comparer = known[part.name].comparer if known and part.name in known else None
        try:
            if comparer is None or not comparer.is_of(part.torch_model, part.inputs):
                comparer = Comparer(
                    part.torch_model, part.inputs, names=part.names, channels_last=part.channels_last, sides=sides
                )
        except ValueError:
            raise
        except Exception as error:
            what = f"the PyTorch model raised {type(error).__name__}: {' '.join(str(error).split())}"
            raise SubjectError(f"part {part.name!r}: {what}") from error
        found[part.name] = Judged(part, comparer.compare(part.mlx_model, part.mlx_inputs), comparer)
    return found


def _scores(parts: Parts) -> Iterator[tuple[str, Score]]:
    for name, judged in parts.items():
        if judged.comparison.passed:
            yield name, score_of(judged.comparer, judged.part.mlx_model, judged.part.mlx_inputs)
