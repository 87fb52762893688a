"""The parity check of a conversion: the port loaded from the written folder against the reference of the source.

One part is in memory at a time, its deep stack cut to the first layers, so that the official model can be held three
times (port, float32 and float64) in little memory; that every other tensor is where it belongs is the audit's proof.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from convert.official import load_config
from convert.parts import converted_parts
from parity_tests.harness.chain import walk
from parity_tests.harness.judge import Row
from parity_tests.harness.models import Models, attribute, shallow
from parity_tests.harness.walks import walks

DEPTH = 2
WALKS = ("walk.speech_tokenizer", "walk.speaker", "walk.llm", "walk.flow.chunked", "walk.vocoder.end")


def verify_folder(source: Path, folder: Path) -> Sequence[Mapping[str, Any]]:
    """Walk through each stage of both models.

    Args:
        source: official checkpoint folder.
        folder: the conversion, complete.

    Returns:
        One row for each checkpoint: `checkpoint`, `kind`, `status`, `ratio`, `message`.
    """
    config = shallow(load_config(source), DEPTH)
    plans, parts = walks(config), {attribute(part): part for part in converted_parts(folder)}
    rows = []
    for name in tqdm(WALKS, desc="verify", unit="part", file=sys.stderr, disable=None):
        models = Models.load_part(source, folder, parts[plans[name].stage], config)
        rows += [_row(row) for row in walk(models, plans[name], isolated=False)]
        del models
        mx.clear_cache()
    return rows


def _row(row: Row) -> dict[str, Any]:
    return {
        "checkpoint": row.name,
        "kind": row.kind,
        "status": row.reading.status,
        "ratio": row.reading.ratio,
        "message": row.reading.message,
    }
