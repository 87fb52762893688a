"""A stand-in for `sounddevice` 0.5: it takes sound at the pace of a device, or faster, and keeps it.

On a machine with PortAudio the real module plays to ALSA's null device in the same way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

FRAMES = 480  # asked for at once


class PortAudioError(Exception):
    """What sounddevice raises for an error of PortAudio."""


class CallbackStop(Exception):
    """What a callback raises when nothing more comes."""


class NullDevice:
    """Stands for the module.

    Args:
        pace: of playing, 1 for real time.
        fails: raise this message when a stream is opened.

    Attributes:
        taken: what was played, blocks (frames,) float32.
    """

    PortAudioError, CallbackStop = PortAudioError, CallbackStop

    def __init__(self, pace: float = 50.0, fails: str = "") -> None:
        self.pace, self.fails = pace, fails
        self.taken: list[np.ndarray] = []
        self.opened: dict[str, Any] = {}
        self.closed = False

    def query_devices(self, kind: str) -> dict[str, str]:
        """The device, if it does not fail."""
        if self.fails == "none":
            raise PortAudioError("Error querying device -1")
        return {"name": f"null {kind}"}

    def OutputStream(self, callback: Callable[..., None], finished_callback: Callable[[], None], **given: Any) -> Any:
        """A stream that calls back from a thread of its own."""
        if self.fails:
            raise PortAudioError(self.fails)
        self.opened = given
        return _Stream(self, callback, finished_callback)


class _Stream:
    def __init__(self, device: NullDevice, callback: Callable[..., None], finished: Callable[[], None]) -> None:
        self._device, self._callback, self._finished = device, callback, finished
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._pull, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._device.closed = True

    def _pull(self) -> None:
        while not self._stopped.is_set():
            out = np.full((FRAMES, self._device.opened["channels"]), np.nan, np.float32)
            try:
                self._callback(out, FRAMES, None, None)
            except CallbackStop:
                self._stopped.set()
            self._device.taken.append(out[:, 0])
            time.sleep(FRAMES / self._device.opened["samplerate"] / self._device.pace)
        self._finished()
