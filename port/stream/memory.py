"""Memory of streams: how much the flow decoder may keep, and the prompts kept from one request for the next.

At the official size a stream keeps 3.6 MB a mel frame in float32 (`flow.state.state_bytes`), prompt included.
What all streams of a model and the kept prompts hold together stays within a limit; chunks without room are computed
again in each call, at the cost of time. What a single call works on and 0.5 MB of the vocoder come on top.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..fast import paths
from ..flow.decoder import CausalMaskedDiffWithDiT
from .flow import StreamingFlow
from .flow_state import FlowState, Keep

FALLBACK_CACHE_BYTES = 4 << 30  # where the device does not tell its memory
SHARE_OF_DEVICE = 4  # by default streams may take one part in so many
DEVICE_MEMORY = ("max_recommended_working_set_size", "memory_size", "total_memory")  # keys of `mx.device_info`


def default_cache_bytes() -> int:
    """A quarter of the device's memory, or 4 GiB where it does not tell."""
    told = mx.device_info()
    sizes = [int(told[key]) for key in DEVICE_MEMORY if key in told]
    return sizes[0] // SHARE_OF_DEVICE if sizes else FALLBACK_CACHE_BYTES


def prompt_key(stream: StreamingFlow, frames: int) -> bytes:
    """What the first `frames` frames of a stream's prompt follow from, by content; the weights are checked apart."""
    digest = hashlib.sha256(f"{frames} {paths.active()}".encode())
    for part in (stream.prompt_token, stream.prompt_feat, stream.embedding, stream.noise_of(0, frames)):
        array = np.array(part)
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.digest()


@dataclass
class _Prompt:
    """Whole chunks of a prompt, and the weights that made them."""

    state: FlowState
    weights: list[weakref.ref[mx.array]]

    def made_by(self, flow: CausalMaskedDiffWithDiT) -> bool:
        """Whether these are still the weights in use."""
        found = _weights(flow)
        return len(found) == len(self.weights) and all(r() is w for r, w in zip(self.weights, found, strict=True))


class StreamMemory:
    """What the streams of one model hold, and the prompts that they left, the last used at the end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._streams: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._prompts: OrderedDict[bytes, _Prompt] = OrderedDict()

    def within(self, limit: int | None) -> Share:
        """A view for one request, which may add to what is held as long as all stays within `limit` bytes.

        None stands for `default_cache_bytes`.
        """
        return Share(self, default_cache_bytes() if limit is None else limit)

    @property
    def nbytes(self) -> int:
        """Memory of all streams and prompts."""
        with self._lock:
            return sum(self._streams.values()) + self._prompt_bytes()

    @property
    def prompts(self) -> int:
        """How many prompts are kept."""
        return len(self._prompts)

    def clear(self) -> None:
        """Forget all prompts."""
        with self._lock:
            self._prompts.clear()

    def reserve(self, owner: object, nbytes: int, limit: int) -> bool:
        """Whether `owner` may hold `nbytes` in all from now on; prompts make way, the least recently used first."""
        with self._lock:
            others = sum(held for stream, held in self._streams.items() if stream is not owner)
            if nbytes and others + nbytes > limit:
                return False
            if nbytes:
                self._make_way(others + nbytes, limit)
            self._streams[owner] = nbytes
            return True

    def find(self, stream: StreamingFlow, frames: int) -> FlowState | None:
        """The first `frames` frames of the stream's prompt, if an earlier stream left them; not to be changed."""
        key = prompt_key(stream, frames)
        with self._lock:
            prompt = self._prompts.pop(key, None)
            if prompt is None or not prompt.made_by(stream.flow):
                return None
            self._prompts[key] = prompt
            return prompt.state

    def keeper(self, stream: StreamingFlow, frames: int, limit: int) -> Keep:
        """A function that copies the first `frames` frames for later streams, if there is room beside the running ones.

        What these frames follow from is noted now: weights may be exchanged before that function is called.
        """
        key, needed = prompt_key(stream, frames), stream.bytes_for(frames)
        weights = [weakref.ref(weight) for weight in _weights(stream.flow)]

        def keep(state: FlowState) -> None:
            with self._lock:
                held = sum(self._streams.values()) + needed
                if held <= limit:
                    self._prompts.pop(key, None)
                    self._make_way(held, limit)
                    self._prompts[key] = _Prompt(state.prompt(frames), weights)

        return keep

    def _prompt_bytes(self) -> int:
        return sum(prompt.state.nbytes for prompt in self._prompts.values())

    def _make_way(self, needed: int, limit: int) -> None:
        while self._prompts and needed + self._prompt_bytes() > limit:
            self._prompts.popitem(last=False)


@dataclass(frozen=True)
class Share:
    """The `Memory` of a stream: a `StreamMemory` and the limit of its request, in bytes."""

    memory: StreamMemory
    limit: int

    def reserve(self, owner: object, nbytes: int) -> bool:
        """As `StreamMemory.reserve`."""
        return self.memory.reserve(owner, nbytes, self.limit)

    def find(self, stream: StreamingFlow, frames: int) -> FlowState | None:
        """As `StreamMemory.find`."""
        return self.memory.find(stream, frames)

    def keeper(self, stream: StreamingFlow, frames: int) -> Keep:
        """As `StreamMemory.keeper`."""
        return self.memory.keeper(stream, frames, self.limit)


def _weights(flow: CausalMaskedDiffWithDiT) -> list[mx.array]:
    return [value for _, value in tree_flatten(flow.parameters())]
