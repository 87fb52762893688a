"""The server's routes: OpenAI's speech endpoint, voices, health, and the page."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...batched.decoder import Decoder
from ...cosyvoice3 import CosyVoice3
from ..sound import FORMATS
from .asked import Asked, Upload, read_body, read_upload
from .errors import JSON, Problem
from .guard import Guard, Key
from .settings import Settings
from .speech import added, described, removed, require_voice, spoken
from .worker import Full, Worker

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/sound.js": "sound.js"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SLICE = 64 << 10  # bytes
T = TypeVar("T")
Read = Callable[[Request], Awaitable[T]]
Answer = Callable[[T, Send], Coroutine[Any, Any, None]]
logger = logging.getLogger(__name__)


class Server:
    """One model, its worker, and what clients can ask of them.

    Args:
        voice: the model; used on the worker's thread alone from now on.
        name: of the model, as clients see it.
        settings: see there.
    """

    def __init__(self, voice: CosyVoice3, name: str, settings: Settings) -> None:
        self.voice = voice
        self.name = name
        self.limits = settings.limits
        # A row for each request that may be under way: one whose client does not take its answer keeps nobody waiting.
        self.decoder = Decoder(voice.model.llm, self.limits.active + self.limits.waiting)
        self.worker = Worker(settings.limits, self.decoder.release)
        self.started = int(time.time())
        self.app = self._app(settings)

    def _app(self, settings: Settings) -> ASGIApp:
        """Inside out: routes, key, CORS (whose preflight has no key), guard."""
        voices, worked = "/v1/audio/voices", partial(Worked, self.worker)
        upload, name = partial(read_upload, limits=self.limits), _name_in_path
        routes = [
            *(Route(path, _file(name)) for path, name in FILES.items()),
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/audio/speech", worked(self._read_speech, self._speech), methods=["POST"]),
            Route(voices, self._voices),
            Route(voices, worked(upload, self._add), methods=["POST"]),
            Route(voices + "/{name:path}", worked(name, self._remove), methods=["DELETE"]),
        ]
        middleware = [Middleware(Guard, settings)]
        if settings.origins:
            methods, headers = ["GET", "POST", "DELETE"], ["Authorization", "Content-Type"]
            middleware.append(
                Middleware(
                    CORSMiddleware, settings.origins, methods, headers, expose_headers=["X-Seed", "X-Sample-Rate"]
                )
            )
        if settings.api_key is not None:
            middleware.append(Middleware(Key, settings.api_key, {*FILES, "/health"}))
        return Starlette(
            routes=routes,
            middleware=middleware,
            exception_handlers={HTTPException: cast(Any, _no_route)},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.worker.stop)

    async def _health(self, _: Request) -> Response:
        active, waiting = self.worker.busy
        return JSON({"status": "ok", "active": active, "waiting": waiting})

    async def _models(self, _: Request) -> Response:
        model = {"id": self.name, "object": "model", "created": self.started, "owned_by": "cosyvoice3-mlx"}
        return JSON({"object": "list", "data": [model]})

    async def _voices(self, _: Request) -> Response:
        saved = dict(self.voice.frontend.spk2info)  # which the worker may change meanwhile
        return JSON({"object": "list", "data": [described(name, voice) for name, voice in saved.items()]})

    async def _add(self, upload: Upload, send: Send) -> None:
        async with self.worker.results(partial(added, self.voice, upload, self.limits)) as made:
            await self._send(send, JSON(await anext(made), 201))

    async def _remove(self, name: str, send: Send) -> None:
        async with self.worker.results(partial(removed, self.voice, name)) as made:
            await self._send(send, JSON(await anext(made)))

    async def _read_speech(self, request: Request) -> Asked:
        body = await read_body(request, "application/json", self.limits.json_bytes, self.limits.body_seconds)
        asked = Asked.from_json(body, self.limits)
        require_voice(self.voice, asked.voice, 400)
        return asked

    async def _speech(self, asked: Asked, send: Send) -> None:
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        headers = {"X-Seed": str(seed), "X-Sample-Rate": str(self.voice.sample_rate)}
        kind = FORMATS[asked.response_format][2]
        decoder = self.decoder if self.limits.active > 1 else None
        async with self.worker.results(partial(spoken, self.voice, decoder, asked, seed)) as made:
            if not asked.streams:
                whole = b"".join([part async for part in made])
                await self._send(send, Response(whole, headers=headers, media_type=kind))
                return
            if events := asked.stream_format == "sse":
                kind = "text/event-stream"
            parts = (part async for part in made if part)
            await self._send(send, Response(headers=headers, media_type=kind), _events(parts) if events else parts)

    async def _send(self, send: Send, response: Response, parts: AsyncIterator[bytes] | None = None) -> None:
        """Send an answer, or its head and these parts as they come.

        The head goes with the first part, so that what fails before has a status of its own.
        """
        headers = [header for header in response.raw_headers if parts is None or header[0] != b"content-length"]
        head: Message | None = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        async for part in parts or _slices(bytes(response.body)):
            async with asyncio.timeout(self.limits.stall_seconds):
                if head is not None:
                    await send(head)
                    head = None
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Worked(Generic[T]):
    """A route that needs the worker: it has a place from before its body is read, and ends when its client is gone.

    Args:
        worker: whose places count.
        read: reads and checks the request.
        answer: sends the answer to what was read.
    """

    def __init__(self, worker: Worker, read: Read[T], answer: Answer[T]) -> None:
        self.worker = worker
        self.read = read
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            with self.worker.place():
                asked = await self.read(Request(scope, receive))
                await _unless_gone(receive, self.answer(asked, watched))
            return
        except (ClientDisconnect, TimeoutError):  # TimeoutError: the client does not take its answer
            return
        except Full:
            wait = {"Retry-After": str(self.worker.limits.retry_after)}
            problem = Problem(429, "too many requests are waiting; try again later", headers=wait)
        except Problem as raised:
            problem = raised
        except ValueError as error:
            problem = Problem(400, error)
        except Exception:
            logger.exception("a request failed")
            problem = Problem(500, "the request failed; the server's log says why")
        if begun:  # too late for another status; an answer without its end shows that something is missing
            logger.warning("an answer broke off: %s", problem.message)
        else:
            await problem.response()(scope, receive, send)


async def _unless_gone(receive: Receive, answer: Coroutine[Any, Any, None]) -> None:
    """Answer a request whose body was read, until the client hangs up."""

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = {asyncio.ensure_future(answer), asyncio.ensure_future(hang_up())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    """A body in parts, of which a slow client takes one within the time limit."""
    for start in range(0, len(body), SLICE):
        yield body[start : start + SLICE]


async def _events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The parts as server-sent events, by the names of OpenAI's."""
    async for part in parts:
        yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()})
    yield _event({"type": "speech.audio.done"})


def _event(content: object) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


def _file(name: str) -> Read[Response]:
    """A route for a file of the page, which is read once."""
    path = PAGE / name
    response = Response(path.read_bytes(), media_type=TYPES[path.suffix], headers={"Content-Security-Policy": POLICY})

    async def answer(_: Request) -> Response:
        return response

    return answer


async def _name_in_path(request: Request) -> str:
    return request.path_params["name"]


def _no_route(_: Request, error: HTTPException) -> Response:
    said = {404: "no such path", 405: "no such method on this path"}.get(error.status_code, error.detail)
    return Problem(error.status_code, said, headers=error.headers).response()
