"""Load a model from a folder of any supported layout, and replace its layers by fast forms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import read_settings
from ..fast import speed_up
from ..fast.modulation import bake
from ..model import CosyVoice3Model
from ..stream.threads import for_any_thread
from . import community, weights


class Later:
    """An object that is made when it is first used; its methods and attributes are to be had as if it were there."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Any:
        return self._make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


def load_model(folder: Path, lazy: bool = False, bake_timesteps: bool = False, plain: bool = False) -> CosyVoice3Model:
    """The model in a folder; the arguments are those of `CosyVoice3.from_pretrained`.

    Raises:
        Refused: what cannot be used, in one line.
    """
    with for_any_thread() if lazy else nullcontext():
        if community.recognises(settings := read_settings(folder)):
            model, _ = community.load(folder, lazy=True, settings=settings)
        else:
            model = weights.load(folder, lazy=True, settings=settings)
        if bake_timesteps:
            bake(model.flow.decoder)
        if not plain:
            speed_up(model, lazy=True)
        if not lazy:
            mx.eval(model.parameters())
    return model
