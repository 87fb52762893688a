"""The parity check of a conversion: the port loaded from the written folder against the reference of the source.

Deep stacks are cut to their first layers, so that the official model can be held three times (port, float32 and
float64) in little memory; that every other tensor is where it belongs is the audit's proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity_tests.harness.chain import walk
from parity_tests.harness.models import Models
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
    models = Models.load(source, folder, DEPTH)
    return [
        {
            "checkpoint": row.name,
            "kind": row.kind,
            "status": row.reading.status,
            "ratio": row.reading.ratio,
            "message": row.reading.message,
        }
        for plan in (walks(models.config)[name] for name in WALKS)
        for row in walk(models, plan, isolated=False)
    ]
