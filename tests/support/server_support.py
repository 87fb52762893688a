"""A server in a thread of the test's process, and the samples that it must answer with."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import soundfile
import uvicorn

from port.app.server.api import Server
from port.app.server.serve import bound
from port.app.server.settings import Settings
from port.cosyvoice3 import CosyVoice3

VOICE, SEED = "me", 3


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    server: Server
    http: httpx.Client

    def speech(self, text: str, **more: Any) -> httpx.Response:
        """Ask for speech; wav with a fixed seed unless `more` says otherwise."""
        body = {"input": text, "voice": VOICE, "response_format": "wav", "seed": SEED} | more
        return self.http.post("/v1/audio/speech", json=body)

    def idle(self) -> None:
        """Wait until no request has work or a place."""
        wait_until(lambda: self.server.worker.busy == (0, 0) and not self.server.worker._places)


@contextmanager
def serving(voice: CosyVoice3, settings: Settings) -> Iterator[Running]:
    """Serve until the end of the block."""
    server = Server(voice, "tiny", settings)
    listener = bound("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    served = uvicorn.Server(uvicorn.Config(server.app, log_level="warning", access_log=False, lifespan="on"))
    thread = threading.Thread(target=served.run, args=([listener],))
    thread.start()
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        wait_until(lambda: served.started)
        with httpx.Client(base_url=url, timeout=60, headers=headers) as http:
            yield Running(url, server, http)
    finally:
        served.should_exit = True
        thread.join()
        listener.close()


def wait_until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait, and fail after some time."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def pcm(waves: list[np.ndarray], kind: str = "RAW") -> np.ndarray:
    """16-bit samples that libsndfile makes of floats in a format; each format rounds in its own way."""
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(waves), 24000, subtype="PCM_16", format=kind)
    return np.frombuffer(file.getvalue(), "<i2") if kind == "RAW" else samples_of(file.getvalue())


def samples_of(body: bytes) -> np.ndarray:
    """16-bit samples of a wav, whose header may not know its length."""
    with soundfile.SoundFile(io.BytesIO(body)) as file:
        return file.read(dtype="int16")
