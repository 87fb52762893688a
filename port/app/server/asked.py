"""Requests of clients: bodies within limits, and the fields in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, fields
from typing import Any

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ...files.errors import brief
from ...frontend.text import is_silent
from ..sound import formats
from ..speaking import NOTHING_SPOKEN
from .errors import Problem
from .settings import Limits

SPEEDS = (0.25, 4.0)  # as at OpenAI


@dataclass(frozen=True)
class Asked:
    """A speech request with OpenAI's fields, plus `stream` and `seed`.

    Attributes:
        input: what to say.
        voice: name of a saved one.
        model: ignored; a server has one model.
        instructions: how to say it.
        response_format: of the audio.
        speed: tempo, 1.0 as learnt; not of a stream.
        stream: send chunks as they are made; implied by `stream_format`.
        stream_format: how the answer is packed, "audio" as bytes, "sse" as events.
        seed: of the sampling; drawn when there is none.
    """

    input: str
    voice: str
    model: str = ""
    instructions: str | None = None
    response_format: str = "mp3"
    speed: float = 1.0
    stream: bool | None = None
    stream_format: str | None = None
    seed: int | None = None

    @classmethod
    def from_json(cls, body: bytes, limits: Limits) -> Asked:
        """Check a body.

        Raises:
            Problem: not a JSON object, an unknown or missing field, a wrong type, or a value out of range.
        """
        try:
            given = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise Problem(400, "the body is no JSON") from None
        if not isinstance(given, dict):
            raise Problem(400, f"the body is {brief(given)}; send a JSON object")
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(given.get("voice"), dict) and given["voice"].keys() == {"id"}:
            given["voice"] = given["voice"]["id"]
        known = [field.name for field in fields(cls)]
        for name, value in given.items():
            if name not in known:
                raise Problem(400, f"unknown field {name!r:.40}; fields are {', '.join(known)}", name[:40])
            kind = TYPES.get(name, str)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise Problem(400, f"{name}: {brief(value)} cannot stand here; give {SAID[kind]}", name)
            if isinstance(value, str) and not _is_unicode(value):
                raise Problem(400, f"{name} holds half of a surrogate pair, which is not a character", name)
        for name in ("input", "voice"):
            if not given.get(name):
                raise Problem(400, f"{name} is missing", name)
        made = cls(**given)
        made._check(limits)
        return made

    def _check(self, limits: Limits) -> None:
        for name in ("input", "instructions"):
            if len(getattr(self, name) or "") > limits.text:
                raise Problem(400, f"{name} has more than {limits.text} characters; send it in parts", name)
        if is_silent(self.input):
            raise Problem(400, NOTHING_SPOKEN, "input")
        if (name := self.response_format) not in (known := formats()):
            choose = f"choose {', '.join(known)}"
            raise Problem(400, f"response_format {name!r:.40} cannot be written here; {choose}", "response_format")
        if not SPEEDS[0] <= self.speed <= SPEEDS[1]:
            raise Problem(400, f"speed {brief(self.speed)} is not in {SPEEDS[0]} to {SPEEDS[1]}", "speed")
        if self.stream_format not in (None, "audio", "sse"):
            raise Problem(
                400, f"stream_format {self.stream_format!r:.40} is unknown; choose audio, sse", "stream_format"
            )
        if self.stream is False and self.stream_format == "sse":
            raise Problem(400, "stream_format sse needs stream", "stream_format")
        if self.streams and self.speed != 1:
            raise Problem(400, "speed changes whole answers only; leave out stream and stream_format", "speed")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise Problem(400, "seed is not in 0..2^64-1", "seed")

    @property
    def streams(self) -> bool:
        """Chunks are sent as they are made."""
        return self.stream_format is not None if self.stream is None else self.stream


TYPES = {"speed": int | float, "stream": bool, "seed": int}
SAID = {str: "a string", int | float: "a number", bool: "true or false", int: "a whole number"}


async def read_body(request: Request, kind: str, limit: int, seconds: float) -> bytes:
    """The body of a request.

    Args:
        kind: media type that it must have.
        limit: bytes.
        seconds: in which it must have come.

    Raises:
        Problem: another media type, too large, or too slow.
        ClientDisconnect: the client is gone.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        raise Problem(415, f"the body must be {kind}, said by the header Content-Type")
    too_large = Problem(413, f"the body is larger than {limit} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise Problem(408, f"the body did not come within {seconds:g} s") from None
    return bytes(body)


@dataclass(frozen=True)
class Upload:
    """A recording of a voice.

    Attributes:
        name: of the voice.
        audio: content of a sound file.
        text: what the recording says.
        licence: note on what it may be used for.
    """

    name: str
    audio: bytes
    text: str
    licence: str = ""


async def read_upload(request: Request, limits: Limits) -> Upload:
    """A form with the fields of `Upload`, read in memory and never written to disk.

    Raises:
        Problem: malformed or too large.
        ClientDisconnect: the client is gone.
    """
    body = await read_body(request, "multipart/form-data", limits.upload_bytes, limits.body_seconds)

    async def parts() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, parts(), max_files=1, max_fields=3, max_part_size=8 * limits.upload_text)
    parser.spool_max_size = limits.upload_bytes + 1  # beyond this the parser would write to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, f"the form cannot be read: {error.message}") from None
    given: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name not in (known := [field.name for field in fields(Upload)]):
            raise Problem(400, f"unknown field {name!r:.40}; fields are {', '.join(known)}", name[:40])
        if name in given:
            raise Problem(400, f"the field {name} stands twice", name)
        if isinstance(value, str) == (name == "audio"):
            raise Problem(400, f"{name} must be {'a file' if name == 'audio' else 'text'}", name)
        given[name] = value if isinstance(value, str) else await value.read()
    for name in ("name", "audio", "text"):
        if not given.get(name, "").strip():
            raise Problem(400, f"{name} is missing", name)
    for name in ("text", "licence"):
        if len(given.get(name, "")) > limits.upload_text:
            raise Problem(400, f"{name} has more than {limits.upload_text} characters", name)
    return Upload(**given)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
