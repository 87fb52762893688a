"""Errors, as one line of JSON in the shape that OpenAI's clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from ...files.errors import printable


class Problem(Exception):
    """An error answer.

    Args:
        status: of HTTP.
        message: one line for the person at the client.
        param: field of the request that is wrong.
        headers: further ones of the answer.
    """

    def __init__(
        self, status: int, message: object, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = printable(message)
        self.param = param
        self.headers = headers

    def body(self) -> dict[str, object]:
        """Its JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}

    def response(self) -> Response:
        """Its answer."""
        return JSON(self.body(), self.status, self.headers)


class JSON(Response):
    """One line of JSON, in ASCII."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Makes every error answer of the server."""
        return json.dumps(content).encode() + b"\n"
