"""Checks before every route, and headers of every answer."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Problem
from .settings import Settings

DRAINED, DRAIN_SECONDS = 32 << 20, 10.0  # limits for reading a refused body
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuse requests that neither the server's page nor a client would send.

    Another site may let its name resolve to this machine (DNS rebinding): its requests carry that name as Host. An
    address as Host is safe, because a browser sends it only to that address. A page may also post to this server
    without reading the answer (CSRF): its requests carry its Origin.

    Args:
        app: the guarded app.
        settings: accepted names and origins.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.names = {name.lower() for name in ("localhost", settings.host, *settings.names)}
        self.origins = {origin.lower() for origin in settings.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; besides HTTP requests only the lifespan events pass."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        read = False

        async def receive_noting() -> Message:
            nonlocal read
            message = await receive()
            read = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and not read and message["status"] != 408:
                    await _drain(receive_noting)
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if problem := self._problem(Headers(scope=scope)):
            await problem.response()(scope, receive_noting, send_with_headers)
        else:
            await self.app(scope, receive_noting, send_with_headers)

    def _problem(self, headers: Headers) -> Problem | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return Problem(403, f"Host {', '.join(hosts)!r:.80} is not this server's name; --allow-host adds one")
        if len(origins) > 1 or any(not self._may_call(origin.lower(), hosts[0].lower()) for origin in origins):
            return Problem(403, f"Origin {', '.join(origins)!r:.80} may not call this server; --cors-origin allows it")
        return None

    def _is_own(self, host: str) -> bool:
        name = _name(host)
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _may_call(self, origin: str, host: str) -> bool:
        return origin in (f"http://{host}", f"https://{host}") or origin in self.origins


class Key:
    """Ask for the key on all paths but `free`.

    Args:
        app: the guarded app.
        key: that clients send as `Authorization: Bearer KEY`.
        free: paths that anybody may read.
    """

    def __init__(self, app: ASGIApp, key: str, free: Collection[str]) -> None:
        self.app = app
        self.key = key.encode()
        self.free = free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and not (scope["path"] in self.free and scope["method"] in ("GET", "HEAD")):
            given = Headers(scope=scope).getlist("authorization")
            kind, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
            # A comparison in constant time.
            if not hmac.compare_digest(key.strip().encode(), self.key) or kind.lower() != "bearer":
                said = "no API key" if not given else "a wrong API key"
                problem = Problem(
                    401, f"{said}; send the header Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
                )
                await problem.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _drain(receive: Receive) -> None:
    """Read the rest of a refused body: closing a connection with unread data resets it, and may lose the answer."""
    left = DRAINED
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _name(host: str) -> str:
    """Host without its port, in lower case; empty if it is malformed."""
    try:
        split = urlsplit(f"//{host}")
        _ = split.port  # raises if it is not a number
    except ValueError:
        return ""
    return split.hostname or "" if not (split.path or split.query or split.fragment or "@" in host) else ""
