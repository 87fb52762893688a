"""What the tests of a conversion share: a comparison that passes, and checkpoints changed in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from reference.synthesize import tiny_config

CONFIG = tiny_config()


def passing(source: Path, folder: Path) -> list[dict[str, str]]:
    """In the place of `parity_check`, for tests of what stands around it."""
    return [{"checkpoint": "stand-in", "status": "PASS"}]


def resave(path: Path, change: Callable[[Any], Any]) -> None:
    """Put another content in the place of a state dict."""
    torch.save(change(torch.load(path, weights_only=True)), path)


def put(content: Any, changes: Mapping[str, Any]) -> Any:
    """Give parsed JSON other values at some dotted paths, in place."""
    for path, value in changes.items():
        place = content
        for name in path.split(".")[:-1]:
            place = place[name]
        place[path.rpartition(".")[2]] = value
    return content
