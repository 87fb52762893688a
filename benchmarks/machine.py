"""The machine: the workers' BLAS and threads, and the description that goes into the results.

MLX's Linux wheel for the CPU brings netlib's reference BLAS, some 20 times slower than torch's. We preload the
system's OpenBLAS for the MLX workers only: torch would use it too, and torch's attention becomes slower with it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

OWN_KERNEL, FORCED_KERNEL = "the wheel's own", "OPENBLAS_CORETYPE"
SONAME = "libopenblas.so.0"
PLACES = ("/usr/lib/*/openblas*/libopenblas.so.0", "/usr/lib*/libopenblas*.so.0", "/usr/local/lib/libopenblas.so.0")


class BenchmarkError(ValueError):
    """A wrong argument or a failed worker, in one line."""


def find_blas(wanted: str | None = None) -> str | None:
    """The OpenBLAS for MLX's workers.

    Args:
        wanted: a path, `none`, or None to look for one.

    Returns:
        A path or soname; None off Linux, for `none`, and where there is none.

    Raises:
        BenchmarkError: `wanted` is no file.
    """
    if wanted == "none" or sys.platform != "linux":
        return None
    if wanted:
        if not Path(wanted).is_file():
            raise BenchmarkError(f"--blas {wanted}: no such file; name a libopenblas.so.0, or none")
        return str(Path(wanted).resolve())
    if not platform.machine():
        return None
    for pattern in PLACES:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            return str(path)
    name = ctypes.util.find_library("openblas")
    return name if name and name.startswith("libopenblas") else None


def worker_environment(threads: int, blas: str | None, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a worker; `blas` is preloaded when given."""
    found = dict(os.environ if given is None else given)
    found |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    # A thread that waits for work must not spin while another worker is measured (the parent pauses besides).
    found |= {"KMP_BLOCKTIME": "0", "OPENBLAS_THREAD_TIMEOUT": "20", "MLX_ENABLE_TF32": "0"}
    if blas:
        found["LD_PRELOAD"] = " ".join(filter(None, (blas, found.get("LD_PRELOAD"))))
    return found


def loaded_blas() -> list[str]:
    """Names of the BLAS libraries that are mapped into this process (Linux)."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return []
    files = set(re.findall(r"\S*/((?:lib)?(?:open|c)?blas[^/\s]*|libmkl[^/\s]*|libtorch_cpu\.so)$", maps, re.MULTILINE))
    return sorted(files)


def blas_kernel() -> str:
    """The kernel that the preloaded OpenBLAS chose for this processor, and whether the environment forced it.

    OpenBLAS runs at half its speed with the kernel of another processor.
    """
    try:
        name = ctypes.CDLL(None).openblas_get_corename
    except (AttributeError, OSError, TypeError):
        return OWN_KERNEL
    name.restype = ctypes.c_char_p
    return name().decode() + (f", by {FORCED_KERNEL}" if os.environ.get(FORCED_KERNEL) else "")


def peak_rss() -> int | None:
    """Largest resident size of this process in bytes since `reset_peak_rss`; or since its start."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    except (OSError, IndexError):
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else 1024 * size


def reset_peak_rss() -> None:
    """Reset the peak, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def has_gpu() -> bool:
    """Whether MLX's default device is a GPU; a separate process finds out, because the parent never loads MLX."""
    import subprocess

    script = "import mlx.core as mx; print(mx.default_device().type.name)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout.strip() == "gpu"
