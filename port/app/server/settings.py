"""Where a server listens, and its limits."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...files.errors import Misused

ORIGIN = re.compile(r"https?://[\w.-]+(:\d+)?|https?://\[[0-9a-fA-F:]+\](:\d+)?")
SHORTEST_KEY = 16  # characters; a shorter key could be guessed


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        active: requests whose speech is being made at once; they decode together and take turns with the rest.
        waiting: further requests that wait for their turn.
        text: characters of `input` and of `instructions` each, as at OpenAI.
        json_bytes: of the body of a speech request.
        upload_bytes: of the body with a recording; 30 s of stereo at 48 kHz and 32 bits are 11.5 MB.
        upload_text: characters of the words of a recording.
        voices: that can be saved.
        body_seconds: to send a body.
        stall_seconds: for a client to take the next piece of an answer.
        ahead: results made ahead of the client; beyond this a request loses its turn.
        retry_after: seconds that a client is asked to wait when there is no room.
    """

    active: int = 4
    waiting: int = 32
    text: int = 4096
    json_bytes: int = 128 << 10
    upload_bytes: int = 16 << 20
    upload_text: int = 2000
    voices: int = 1000
    body_seconds: float = 30.0
    stall_seconds: float = 60.0
    ahead: int = 32
    retry_after: int = 5


@dataclass(frozen=True)
class Settings:
    """Where the server listens, and which clients it answers.

    Attributes:
        host: address or name to bind.
        api_key: that clients must send; None for no key, on a loopback address only.
        names: of the server in the header Host, besides its addresses, `localhost` and `host`.
        origins: pages of other servers that may call this one from a browser, such as "https://example.org".
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    names: Sequence[str] = ()
    origins: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.api_key is None and not is_loopback(self.host):
            raise Misused(
                f"--host {self.host} can be reached from outside: give --api-key KEY, which clients must send, or stay "
                "on 127.0.0.1"
            )
        key = self.api_key
        if key is not None and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key):
            raise Misused(f"--api-key needs {SHORTEST_KEY} or more letters, digits and signs of ASCII, without blanks")
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin):
                raise Misused(f"--cors-origin {origin!r:.80}: give scheme and name, such as https://example.org")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; the only such name is `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
