"""The command `serve`; `arguments.py` has its arguments."""

from __future__ import annotations

import argparse
import logging
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ...batched.together import default_batch_size
from ...files.errors import Refused
from ..speaking import ended_by_signals, load_voice
from .settings import Limits, Settings

GRACE = 3  # seconds for running answers to end when the server stops


def serve(options: argparse.Namespace) -> None:
    """Load the model and serve until a signal.

    Raises:
        Refused: the extra is not installed, or the address cannot be bound.
        Misused: an address that others reach, without a key.
    """
    settings = Settings(
        options.host,
        options.api_key,
        options.allow_host,
        options.cors_origin,
        Limits(waiting=options.max_waiting),
    )
    try:
        import uvicorn

        from .api import Server
    except ImportError as error:
        raise Refused(f"serve needs the extra [server] ({error.name} is missing): pip install '.[server]'") from None
    with bound(options.host, options.port) as listener:
        voice = load_voice(options.model, options.revision)
        limits = replace(settings.limits, active=options.batch_size or default_batch_size(voice.model.config))
        server = Server(voice, Path(options.model).name or "model", replace(settings, limits=limits))
        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(f"http://{shown}:{port} speaks, with a page at / and the API at /v1; Ctrl-C ends it", flush=True)
        logging.getLogger("uvicorn").propagate = False  # uvicorn would add its own handler
        logging.getLogger("python_multipart").setLevel(
            logging.ERROR
        )  # its warnings are about malformed forms of clients
        config = uvicorn.Config(
            server.app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, server_header=False
        )
        with suppress(KeyboardInterrupt), ended_by_signals():
            uvicorn.Server(config).run([listener])


def bound(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the model is loaded.

    Raises:
        Refused: the address is not available here, or is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise Refused(f"--host {host!r:.80}: no such address ({getattr(error, 'strerror', None) or error})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # clients that connect now wait until the model is loaded
    except OSError as error:
        listener.close()
        raise Refused(f"{host}:{port} cannot be bound ({error.strerror}); choose another --port") from None
    return listener
