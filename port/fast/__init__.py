"""Fast forms of plain layers. They replace the layers once, after loading, and give the same result up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from . import arithmetic, attention, convolution, cores, layout, modulation, precision, sampling


@dataclass(frozen=True)
class Form:
    """One kind of fast form.

    Attributes:
        what: description.
        put: module -> the same with the form in place.
        suits: whether the default device gains by it.
    """

    what: str
    put: Callable[[nn.Module], nn.Module]
    suits: Callable[[], bool] = lambda: True


def _on_gpu() -> bool:
    return not arithmetic.on_cpu()


# In order of application.
FORMS = {
    "own_dtype": Form("layers of reduced precision round their input, not promote their weights", precision.own_dtype),
    "tables": Form("the fixed times' modulations and the rotary angles made once", modulation.tables),
    "attention": Form("attention's heads laid out once; chunks meet their keys only", attention.lay_out),
    "joined": Form("one product for queries, keys and values", attention.join, _on_gpu),
    "blocks": Form(
        "attention in blocks that stay in the cache, by a polynomial for the exponential",
        attention.in_blocks,
        lambda: arithmetic.on_cpu() and attention.has_compiler(),
    ),
    "activations": Form("polynomials for the scalar exp, tanh and sine", arithmetic.activations, arithmetic.on_cpu),
    "polyphase": Form("the vocoder's upsampling at the rate of the input", convolution.polyphase),
    "products": Form(
        "convolution as matrix products",
        convolution.products,
        lambda: arithmetic.on_cpu() or not mx.metal.is_available(),
    ),
    "padded": Form("channel counts that Metal's convolution is fast at", convolution.padded_channels, _on_gpu),
    "cores": Form("products divided among the cores of a CPU", cores.divided, cores.suit),
    "columns": Form("weights laid out as a product reads them", layout.columns, arithmetic.on_cpu),
    "queued": Form("the next token's step queued before the last one is read", sampling.queued, _on_gpu),
    "double": Form("the pitch predictor's float64 weights summed once", convolution.held_double),
}


def chosen() -> tuple[str, ...]:
    """Names of the forms that suit the default device."""
    return tuple(name for name, form in FORMS.items() if form.suits())


def speed_up(model: nn.Module, only: Collection[str] | None = None, lazy: bool = False) -> nn.Module:
    """Replace plain layers by fast forms, as `nn.quantize` replaces linears.

    Args:
        model: any part of the port with its weights, `CosyVoice3Model` or a single layer. It is changed; if the model
            itself is replaced, the result is another object.
        only: names of `FORMS`; None for those that suit the default device.
        lazy: compute the new arrays at first use, which must be in one thread.

    Returns:
        The model. Its parameters no longer have the names of a folder's tensors.

    Raises:
        ValueError: an unknown name.
    """
    names = chosen() if only is None else only
    if unknown := sorted(set(names) - set(FORMS)):
        raise ValueError(f"fast form {unknown[0]!r} is unknown; the forms are {', '.join(FORMS)}")
    for name, form in FORMS.items():
        if name in names:
            model = form.put(model)
    if not lazy:
        mx.eval(model.parameters())
    return model


def replaced(model: nn.Module) -> list[str]:
    """Class names of the fast forms in a model; empty for a plain one."""
    return sorted({type(m).__name__ for m in model.modules() if type(m).__module__.startswith(f"{__name__}.")})
