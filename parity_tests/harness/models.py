"""Both precisions of the reference and the converted port, from one checkpoint."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convert.checkpoint import read_state_dict
from convert.official import load_config
from convert.run import FILES, Source, convert_folder
from port import weights
from port.config import CosyVoice3Config
from port.model import CosyVoice3Model as PortModel
from reference.model import CosyVoice3Model as ReferenceModel
from reference.synthesize import synthesize

PARTS = {"llm": "llm", "flow": "flow", "hift": "vocoder"}  # official file -> attribute of the reference


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
    def prepare(cls, source: Path | None, folder: Path | None, scratch: Path, seed: int) -> Models:
        """Load a checkpoint and its conversion, making whichever is not given below `scratch`."""
        if source is None:
            source = scratch / "checkpoint"
            synthesize(source, "tiny", seed)
        if folder is None:
            folder = scratch / "mlx"
            # The suite itself is the parity check here; the command runs its own before it lets a folder stand.
            convert_folder(
                Source(source, str(source)), folder, parity=lambda *_: [{"checkpoint": "", "status": "PASS"}]
            )
        return cls.load(source, folder)

    @classmethod
    def load(cls, source: Path, folder: Path) -> Models:
        """Load both sides.

        Raises:
            CheckpointError, ConfigError, WeightsError: files that cannot be used.
        """
        config = load_config(source)
        single = load_reference(source, config)
        double = copy.deepcopy(single).double()
        audit = json.loads((folder / "audit.json").read_text("utf-8")) if (folder / "audit.json").exists() else {}
        return cls(source, folder, config, single, double, weights.load(folder), audit)

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


def load_reference(source: Path, config: CosyVoice3Config) -> ReferenceModel:
    """The reference in float32 with the official files of a folder, strict in every key."""
    model = ReferenceModel(config)
    for part, attribute in PARTS.items():
        held = read_state_dict(source / FILES[part])
        state = {key: torch.from_numpy(held[key].copy()) for key in held}
        getattr(model, attribute).load_state_dict(state, strict=True)
    return model.eval()
