"""MLX's streams and the threads of this process: arrays made in one thread can be used in another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import mlx.core as mx


class _Streams:
    """Ends the thread's MLX streams when the thread ends."""

    def __del__(self) -> None:
        mx.clear_streams()


_thread = threading.local()


def end_streams_with_thread() -> None:
    """Have MLX drop the streams of this thread when the thread ends; to be called where a thread may compute first.

    Streams of ended threads let the process abort at its exit (MLX 0.32; 0.31 has one set of streams for all threads).
    """
    if threading.current_thread() is not threading.main_thread() and hasattr(mx, "clear_streams"):
        _thread.streams = getattr(_thread, "streams", None) or _Streams()


@contextmanager
def for_any_thread() -> Iterator[None]:
    """Arrays made inside can later be evaluated by another thread, one thread at a time. The default device stays."""
    with ExitStack() as streams:
        if hasattr(mx, "new_thread_unsafe_stream"):
            # Weights files are read by the CPU; a stream makes its device the default, so the default one comes last.
            for device in dict.fromkeys((mx.cpu, mx.default_device().type)):
                streams.enter_context(mx.stream(mx.new_thread_unsafe_stream(device)))
        yield
