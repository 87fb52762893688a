"""The arithmetic that this machine really uses: measured errors of float32 products and convolutions."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as mlx_nn
import numpy as np
import torch
from torch.nn import functional as F

from mlx_parity.report.data import Arithmetic, Precision, Provenance

Side = Literal["reference", "port"]
# Relative rms error of a float32 product. Added one after another, 2048 terms err by 1e-6; rounded to TF32 or float16
# first, to ten bits, they err by 3e-4, to bfloat16 by 2e-3.
FLOAT32_ERROR, TEN_BITS_ERROR = 1e-5, 1e-3
TERMS = (64, 512, 2048)  # of a sum; a library may choose its kernel by size
ROWS, COLUMNS, TAPS, FRAMES = 40, 48, 3, 30
SIDES: dict[Side, str] = {"reference": "PyTorch", "port": "MLX"}
REMEDIES: dict[Side, str] = {
    "reference": "unset DNNL_DEFAULT_FPMATH_MODE, and do not lower torch.set_float32_matmul_precision",
    "port": "set MLX_ENABLE_TF32=0 before MLX is imported, or take another device (--device cpu)",
}
PACKAGES = ("mlx", "torch", "numpy", "safetensors", "tokenizers", "onnx", "onnxruntime", "transformers")

Arrays = tuple[np.ndarray, ...]


class NotFloat32(ValueError):
    """A side whose float32 is less than float32; the message is one line that names it."""


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = np.exp(q @ k.swapaxes(-1, -2))
    return scores @ v / scores.sum(axis=-1, keepdims=True)


def _convolution(x: np.ndarray, weight: np.ndarray, groups: int = 1) -> np.ndarray:
    """x (b, C, n), weight (O, C / groups, taps)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[-1], axis=-1)  # (b, C, m, taps)
    windows = windows.reshape(len(x), groups, -1, *windows.shape[2:])
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    return np.einsum("bgcmt,goct->bgom", windows, weight).reshape(len(x), -1, windows.shape[3])


