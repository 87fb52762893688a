"""The parity check of a conversion: the port loaded from the written folder against the reference of the source.

One part is in memory at a time, its deep stack cut to the first layers, because it is needed three times (port, float32
and float64). The audit proves that every other tensor is where it belongs.

Float32 is judged by the suite's ratio. Stages of reduced precision are only reported (REDUCED) and judged by their
quality against the float32 original instead: parity_tests/quality.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from convert.official import load_config
from convert.parts import Part, converted_parts
from convert.quantize import precision_of
from mlx_parity.judge import Row, failures, reduced
from mlx_parity.sides.regime import require_float32
from mlx_parity.sides.walk import walk
from parity_tests.models import Models, attribute, shallow
from parity_tests.quality import GROUPS, Quality, measure
from parity_tests.walks import walks
from port.config import CosyVoice3Config

DEPTH = 2
QUALITY_FILE = "quality.json"
WALKS = ("walk.speech_tokenizer", "walk.speaker", "walk.llm", "walk.flow.chunked", "walk.vocoder.end")


def verify_folder(source: Path, folder: Path) -> Sequence[Mapping[str, Any]]:
    """Walk through each stage of both models, and write `quality.json` where a stage is not float32.

    Args:
        source: official checkpoint folder.
        folder: the conversion, complete.

    Returns:
        One row for each tensor: `name`, `kind`, `status`, `ratio`, `message`.

    Raises:
        NotFloat32: a side does not compute in float32 here, so nothing can be compared.
    """
    require_float32()
    config = shallow(load_config(source), DEPTH)
    plans, parts = walks(config), {attribute(part): part for part in converted_parts(folder)}
    precision, rows = precision_of(folder), []
    for name in tqdm(WALKS, desc="verify", unit="part", file=sys.stderr, disable=None):
        models = Models.load_part(source, folder, parts[plans[name].stage], config)
        for several in (False, True):  # other orders take a minute at real size and cannot change a pass
            found = walk(models, plans[name], isolated=False, several=several)
            found = reduced(found, precision.label, precision.stages)
            if not failures(found):
                break
        rows += [_row(row) for row in found]
        del models
        mx.clear_cache()
    if precision.stages:
        quality = _quality(source, folder, parts, config)
        content = {"precision": precision.label, "layers": DEPTH, "metrics": [metric.to_dict() for metric in quality]}
        (folder / QUALITY_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        rows += [
            {"name": one.metric, "kind": "quality", "status": one.status, "ratio": None, "message": str(one)}
            for one in quality
        ]
    return rows


def _quality(source: Path, folder: Path, parts: Mapping[str, Part], config: CosyVoice3Config) -> list[Quality]:
    found: list[Quality] = []
    stages = precision_of(folder).stages
    for group in tqdm(GROUPS, desc="quality", unit="group", file=sys.stderr, disable=None):
        if stages & set(group):
            first, *more = (parts[name] for name in group)
            found += measure(Models.load_part(source, folder, first, config, *more), group)
            mx.clear_cache()
    return found


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "status": row.reading.status,
        "ratio": row.reading.ratio,
        "message": row.reading.message,
    }
