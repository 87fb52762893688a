"""How often the host waits for MLX, and whether the device has more to do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np


@dataclass
class Waits:
    """What was counted.

    Attributes:
        waits: reads of a result by the host.
        idle: those of them with nothing queued behind what was read.
        queued: calls of `mx.async_eval` whose results nobody has waited for yet.
    """

    waits: int = 0
    idle: int = 0
    queued: int = 0

    def wait(self) -> None:
        self.waits += 1
        self.queued = max(0, self.queued - 1)
        self.idle += not self.queued


@contextmanager
def watched() -> Iterator[Waits]:
    """Count what happens within: `mx.async_eval` queues, `np.array`, `mx.eval`, `item` and `tolist` wait.

    Results that are already there count as well; so watch a loop when it has begun, not the reading of its inputs.
    """
    found = Waits()

    def counted(function: Callable[..., Any], event: Callable[[], None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if function is not make_array or isinstance(args[0], mx.array):
                event()
            return function(*args, **kwargs)

        return call

    def queue() -> None:
        found.queued += 1

    make_array = np.array
    with (
        patch.object(np, "array", counted(make_array, found.wait)),
        patch.object(mx, "eval", counted(mx.eval, found.wait)),
        patch.object(mx.array, "item", counted(mx.array.item, found.wait)),
        patch.object(mx.array, "tolist", counted(mx.array.tolist, found.wait)),
        patch.object(mx, "async_eval", counted(mx.async_eval, queue)),
    ):
        yield found
