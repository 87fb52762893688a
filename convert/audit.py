"""Proof that a conversion is complete: every source tensor is used once, every port parameter is filled once.

It is made from names and shapes before any weight is read, and again from the headers of the written files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx.utils import tree_flatten

from convert.mapping import PORT_ROOT, TABLE, Step
from convert.transforms import UNUSED, Shape
from port.config import CosyVoice3Config
from port.files.errors import Refused
from port.model import CosyVoice3Model


@dataclass(frozen=True)
class SourceFile:
    """One file of the source, and what the audit counts in it."""

    name: str
    sha256: str
    bytes: int
    tensors: int
    elements: int
    ignored: tuple[str, ...] = ()  # entries beside the weights, such as training counters


@dataclass(frozen=True)
class Audit:
    """Counts of one conversion. Every source tensor is either consumed or dropped."""

    sources: int
    source_elements: int
    consumed: int
    dropped: dict[str, str]  # source key -> reason
    transforms: dict[str, int]  # kind -> number of rows applied
    parameters: int
    parameter_elements: int
    parameters_by_part: dict[str, int]
    files: dict[str, SourceFile] = field(default_factory=dict)  # by part, then the text files by name
    lacking: tuple[str, ...] = ()  # source tensors of `MAY_LACK` that no file has
    baked: dict[str, int] = field(default_factory=dict)  # timesteps, the parameters that became tables, and the tables

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def verdict(self) -> str:
        """One line for people."""
        baked = (
            "; {parameters} of them baked into tables of {timesteps} timesteps".format(**self.baked)
            if self.baked
            else ""
        )
        return (
            f"{self.sources} source tensors: {self.consumed} consumed, {len(self.dropped)} dropped with a reason, "
            f"none left over; {self.parameters} port parameters ({self.parameter_elements:,} numbers), each filled once"
            f"{baked}"
        )


def port_shapes(config: CosyVoice3Config, parts: Iterable[str] | None = None) -> dict[str, Shape]:
    """Names and shapes of the port's parameters; the model is built lazily, nothing is allocated.

    Args:
        parts: names of the `PORT_ROOT` table; all parameters of the model when None.
    """
    shapes = {
        name: tuple(value.shape) for name, value in dict(tree_flatten(CosyVoice3Model(config).parameters())).items()
    }
    if parts is None:
        return shapes
    roots = {PORT_ROOT[part] for part in parts}
    return {name: shape for name, shape in shapes.items() if name.split(".", 1)[0] in roots}


def prove(
    shapes: Mapping[str, Mapping[str, Shape]],
    plans: Mapping[str, list[Step]],
    parameters: Mapping[str, Shape],
    may_lack: Container[str] = (),
) -> Audit:
    """Check that the plans use all tensors of the files and fill all parameters of the port.

    Args:
        shapes: by part, shape of every tensor of the file.
        plans: by part, the steps of `mapping.plan` for all tensors of the file.
        parameters: what must be filled, from `port_shapes`.
        may_lack: source tensors that may be missing, among those that are only checked.

    Raises:
        Refused: a source tensor is used twice or never, or one that is only checked is missing; a parameter is unknown,
            missing, filled twice or has the wrong shape.
        Refused: source shapes do not fit their transform.
    """
    filled: dict[str, str] = {}
    dropped: dict[str, str] = {}
    transforms: Counter[str] = Counter()
    lacking: list[str] = []
    consumed = 0
    for part, steps in plans.items():
        uses = Counter(source for step in steps for source in step.sources)
        for source in shapes[part]:
            if uses[source] != 1:
                raise Refused(f"{part}: {source} is consumed {uses[source]} times")
        # A tensor that fills no parameter is still checked (one shows the head width); the original needs it too.
        looked_at = {row for row in TABLE if row.part == part and row.target is None and row.transform is not UNUSED}
        for row in looked_at - {step.row for step in steps}:
            if row.sources[0] not in may_lack:
                raise Refused(f"{part}: {row.sources[0]} is missing")
            lacking.append(row.sources[0])
        for step in steps:
            transforms[step.row.transform.name] += 1
            shape = step.shape(shapes[part])
            if step.target is None:
                dropped |= dict.fromkeys(step.sources, step.row.reason)
                continue
            consumed += len(step.sources)
            if step.target in filled:
                raise Refused(f"{step.target} is filled twice, by {filled[step.target]} and by {step.sources[0]}")
            if step.target not in parameters:
                raise Refused(f"{part}: {step.sources[0]} has no place in the model of this configuration")
            if shape != parameters[step.target]:
                raise Refused(
                    f"{part}: {step.sources[-1]} {list(shapes[part][step.sources[-1]])} gives {step.target} "
                    f"{list(shape or ())}, the configuration asks for {list(parameters[step.target])}"
                )
            filled[step.target] = step.sources[0]
    if missing := sorted(parameters.keys() - filled.keys()):
        raise Refused(f"{missing[0]} is not filled by any source tensor ({len(missing)} missing in all)")
    return Audit(
        sources=sum(len(held) for held in shapes.values()),
        source_elements=sum(math.prod(shape) for held in shapes.values() for shape in held.values()),
        consumed=consumed,
        dropped=dropped,
        transforms=dict(sorted(transforms.items())),
        parameters=len(filled),
        parameter_elements=sum(math.prod(shape) for shape in parameters.values()),
        parameters_by_part=dict(Counter(name.split(".", 1)[0] for name in sorted(filled))),
        lacking=tuple(sorted(lacking)),
    )
