"""The device that MLX computes on."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import version

DEVICES = ("auto", "cpu", "gpu")
# malloc.h of glibc: what is freed at the heap's end and stays, and from which size on an array lives outside the heap.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT_BYTES, HEAP_BYTES = 256 << 20, 32 << 20


def use_device(name: str) -> None:
    """Make `name` MLX's default device; `auto` keeps MLX's own choice, a GPU where there is one.

    Raises:
        ValueError: any other name, or no such device here.
    """
    if name not in DEVICES:
        raise ValueError(f"device {name!r} is unknown; choose {', '.join(DEVICES)}")
    if name == "auto":
        return
    import mlx.core as mx  # here, so that the arguments of a command are read without it

    kind = mx.gpu if name == "gpu" else mx.cpu
    if not mx.is_available(kind):
        raise ValueError(f"device {name}: this MLX ({version('mlx')}) finds none here; leave it out or choose another")
    mx.set_default_device(kind)


def keep_freed_memory() -> bool:
    """Let glibc keep up to KEPT_BYTES of freed arrays for the next ones, for the whole process; True where it does.

    MLX has no memory of its own on a CPU: an Euler step of 500 frames gave some 400 MB back to Linux and had every page
    cleared again, an eighth of its time. To be called when the weights are there, which then stay outside the heap, so
    that weights let go of are given back. Whoever sets glibc's MALLOC_ variables keeps their choice.
    """
    import mlx.core as mx

    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or chosen or mx.default_device().type != mx.DeviceType.cpu:
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    options = ((MMAP_THRESHOLD, HEAP_BYTES), (TRIM_THRESHOLD, KEPT_BYTES))
    return set_option is not None and all(set_option(*option) for option in options)
