"""Both precisions of the reference and the converted port, from one checkpoint."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch
from mlx.utils import tree_flatten

from convert.official import load_config
from convert.parts import PARTS
from port import weights
from port.config import CosyVoice3Config
from port.model import CosyVoice3Model as PortModel
from reference.model import CosyVoice3Model as ReferenceModel

ATTRIBUTES = {"hift": "vocoder"}  # of the reference, where it is not the part's own name


@dataclass(frozen=True)
class WeightFile:
    """A source file for the report's provenance."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Models:
    """What the chained comparisons run on.

    Args:
        source: official checkpoint folder.
        folder: its conversion.
        config: sizes of all three models.
        single, double: the reference in float32 and float64.
        port: loaded from `folder`, as a user would.
        audit: `audit.json` of the conversion.
    """

    source: Path
    folder: Path
    config: CosyVoice3Config
    single: ReferenceModel
    double: ReferenceModel
    port: PortModel
    audit: dict[str, Any]

    @classmethod
    def load(cls, source: Path, folder: Path, depth: int | None = None) -> Models:
        """Load both sides.

        Args:
            source: official checkpoint folder.
            folder: its conversion.
            depth: keep so many layers of each deep stack, from the first on; for models too large to hold three times.

        Raises:
            CheckpointError, ConfigError, WeightsError: files that cannot be used.
        """
        config = load_config(source)
        if depth is not None:
            config = shallow(config, depth)
        single = load_reference(source, config)
        double = copy.deepcopy(single).double()
        port = weights.load(folder) if depth is None else load_shallow_port(folder, config)
        audit = json.loads((folder / "audit.json").read_text("utf-8")) if (folder / "audit.json").exists() else {}
        return cls(source, folder, config, single, double, port, audit)

    @property
    def files(self) -> list[WeightFile]:
        """The source files with weights."""
        described = self.audit.get("files", {})
        return [WeightFile(f["name"], f["sha256"], f["bytes"]) for f in described.values() if f["tensors"]]

    @property
    def revision(self) -> str | None:
        """Revision of the source on the hub, if it came from there."""
        content = json.loads((self.folder / "config.json").read_text("utf-8"))
        return content.get("provenance", {}).get("revision")


def shallow(config: CosyVoice3Config, depth: int) -> CosyVoice3Config:
    """The same model with at most `depth` layers in each deep stack."""
    qwen2, dit, tokenizer = config.llm.qwen2, config.flow.dit, config.speech_tokenizer
    return replace(
        config,
        llm=replace(config.llm, qwen2=replace(qwen2, num_hidden_layers=min(depth, qwen2.num_hidden_layers))),
        flow=replace(config.flow, dit=replace(dit, depth=min(depth, dit.depth))),
        speech_tokenizer=replace(tokenizer, depth=min(depth, tokenizer.depth)),
    )


def load_reference(source: Path, config: CosyVoice3Config) -> ReferenceModel:
    """The reference in float32 with the official files; tensors of layers beyond `config` are not read.

    Raises:
        KeyError: a tensor that the model needs is in no file.
    """
    model = ReferenceModel(config)
    for part in PARTS:
        module = getattr(model, ATTRIBUTES.get(part.name, part.name))
        held = part.read(source / part.file)
        state = {key: torch.from_numpy(held[key].copy()) for key in module.state_dict()}
        module.load_state_dict(state, strict=True)
    return model.eval()


def load_shallow_port(folder: Path, config: CosyVoice3Config) -> PortModel:
    """The port with the first layers of a converted folder; the arrays of the others are never read."""
    model = PortModel(config)
    held: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        held |= mx.load(str(file))
    names = [name for name, _ in tree_flatten(model.parameters())]
    model.load_weights([(name, held[name]) for name in names], strict=True)
    return model.eval()
