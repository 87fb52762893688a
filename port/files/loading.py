"""Load a model from a folder of any supported layout, and replace its layers by fast forms."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx

from ..config import read_settings
from ..fast import speed_up
from ..fast.modulation import bake
from ..model import CosyVoice3Model
from ..stream.threads import for_any_thread
from . import community, weights


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
