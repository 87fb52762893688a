"""An end to what a fault made endless: a loop whose condition it broke, a token that never comes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeLimit(BaseException):
    """Time is up; no `Exception`, so that code which handles those does not go on."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TimeLimit` in the main thread after so much time; a loop inside a C library ends first.

    Args:
        seconds: of wall clock.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"no end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
