"""The device that MLX computes on."""

from __future__ import annotations

import mlx.core as mx

DEVICES = ("auto", "cpu", "gpu")


def use_device(name: str) -> None:
    """Make `name` MLX's default device; `auto` keeps MLX's own choice, a GPU where there is one.

    Raises:
        ValueError: any other name, or no such device here.
    """
    if name not in DEVICES:
        raise ValueError(f"device {name!r} is unknown; choose {', '.join(DEVICES)}")
    if name == "auto":
        return
    kind = mx.gpu if name == "gpu" else mx.cpu
    if not mx.is_available(kind):
        raise ValueError(f"device {name}: this MLX ({mx.__version__}) finds none here; leave it out or choose another")
    mx.set_default_device(kind)
