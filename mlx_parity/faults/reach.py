"""Which functions a check runs: where a changed function is not among them, the check gives what it gave before.

That holds for a check that keeps nothing for the next: caches must be cleared before it runs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from mlx_parity.faults.patch import Fault, function_of

Place = tuple[str, int, str]  # of a function: file, first line and qualified name


@contextmanager
def entered(packages: Collection[str]) -> Iterator[set[Place]]:
    """A context; afterwards the set has all functions of some packages that ran in it."""
    codes: dict[int, CodeType] = {}
    places: set[Place] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and str(frame.f_globals.get("__name__")).partition(".")[0] in packages:
            codes[id(frame.f_code)] = frame.f_code

    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield places
    finally:
        sys.setprofile(before)
        threading.setprofile(before)
        places.update(map(_place, codes.values()))


def reaches(places: Collection[Place] | None, fault: Fault, packages: Sequence[str]) -> bool:
    """Whether a fault may change what ran these functions; a constant is read anywhere, and None is not known."""
    return places is None or fault.old is None or _place(function_of(fault, packages).__code__) in places


def _place(code: CodeType) -> Place:
    return code.co_filename, code.co_firstlineno, code.co_qualname
