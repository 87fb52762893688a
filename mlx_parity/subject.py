"""A subject: a program that brings a PyTorch model, its MLX port and known findings.

The program defines `subject(seed)`, which returns a `Subject`. Packages that it needs are pinned beside it in
`PROGRAM.requirements.txt`. `python -m mlx_parity run PROGRAM.py --out DIR` judges it.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_parity.source import SourceError, exchanged, place_of

MODULE = "mlx_parity_subject"  # what a program is imported as, whatever its file is called


class SubjectError(ValueError):
    """A program that cannot be judged; the message is one line."""


@dataclass(frozen=True)
class Pair:
    """One part of a subject: what `compare_models` is given, and a name.

    Repeated calls with a cache are one call of a module around the loop, in both frameworks.
    """

    name: str
    torch_model: Any
    mlx_model: Any
    inputs: Any
    mlx_inputs: Any = None
    names: Mapping[str, str] | Callable[[str], str] | None = None
    channels_last: Collection[str] = ()


@dataclass(frozen=True)
class Finding:
    """A divergence whose cause is known: one line of the port. The run mends it and shows that the rows pass.

    Args:
        title: a few words.
        where: the port's function or class that holds the line.
        line: the line as written there; if it occurs twice, with the next line.
        fix: what it must be.
        notice: the divergence, and what a user would notice.
        mend: makes a context in which the port is mended; needed if the line is not in a function body.
    """

    title: str
    where: Any
    line: str
    fix: str
    notice: str
    mend: Callable[[], AbstractContextManager[Any]] | None = None

    @property
    def place(self) -> str:
        """`file:line` of the wrong line."""
        return place_of(self.where, self.line) or self.where.__qualname__

    def mended(self) -> AbstractContextManager[Any]:
        """A context in which the line is right."""
        return self.mend() if self.mend else exchanged(self.where, self.line, self.fix)


@dataclass(frozen=True)
class Subject:
    """A port to judge.

    Args:
        name: of the port, such as `mlx_lm Qwen2`.
        original: of the PyTorch side, such as `transformers Qwen2ForCausalLM`.
        parts: with random, live weights that follow from the seed; small sizes show as much as large ones.
        findings: known divergences and their causes.
        packages: distributions whose versions matter, beside PyTorch, MLX and numpy.
    """

    name: str
    original: str
    parts: Sequence[Pair]
    findings: Sequence[Finding] = ()
    packages: Sequence[str] = ()


Load = Callable[[int], Subject]


def load_subject(program: Path) -> Load:
    """The function `subject` of a program.

    Raises:
        SubjectError: the program fails or has no such function. The returned function raises it too, if it fails or
            returns anything but a `Subject` whose parts have different names.
    """
    spec = importlib.util.spec_from_file_location(MODULE, program)
    if spec is None or spec.loader is None:
        raise SubjectError(f"{program.name}: is not a Python program; name a file that ends in .py")
    module = sys.modules[MODULE] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(program.resolve().parent))
    with _blaming(program):
        spec.loader.exec_module(module)
    found = getattr(module, "subject", None)
    if not callable(found):
        raise SubjectError(f"{program.name}: defines no function subject(seed); docs/porting.md shows one")

    def load(seed: int) -> Subject:
        with _blaming(program):
            made = found(seed)
        if not isinstance(made, Subject):
            raise SubjectError(f"{program.name}: subject(seed) returned a {type(made).__name__}, no mlx_parity.Subject")
        names = [part.name for part in made.parts]
        if not names or len(set(names)) < len(names):
            raise SubjectError(f"{program.name}: needs parts, each with a name of its own; has {names}")
        return made

    return load


@contextmanager
def mended(findings: Sequence[Finding]) -> Iterator[None]:
    """A context in which the lines of some findings are right.

    Raises:
        SubjectError: a line is not where its finding says.
    """
    with ExitStack() as stack:
        for finding in findings:
            try:
                stack.enter_context(finding.mended())
            except SourceError as error:
                raise SubjectError(f"finding {finding.title!r}: {error}") from None
        yield


@contextmanager
def _blaming(program: Path) -> Iterator[None]:
    """What is raised inside, as one line with the program's own line."""
    try:
        yield
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == program.name]
        at = f"{program.name}:{lines[-1]}" if lines else program.name
        raise SubjectError(f"{at}: {type(error).__name__}: {' '.join(str(error).split())}") from error
