"""The adapter of this repository's own port; weights go through convert/mapping.py, so each case tests it too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from convert.mapping import convert
from convert.quantize import FLOAT32, Precision
from mlx_parity.adapter import Adapter, Side
from mlx_parity.part import Part
from mlx_parity.sides.mlx import to_mlx, to_numpy
from mlx_parity.sides.truth import Reference
from parity_tests.parts import PLACES
from port import noise
from port.config import CosyVoice3Config, DiTConfig, FlowConfig
from port.fast import replaced, speed_up
from port.files.storage import DTYPES


class OwnPort(Side):
    """`port/` on the device that MLX chose.

    Args:
        precision: of the weights.
        forms: names of the fast forms to use (port/fast); None for `usual`.

    Attributes:
        usual: the default forms: None for those that suit the device, () for the plain port (`--plain`).
    """

    name, package = "own", "port"
    usual: ClassVar[Collection[str] | None] = None

    def __init__(self, precision: Precision = FLOAT32, forms: Collection[str] | None = None) -> None:
        self.precision = precision
        self.forms = self.usual if forms is None else forms

    def also(self, part: Part, config: Mapping[str, Any]) -> dict[str, Adapter]:
        """The plain port too, if a fast form replaces something in the part."""
        built = part.build("port", config)
        if self.forms is not None or not isinstance(built, nn.Module) or not replaced(speed_up(built, lazy=True)):
            return {}
        return {"plain": type(self)(self.precision, ())}

    def build(self, part: Part, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Any:
        built = part.build("port", config)
        if isinstance(built, nn.Module) and part.at:
            root = load_part(built, part, config, state)
            built.load_weights(
                [(k, self._stored(root + k, v)) for k, v in dict(tree_flatten(built.parameters())).items()]
            )
        return self.as_run(built)

    def as_run(self, built: Any, lazy: bool = False) -> Any:
        """A part with its fast forms in place; `lazy` as for `speed_up`."""
        return speed_up(built, self.forms, lazy) if isinstance(built, nn.Module) else built

    def _stored(self, name: str, value: mx.array) -> mx.array:
        return value.astype(DTYPES[self.precision.tag(name)][0])

    def tensor(self, array: np.ndarray) -> mx.array:
        return to_mlx(array)

    def array(self, tensor: Any) -> np.ndarray:
        return to_numpy(tensor)

    def noise(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        draw = {
            "rand_noise": lambda: noise.rand_noise(shape[2]),
            "sine_waves": lambda: noise.sine_waves(shape[1])[None],
        }
        return np.array(draw[name]())

    def place(self, path: str) -> str | None:
        found = PLACES.find("port", path)
        return str(found) if found else None

    def versions(self) -> dict[str, str]:
        return {"mlx": metadata.version("mlx")}


# The two sides by name; the reference takes a dtype.
SIDES: dict[str, Callable[..., Side]] = {"reference": Reference, "port": OwnPort}


def make(dtype: str = "float32") -> OwnPort:
    """The adapter for weights of `dtype`: float32, float16 or bfloat16."""
    return OwnPort(Precision(dtype))


def load_part(module: nn.Module, part: Part, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> str:
    """Load official weights into one part of the port through the conversion table.

    Args:
        module: the part, freshly built.
        part: the part; `part.at` is its place in the official checkpoint, `file:prefix`.
        config: its sizes; the rotary table depends on `dim_head`.
        state: official keys relative to the prefix.

    Returns:
        Prefix of the part's parameter names in the whole model.

    Raises:
        ValueError: the table's keys are not exactly the part's parameters.
    """
    file, _, prefix = part.at.partition(":")
    if part.at.endswith("rotary_embed"):
        config = {"dim_head": config["dim"]}
    head = config.get("dim_head") or config.get("dit", {}).get("dim_head") or DiTConfig.dim_head
    model = CosyVoice3Config(flow=FlowConfig(dit=DiTConfig(dim_head=head)))
    converted = convert(file, {f"{prefix}.{k}" if prefix else k: v for k, v in state.items()}, model).tensors
    wanted = set(dict(tree_flatten(module.parameters())))
    one = min(wanted, default="")
    roots = {k.removesuffix(one) for k in converted if k.endswith(one)} if wanted else {""}
    root = next((r for r in sorted(roots) if {r + w for w in wanted} == set(converted)), None)
    if root is None:
        raise ValueError(f"{part.at}: the table gives {sorted(converted)}, the port has {sorted(wanted)}")
    module.load_weights([(k.removeprefix(root), mx.array(v)) for k, v in converted.items()], strict=True)
    module.eval()
    return root
