"""The size of what a conversion writes, and whether the disks have room for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from convert.audit import port_shapes
from convert.bake import Bake
from convert.quantize import FLOAT32, Precision
from convert.transforms import Shape
from port.config import CosyVoice3Config
from port.files.errors import Refused
from port.files.storage import TensorInfo


def output_layout(parameters: Mapping[str, Shape], precision: Precision, bake: Bake | None) -> dict[str, TensorInfo]:
    """Every tensor of the folder, from names and shapes of the model's parameters.

    Raises:
        Misused: quantization that no layer can take.
    """
    kept = {name: shape for name, shape in parameters.items() if bake is None or name not in bake.replaced}
    return precision.layout(kept) | (bake.tensors if bake else {})


def output_bytes(layout: Iterable[TensorInfo]) -> int:
    """Bytes of the weights of a folder."""
    return sum(info.nbytes for info in layout)


def output_share(precision: Precision, bake_timesteps: bool = False) -> float:
    """Bytes written for each byte of a float32 checkpoint of the official size; known before a download.

    Raises:
        Misused: quantization that no layer can take.
    """
    config = CosyVoice3Config()
    parameters, bake = port_shapes(config), Bake(config) if bake_timesteps else None
    layouts = (output_layout(parameters, *how) for how in ((precision, bake), (FLOAT32, None)))
    written, whole = (output_bytes(layout.values()) for layout in layouts)
    return written / whole


def require_space(needs: Mapping[str, tuple[Path | None, int]]) -> None:
    """Refuse, before anything is written, a conversion that does not fit the disks.

    Args:
        needs: for each purpose a folder (which may not exist yet) and bytes.

    Raises:
        Refused: too little space; says what is needed and what is free.
    """
    disks: dict[int, list[tuple[str, Path, int]]] = {}
    for purpose, (folder, count) in needs.items():
        if folder is not None and count:
            there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
            disks.setdefault(there.stat().st_dev, []).append((purpose, there, count))
    for wanted in disks.values():
        total, free = sum(count for *_, count in wanted), shutil.disk_usage(wanted[0][1]).free
        if total > free:
            parts = ", ".join(f"{_size(count)} {purpose}" for purpose, _, count in wanted)
            raise Refused(f"{wanted[0][1]}: too little disk: {_size(total)} needed ({parts}), {_size(free)} free")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
