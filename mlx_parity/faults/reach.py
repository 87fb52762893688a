"""Record which functions a check runs: a fault in any other function cannot change its result.

This needs empty caches when the check begins; otherwise it may use what an earlier check computed.
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
    """A context that yields a set; on leaving, all functions of some packages that ran are added to it."""
    codes: dict[int, CodeType] = {}
    places: set[Place] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and str(frame.f_globals.get("__name__")).partition(".")[0] in packages:
            codes[id(frame.f_code)] = frame.f_code

    before, before_in_threads = sys.getprofile(), threading.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield places
    finally:
        sys.setprofile(before)
        threading.setprofile(before_in_threads)
        places.update(map(_place, codes.values()))


def reaches(places: Collection[Place] | None, fault: Fault, packages: Sequence[str]) -> bool:
    """Whether a fault may affect a check that ran these functions: yes if it is of a constant or they are unknown."""
    return places is None or fault.old is None or _place(function_of(fault, packages).__code__) in places


def _place(code: CodeType) -> Place:
    return code.co_filename, code.co_firstlineno, code.co_qualname
