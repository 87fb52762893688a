"""A golden file (numbers made by running the original), and the side that replays it."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from parity_tests.adapters import own
from parity_tests.harness import oracle

Arrays = dict[str, np.ndarray]
Side = Literal["reference", "port"]


@dataclass(frozen=True)
class GoldenFile:
    """Content of one file: weights, inputs and the original's results in float32 and float64."""

    path: Path
    config: dict[str, Any]
    call: dict[str, Any]
    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    out: dict[str, np.ndarray]
    out64: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.path.stem

    @classmethod
    def read(cls, path: Path) -> GoldenFile:
        """Raises ValueError for a file that is no golden file."""
        groups: dict[str, dict[str, np.ndarray]] = {"w": {}, "in": {}, "out": {}, "out64": {}}
        try:
            with safe_open(path, framework="numpy") as file:
                meta = file.metadata() or {}
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    group, _, name = key.partition(".")
                    groups[group][name] = file.get_tensor(key)
            config, call = json.loads(meta["config"]), json.loads(meta["call"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a golden file ({error})") from None
        return cls(path, config, call, groups["w"], groups["in"], groups["out"], groups["out64"])


@dataclass(frozen=True)
class Kit:
    """One side: its package, and tensors of its kind (`dtype` counts for the reference only)."""

    package: str
    dtype: torch.dtype = torch.float32

    def get(self, path: str) -> Any:
        """A name below the package: `flow.masks.make_pad_mask`."""
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(f"{self.package}.{module}"), name)

    def tensor(self, array: np.ndarray) -> Any:
        return own.to_mlx(array) if self.package == "port" else oracle.to_torch(array, self.dtype)

    def array(self, tensor: Any) -> np.ndarray:
        return own.to_numpy(tensor) if self.package == "port" else oracle.to_numpy(tensor)
