"""Memory of streams: a limit for what the flow decoder keeps, and prompts stored for later requests.

At the official size a stream keeps 3.6 MB a mel frame in float32 (`stream.flow.state_bytes`), prompt included.
All streams of a model and the stored prompts together stay within a limit; chunks beyond it are recomputed in each
call, which costs time. The working memory of a call and 0.5 MB of the vocoder come on top.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .state import FlowState

FALLBACK_CACHE_BYTES = 4 << 30  # if the device does not report its memory
SHARE_OF_DEVICE = 4  # by default streams may take this fraction of it
DEVICE_MEMORY = ("max_recommended_working_set_size", "memory_size", "total_memory")  # keys of `mx.device_info`
Keep = Callable[[Callable[[], FlowState]], None]


def default_cache_bytes() -> int:
    """A quarter of the device's memory, or 4 GiB if it is unknown."""
    told = mx.device_info()
    sizes = [int(told[key]) for key in DEVICE_MEMORY if key in told]
    return sizes[0] // SHARE_OF_DEVICE if sizes else FALLBACK_CACHE_BYTES


@dataclass
class _Prompt:
    """Whole chunks of a prompt, and the weights that they were computed with."""

    state: FlowState
    weights: list[weakref.ref[mx.array]]

    def made_by(self, flow: nn.Module) -> bool:
        """Whether these are still the weights in use."""
        found = _weights(flow)
        return len(found) == len(self.weights) and all(r() is w for r, w in zip(self.weights, found, strict=True))


class Memory:
    """Memory held by the streams of one model, and stored prompts, least recently used first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._streams: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._prompts: OrderedDict[bytes, _Prompt] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory of all streams and prompts."""
        with self._lock:
            return sum(self._streams.values()) + self._prompt_bytes()

    @property
    def prompts(self) -> int:
        """Number of stored prompts."""
        return len(self._prompts)

    def clear(self) -> None:
        """Forget all prompts."""
        with self._lock:
            self._prompts.clear()

    def reserve(self, owner: object, nbytes: int, limit: int | None = None) -> bool:
        """Reserve `nbytes` in total for `owner`; True if granted. Drops stored prompts, the least recently used first.

        Args:
            limit: bytes that all may hold together; None stands for `default_cache_bytes`.
        """
        limit = default_cache_bytes() if limit is None else limit
        with self._lock:
            others = sum(held for stream, held in self._streams.items() if stream is not owner)
            if nbytes and others + nbytes > limit:
                return False
            if nbytes:
                self._make_way(others + nbytes, limit)
            self._streams[owner] = nbytes
            return True

    def find(self, key: bytes, flow: nn.Module) -> FlowState | None:
        """A prompt's whole chunks, read-only; None if no stream with the weights of `flow` stored them."""
        with self._lock:
            prompt = self._prompts.pop(key, None)
            if prompt is None or not prompt.made_by(flow):
                return None
            self._prompts[key] = prompt
            return prompt.state

    def keeper(self, key: bytes, flow: nn.Module, nbytes: int, limit: int | None = None) -> Keep:
        """A function that stores a prompt's whole chunks for later streams, if the running streams leave room.

        It remembers the current weights, because they may be replaced before it is called.

        Args:
            key: everything else that determines the chunks.
            nbytes: what they will hold.
            limit: as in `reserve`.
        """
        weights = [weakref.ref(weight) for weight in _weights(flow)]
        limit = default_cache_bytes() if limit is None else limit

        def keep(make: Callable[[], FlowState]) -> None:
            with self._lock:
                held = sum(self._streams.values()) + nbytes
                if held <= limit:
                    self._prompts.pop(key, None)
                    self._make_way(held, limit)
                    self._prompts[key] = _Prompt(make(), weights)

        return keep

    def _prompt_bytes(self) -> int:
        return sum(prompt.state.nbytes for prompt in self._prompts.values())

    def _make_way(self, needed: int, limit: int) -> None:
        while self._prompts and needed + self._prompt_bytes() > limit:
            self._prompts.popitem(last=False)


def _weights(flow: nn.Module) -> list[mx.array]:
    return list(dict(tree_flatten(flow.parameters())).values())