def _layer(layer: torch.nn.Module, weight: torch.Tensor) -> torch.nn.Module:
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def _torch(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return function(*(torch.from_numpy(a) for a in arrays)).numpy()

    return run


def _mlx(function: Callable[..., mx.array]) -> Callable[..., np.ndarray]:
    return lambda *arrays: np.array(function(*(mx.array(a) for a in arrays)))


def _last(x: mx.array) -> mx.array:
    """Channels last, as MLX has them."""
    return mx.moveaxis(x, 1, -1)


def _first(x: mx.array) -> mx.array:
    return mx.moveaxis(x, -1, 1)


def _mlx_linear(x: mx.array, weight: mx.array) -> mx.array:
    layer = mlx_nn.Linear(weight.shape[1], weight.shape[0])
    layer.update({"weight": weight, "bias": mx.zeros(weight.shape[0])})
    return layer(x)


def _probes() -> Iterator[tuple[str, Callable[..., Any], Callable[..., Any], Callable[..., Any], Arrays]]:
    """Of each operation: name, implementations in numpy, PyTorch and MLX, and float32 arguments."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    for terms in TERMS:
        yield (
            f"product of {terms} terms",
            np.matmul,
            _torch(torch.matmul),
            _mlx(mx.matmul),
            (normal(ROWS, terms), normal(terms, COLUMNS)),
        )
        yield (
            f"batched product of {terms} terms",
            np.matmul,
            _torch(lambda a, b: a @ b),
            _mlx(lambda a, b: a @ b),
            (normal(2, 3, ROWS, terms), normal(2, 3, terms, COLUMNS)),
        )
        for rows in (1, ROWS):
            yield (
                f"linear layer of {terms} terms and {rows} rows",
                lambda x, w: x @ w.T,
                _torch(lambda x, w: _layer(torch.nn.Linear(w.shape[1], len(w), bias=False), w)(x)),
                _mlx(_mlx_linear),
                (normal(2, rows, terms), normal(COLUMNS, terms)),
            )
        for groups in (1, 16):
            channels = max(terms // TAPS // 16, 1) * 16
            yield (
                f"convolution of {channels} channels in {groups} groups",
                lambda x, w, g=groups: _convolution(x, w, g),
                _torch(
                    lambda x, w, g=groups: _layer(torch.nn.Conv1d(x.shape[1], len(w), TAPS, groups=g, bias=False), w)(x)
                ),
                _mlx(lambda x, w, g=groups: _first(mx.conv1d(_last(x), _last(w), groups=g))),
                (normal(1, channels, FRAMES), normal(COLUMNS, channels // groups, TAPS)),
            )
        yield (
            f"plane convolution of {terms} channels",
            lambda x, w: np.einsum("bchw,ocij->bohw", x, w),
            _torch(lambda x, w: _layer(torch.nn.Conv2d(x.shape[1], len(w), 1, bias=False), w)(x)),
            _mlx(lambda x, w: _first(mx.conv2d(_last(x), _last(w)))),
            (normal(1, terms, 4, 5), normal(COLUMNS, terms, 1, 1)),
        )
    width = TERMS[0]
    yield (
        "attention",
        lambda q, k, v: _attention(q * width**-0.5, k, v),
        _torch(F.scaled_dot_product_attention),
        _mlx(lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=width**-0.5)),
        (normal(1, 2, ROWS, width), normal(1, 2, ROWS, width), normal(1, 2, ROWS, width)),
    )


def arithmetic() -> dict[Side, tuple[float, str]]:
    """Relative rms error of each side's worst product or convolution against float64, and which it is."""
    found: dict[Side, tuple[float, str]] = dict.fromkeys(SIDES, (0.0, ""))
    for name, truth, *sides, arrays in _probes():
        exact = truth(*(a.astype(np.float64) for a in arrays))
        for side, run in zip(SIDES, sides, strict=True):
            error = float(np.sqrt(np.mean((run(*arrays) - exact) ** 2) / np.mean(exact**2)))
            found[side] = max(found[side], (math.inf if math.isnan(error) else error, name))
    return found


def not_float32(found: dict[Side, tuple[float, str]]) -> dict[Side, str]:
    """One line for each side that does not compute in float32."""
    return {
        side: f"the {side} ({SIDES[side]}) does not compute in float32: a {name} errs by {error:.1e}; {REMEDIES[side]}"
        for side, (error, name) in found.items()
        if not error <= FLOAT32_ERROR
    }


def require_float32(sides: Collection[Side] = tuple(SIDES)) -> None:
    """Check both sides before a comparison.

    Raises:
        NotFloat32: one of these sides does not compute in float32, so nothing can be compared.
    """
    if problems := {side: text for side, text in not_float32(arithmetic()).items() if side in sides}:
        raise NotFloat32("; ".join(problems.values()))


def precision(found: dict[Side, tuple[float, str]]) -> Precision:
    """The arithmetic of both sides, for the report's provenance."""
    sides = {
        side: Arithmetic(_regime(error), error if math.isfinite(error) else None, name)
        for side, (error, name) in found.items()
    }
    return Precision(**sides, tf32_flag=os.environ.get("MLX_ENABLE_TF32"))


def provenance(
    root: Path, found: dict[Side, tuple[float, str]], adapter_versions: Mapping[str, str], **about: Any
) -> Provenance:
    """Provenance of a run: `root` is the checkout, `found` the arithmetic, `about` further fields."""
    head, dirty = commit(root)
    known: dict[str, Any] = {"commit": head, "dirty": dirty, "versions": {**versions(), **adapter_versions}}
    return Provenance(**known | machine(), precision=precision(found), **about)


def _regime(error: float) -> str:
    return "float32" if error <= FLOAT32_ERROR else "ten bits" if error <= TEN_BITS_ERROR else "less than ten bits"


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Operating system, processor and MLX device."""
    device = mx.default_device()
    name = mx.device_info().get("device_name", "") if device.type == mx.gpu else ""
    return {
        "os": f"{platform.system()} {platform.release()}",
        "machine": f"{platform.machine()} {_processor()}".strip(),
        "device": f"{device} {name}".strip(),
    }


def commit(root: Path) -> tuple[str, bool]:
    """Commit of the checkout and whether it has uncommitted changes; ('unknown', False) outside git."""
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown", False
    return head, bool(changes)


def _processor() -> str:
    if sys.platform == "darwin":
        query = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return query.stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
