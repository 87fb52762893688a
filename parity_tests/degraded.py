"""Simulate machines that compute in less than float32; the suite must detect them.

As a pytest plugin (`-p parity_tests.degraded`) with DEGRADED=KIND in the environment it changes PyTorch for the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import torch


def _ten_bits(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the mantissa of TF32."""
    return ((x.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


ROUND: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bfloat16": lambda x: x.to(torch.bfloat16).float(),
    "tf32": _ten_bits,
    "float16": lambda x: x.to(torch.float16).float(),
}
PRODUCTS = [
    (torch.nn.functional, "linear"),
    (torch, "matmul"),
    (torch.Tensor, "__matmul__"),
    (torch.Tensor, "matmul"),
    (torch.nn.functional, "scaled_dot_product_attention"),
]
CONVOLUTIONS = [(torch.nn.functional, "conv1d"), (torch.nn.functional, "conv2d")]
# kind of machine -> functions whose inputs are rounded, and the format
KINDS: dict[str, tuple[list[tuple[Any, str]], str]] = {
    "bfloat16 products": (PRODUCTS + CONVOLUTIONS, "bfloat16"),
    "tf32": (PRODUCTS + CONVOLUTIONS, "tf32"),
    "float16 convolutions": (CONVOLUTIONS, "float16"),
}


def _rounding(function: Callable[..., torch.Tensor], dtype: str) -> Callable[..., torch.Tensor]:
    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        args = tuple(ROUND[dtype](a) if isinstance(a, torch.Tensor) and a.dtype == torch.float32 else a for a in args)
        return function(*args, **kwargs)

    return call


@contextmanager
def degraded(kind: str) -> Iterator[None]:
    """PyTorch as on a machine of this kind; float64 stays as it is."""
    functions, dtype = KINDS[kind]
    with ExitStack() as stack:
        for owner, name in functions:
            stack.enter_context(patch.object(owner, name, _rounding(getattr(owner, name), dtype)))
        yield


@contextmanager
def degraded_mlx() -> Iterator[None]:
    """MLX as on a GPU that multiplies float32 in less precision, here bfloat16."""

    def call(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
        return lambda *args: function(*(a.astype(mx.bfloat16).astype(mx.float32) for a in args))

    with patch.object(mx, "matmul", call(mx.matmul)):
        yield


if kind := os.environ.get("DEGRADED"):
    _whole_run = degraded(kind)
    _whole_run.__enter__()
