"""Replace modules of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import mlx.nn as nn

Kind = TypeVar("Kind", bound=nn.Module)


def recast(module: nn.Module, kind: type[Kind]) -> Kind:
    """A module of `kind` with the parameters and settings of `module`, whose class `kind` extends."""
    made: Any = copy.copy(module)
    made.__class__ = kind
    return made


def replace(
    root: nn.Module,
    forms: Mapping[type[nn.Module], Callable[[Any], nn.Module]],
    leave: tuple[type[nn.Module], ...] = (),
) -> nn.Module:
    """Replace modules of `root` whose class is exactly one of `forms`, innermost first.

    Surrounding modules stay the same objects; `root` itself may be replaced. Modules inside one of a class in `leave`
    are not touched.
    """

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(item) for item in value]
        if not isinstance(value, nn.Module) or isinstance(value, leave):
            return value
        for name, child in value.items():
            value[name] = put(child)
        make = forms.get(type(value))
        return make(value) if make else value

    return put(root)
