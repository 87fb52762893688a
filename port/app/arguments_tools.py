"""Arguments of the commands `benchmark`, `convert` and `verify`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from . import argument_types as types

LENGTHS = (3.0, 10.0, 30.0)  # lengths of speech to measure, seconds
MAX_SECONDS = 200  # the vocoder's noise covers 300 s, prompt included
LENGTH = types.seconds(0.2, MAX_SECONDS, f"is no length in 0.2..{MAX_SECONDS} s")
REPEATS = types.whole(1, 999, "is no whole number in 1..999")
Command = Callable[[Any, str, str, str], argparse.ArgumentParser]


def add_tools(commands: Any, command: Command) -> None:
    """Add the commands to the subparsers `commands`; `command` makes one with the arguments that all commands share."""
    benchmark = command(commands, "benchmark", "benchmark", "Measure how fast a model speaks here; prints a table.")
    benchmark.add_argument("--seconds", type=LENGTH, nargs="+", default=LENGTHS, metavar="S",
                           help="lengths of speech (default: 3 10 30)")  # fmt: skip
    benchmark.add_argument("--repeats", type=REPEATS, default=3, metavar="N", help="runs, of which the median counts")
    benchmark.add_argument("--json", action="store_true", help="print the same as data")
    # No prefix, so that options pass through: the converter has its own parser and help.
    convert = commands.add_parser(
        "convert", help="Convert an official checkpoint to a model's folder.", prefix_chars="\0", add_help=False
    )
    convert.add_argument("arguments", nargs="*")
    convert.set_defaults(run="convert", device="auto")
    verify = command(
        commands,
        "verify",
        "verify",
        "Compare a model's folder with the official checkpoint that it comes from, stage by stage. (The whole suite is "
        "`make verify` in a checkout.)",
    )
    verify.add_argument("--checkpoint", required=True, metavar="ID_OR_DIR", help="official checkpoint, or its hub id")
    verify.add_argument("--checkpoint-revision", metavar="R", help="branch, tag or commit of its hub id")
    verify.add_argument("--llm", choices=("base", "rl"), default="base", help="its language model (default: base)")
