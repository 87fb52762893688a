"""Which arithmetic this machine really does: the error of a float32 matmul, measured, not believed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from port.paths import PATHS, active

# A float32 matmul of 512 terms errs by about 2e-7; TF32 keeps 10 mantissa bits and errs by about 3e-4.
TF32_ERROR = 1e-5
PACKAGES = ("mlx", "torch", "numpy", "safetensors", "tokenizers", "onnx", "onnxruntime", "transformers")


def matmul_error(size: int = 512) -> float:
    """Relative rms error of one float32 matmul on MLX's default device against float64."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size)).astype(np.float32) for _ in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    found = np.array(mx.array(a) @ mx.array(b), dtype=np.float64)
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


def precision() -> dict[str, Any]:
    """The regime of float32 matmuls for the report's provenance."""
    error = matmul_error()
    return {
        "regime": "tf32" if error > TF32_ERROR else "fp32",
        "matmul_error": error,
        "tf32_flag": os.environ.get("MLX_ENABLE_TF32", "unset"),
    }


def fast_paths() -> list[str]:
    """Fast paths of the port that are on: what it runs beside its plain modules, where the device has a use for it."""
    chosen = active()
    return [name for name in PATHS if getattr(chosen, name)]


def versions() -> dict[str, str]:
    """Installed versions of what takes part in a comparison."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
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
