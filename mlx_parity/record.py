"""Modules that diverge as files, so that a port in any language can be run on what PyTorch was given."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mlx_parity.compare import BUDGET, FLOOR
from mlx_parity.comparison import WHOLE, ModuleRow
from mlx_parity.models import by_key, loaded
from mlx_parity.report.model import write_atomically
from mlx_parity.run import Judged, Outcome
from mlx_parity.tree import PLAIN, leaves

MANIFEST = "manifest.json"
RECORDED = 5  # modules of a part


def record(outcome: Outcome, folder: Path) -> int:
    """Write the first modules of each part that diverge, and their manifest; returns how many. An older record goes."""
    entries = []
    if (folder / MANIFEST).is_file():
        for old in [*folder.glob("*.safetensors"), folder / MANIFEST]:
            old.unlink()
    for name, judged in outcome.parts.items():
        chosen: dict[str, ModuleRow] = {}
        for row in sorted(judged.comparison.blamed, key=lambda row: row.where != "here"):
            chosen.setdefault(row.module, row)
        for row in [*chosen.values()][:RECORDED]:
            found = _recorded(judged, row)
            if found is None:
                continue
            tensors, call = found
            folder.mkdir(parents=True, exist_ok=True)
            place = folder / f"{_file_name(f'{name}.{row.module}')}.safetensors"
            save_file(tensors, place, metadata={"part": name, "module": row.module, "call": json.dumps(call)})
            shapes = {key: {"shape": list(value.shape), "dtype": str(value.dtype)} for key, value in tensors.items()}
            digest = hashlib.sha256(place.read_bytes()).hexdigest()
            about = {"part": name, "module": row.module, "class": row.kind, "file": place.name, "sha256": digest}
            entries.append({**about, "call": call, "tensors": shapes})
    if entries:
        rule = {"ratio": BUDGET, "floor": FLOOR}
        content = {"original": outcome.subject.original, "rule": rule, "cases": entries}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    return len(entries)


def _recorded(judged: Judged, row: ModuleRow) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Tensors and further arguments of the call that a row is of; None where PyTorch made no such call."""
    comparer, name = judged.comparer, "" if row.module == WHOLE else row.module
    single = by_key(comparer.single).get((name, row.call))
    if single is None:
        return None
    single, double = (loaded(call, comparer.spool) for call in (single, comparer.double[name, row.call]))
    groups = {
        "w": comparer.side.weights(name),
        "in": dict(leaves(single.arguments, np.ndarray)),
        "out": single.results,
        "out64": double.results,
    }
    tensors = {f"{group}.{key}".rstrip("."): value for group, arrays in groups.items() for key, value in arrays.items()}
    tensors = {k: np.ascontiguousarray(v.astype(np.uint8) if v.dtype == bool else v) for k, v in tensors.items()}
    return tensors, {k: v for k, v in leaves(single.arguments, PLAIN) if isinstance(v, bool | int | float | str)}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
