"""Speech heard while it is made.

s samples
"""

from __future__ import annotations

import queue
import threading
from types import ModuleType
from typing import Any

import numpy as np

from ..files.errors import Misused, Refused

BLOCK_SECONDS = 0.05
BUFFER_SECONDS = 10.0  # made but not played; synthesis waits beyond this, so that little is wasted after Ctrl-C


def sound_device() -> ModuleType:
    """`sounddevice`, with a device to play on.

    Raises:
        Misused: it, its library or a device is missing.
    """
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise Misused("--play needs sounddevice: pip install 'cosyvoice3-mlx[play]'") from None
    except OSError:  # its wheels for Linux bring no PortAudio
        raise Misused("--play needs the library PortAudio; on Linux: apt install libportaudio2") from None
    try:
        sounddevice.query_devices(kind="output")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise Misused(f"--play found no device to play on ({error}); leave it out and give -o FILE") from None
    return sounddevice


class Player:
    """Plays samples while more are made. As a context manager: waits at the end until all is played, stops on an error.

    Args:
        sample_rate: Hz.
        device: `sounddevice`, or an object with its OutputStream, CallbackStop and PortAudioError.

    Attributes:
        ran_dry: how often the device asked for sound before the next was made.
    """

    def __init__(self, sample_rate: int, device: Any) -> None:
        self.ran_dry = 0
        self._device, self._rate = device, sample_rate
        self._blocks: queue.Queue[np.ndarray] = queue.Queue(round(BUFFER_SECONDS / BLOCK_SECONDS))
        self._block = np.zeros(0, np.float32)
        self._dry = False
        self._all_made, self._silent = threading.Event(), threading.Event()
        self._stream: Any = None

    def __enter__(self) -> Player:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.end()
        try:
            if kind is None and self._stream is not None:
                while not self._silent.wait(0.1):  # in steps, so that Ctrl-C comes through
                    pass
        finally:
            if self._stream is not None:
                self._stream.close()

    def end(self) -> None:
        """Mark the end: silence from here on is not counted as a gap."""
        self._all_made.set()

    def write(self, wave: np.ndarray) -> None:
        """Queue (s,) float32 for playback; waits while `BUFFER_SECONDS` are queued.

        Raises:
            Refused: the device refuses it, or is gone.
        """
        size = max(1, round(BLOCK_SECONDS * self._rate))
        for start in range(0, len(wave), size):
            self._put(wave[start : start + size])
        if self._stream is None and len(wave):
            self._start()

    def _put(self, block: np.ndarray) -> None:
        while True:
            try:
                return self._blocks.put(block, timeout=0.1)
            except queue.Full:
                if self._stream is None:
                    self._start()
                elif self._silent.is_set():
                    raise Refused("the sound device has stopped; choose another in the system's settings") from None

    def _start(self) -> None:
        try:
            self._stream = self._device.OutputStream(
                samplerate=self._rate,
                channels=1,
                dtype="float32",
                callback=self._fill,
                finished_callback=self._silent.set,
            )
            self._stream.start()
        except self._device.PortAudioError as error:
            raise Refused(f"the sound device cannot play {self._rate} Hz ({error})") from None

    def _fill(self, out: np.ndarray, frames: int, *_: object) -> None:
        """The device's callback: the next samples, or silence if none are ready."""
        at = 0
        while at < frames:
            if not len(self._block):
                ended = self._all_made.is_set()  # read before the queue, so that samples queued before the end are seen
                try:
                    self._block = self._blocks.get_nowait()
                except queue.Empty:
                    break
            part = self._block[: frames - at]
            out[at : at + len(part), 0] = part
            self._block = self._block[len(part) :]
            self._dry, at = False, at + len(part)
        if at < frames:
            out[at:] = 0
            if ended:
                raise self._device.CallbackStop
            self.ran_dry += not self._dry
            self._dry = True
