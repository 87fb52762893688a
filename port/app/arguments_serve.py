"""Arguments of the command `serve`."""

from __future__ import annotations

import os
from typing import Any

from . import argument_types as types
from .arguments_tools import Command

PORT = types.whole(0, 65535, "is no port; give 0 to 65535")
WAITING = types.whole(0, 9999, "is no number of requests; give 0 to 9999")
KEY_VARIABLE = "COSYVOICE3_API_KEY"


def add_serve(commands: Any, command: Command) -> None:
    """Add the command to the subparsers `commands`; `command` makes one with the arguments that all commands share."""
    serve = command(commands, "serve", "serve", "Answer OpenAI's speech clients, and show a page to speak from.")
    serve.add_argument("--host", default="127.0.0.1", metavar="A",
                       help="address to listen at (default: 127.0.0.1; any that others reach needs a key)")  # fmt: skip
    serve.add_argument("--port", type=PORT, default=8000, metavar="N", help="port (default: 8000; 0 takes a free one)")
    serve.add_argument("--api-key", default=os.environ.get(KEY_VARIABLE), metavar="KEY",
                       help=f"key that clients must send (default: the variable {KEY_VARIABLE}, which `ps` does not "
                       "show)")  # fmt: skip
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                       help="name of this server, as behind a proxy; localhost and addresses are known")  # fmt: skip
    serve.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN",
                       help="page of another server that may call this one in a browser (default: none)")  # fmt: skip
    serve.add_argument("--batch-size", type=types.BATCH_SIZE, metavar="N",
                       help=f"requests whose speech is made at once; 1: one by one {types.BY_DEFAULT}")  # fmt: skip
    serve.add_argument("--max-waiting", type=WAITING, default=32, metavar="N",
                       help="requests that may wait; further ones are refused (default: 32)")  # fmt: skip
