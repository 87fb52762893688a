"""The device that MLX computes on."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import version

DEVICES = ("auto", "cpu", "gpu")
# malloc.h of glibc: freed memory that stays at the end of the heap; size from which an array lives outside the heap.
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
    import mlx.core as mx  # imported here: arguments are parsed without it

    kind = mx.gpu if name == "gpu" else mx.cpu
    if not mx.is_available(kind):
        raise ValueError(
            f"device {name}: this MLX ({version('mlx')}) finds none here; leave out --device or choose another"
        )
    mx.set_default_device(kind)


def keep_freed_memory() -> bool:
    """Let glibc keep up to KEPT_BYTES of freed arrays for the next ones, in the whole process; True if it does.

    On CPUs MLX returns freed memory to the OS after every step; page faults cost 12 % of the time. Call this after the
    weights are loaded: they then stay outside the heap and are returned to the OS when freed. glibc's MALLOC_ variables
    take precedence.
    """
    import mlx.core as mx

    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or chosen or mx.default_device().type != mx.DeviceType.cpu:
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    options = ((MMAP_THRESHOLD, HEAP_BYTES), (TRIM_THRESHOLD, KEPT_BYTES))
    return set_option is not None and all(set_option(*option) for option in options)
