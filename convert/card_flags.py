"""What only the user knows of a model card, on the command line."""

from __future__ import annotations

import argparse
import re

from port.files.hub import ID

LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def add_card_flags(parser: argparse.ArgumentParser) -> None:
    """`--base-model` and `--license`."""
    parser.add_argument("--base-model", type=_base, metavar="ID", help="hub id that the card names as the base model")
    parser.add_argument("--license", type=_licence, metavar="NAME", help="licence that the card names, as apache-2.0")


def card_arguments(options: argparse.Namespace) -> list[str]:
    """The same flags again, those that were given."""
    pairs = (("--base-model", options.base_model), ("--license", options.license))
    return [word for flag, value in pairs if value is not None for word in (flag, value)]


def _base(text: str) -> str:
    if not ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a hub id such as me/CosyVoice3-tuned")
    return text


def _licence(text: str) -> str:
    if not LICENCE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a licence of the hub, such as apache-2.0 or other")
    return text
