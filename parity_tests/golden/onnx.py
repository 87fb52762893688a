"""A speaker encoder as an ONNX file, with the embeddings of the original's onnxruntime.

The converter reads NAME.onnx. For each length T, NAME.safetensors holds `in.T` (1, T, f), `out.T` (1, E), the embedding
of onnxruntime 1.18, which the original pins, and perhaps `out132.T`, that of 1.32, which divides the last segment by
another number.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from convert.onnx_weights import read_speaker
from mlx_parity.record import Arrays, Recorded, read_tensors

GROUPS = ("in", "out", "out132")


def read_pair(path: Path) -> tuple[dict[str, Recorded], Arrays]:
    """Each length as a golden file of its own, and the embeddings of 1.32 by length.

    Raises:
        ValueError: the two files are no such pair.
    """
    groups: dict[str, Arrays] = {group: {} for group in GROUPS}
    for key, array in read_tensors(path.with_suffix(".safetensors")).items():
        group, _, length = key.partition(".")
        if group not in groups or not length:
            raise ValueError(f"{path}: unknown tensor {key!r:.80}, expected {', '.join(f'{g}.T' for g in GROUPS)}")
        groups[group][length] = array
    inputs, outputs, others = groups.values()
    for one, other, name, lacking in (
        (inputs, outputs, "in", "out"),
        (outputs, inputs, "out", "in"),
        (others, inputs, "out132", "in"),
    ):
        if alone := sorted(one.keys() - other.keys()):
            raise ValueError(f"{path}: {name}.{alone[0]} has no {lacking}.{alone[0]}")
    read = read_speaker(path.with_suffix(".onnx"))
    config, weights = asdict(read.config), {key: np.array(read[key]) for key in read}
    lengths = sorted(inputs, key=lambda text: (len(text), text))
    found = {n: Recorded(path, "CAMPPlus", config, {}, weights, {"x": inputs[n]}, {"embedding": outputs[n]}, {})
             for n in lengths}  # fmt: skip
    if not found:
        raise ValueError(f"{path} holds no in.T")
    return found, others
