"""Precision of a converted folder: what is float16, bfloat16 or quantized, and what stays float32.

Half precision and quantization apply to the big matrix products: the language model's layers and tables and the blocks
of the diffusion transformer, 95 % of what speaking reads. Whatever is small, sums many terms or feeds a phase
stays float32: norms, time and input embedding, the head over speech tokens, the pitch and the source of the vocoder.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from convert.flags import BITS, GROUP_SIZES, HALF_BY_DEFAULT, PARTS, QUANTIZED_BY_DEFAULT, QUANTIZED_PARTS, TAGS
from port.config import read_settings
from port.files.errors import Misused, Refused
from port.files.storage import DTYPES, Shape, TensorInfo, read_headers
from port.files.weights import quantization_of

NAMES = {tag: name for name, tag in TAGS.items()}
MODE = "affine"


@dataclass(frozen=True)
class Precision:
    """How parameters are stored.

    Args:
        dtype: `float32`, `float16` or `bfloat16`: of the weights of `parts`, and of their scales where quantized.
        parts: names of `PARTS` that take it; everything else is float32.
        bits: names of `QUANTIZED_PARTS` -> bits of their layers.
        group_size: columns that share a scale. A layer stays as it is if this does not divide its width.

    Raises:
        Misused: an unknown name or number.
    """

    dtype: str = "float32"
    parts: tuple[str, ...] = HALF_BY_DEFAULT
    bits: Mapping[str, int] = field(default_factory=dict)
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.dtype not in TAGS:
            raise Misused(f"dtype {self.dtype!r} is unknown; choose {', '.join(TAGS)}")
        for given, known in ((self.parts, tuple(PARTS)), (self.bits, QUANTIZED_PARTS)):
            if unknown := sorted(set(given) - set(known)):
                raise Misused(f"part {unknown[0]!r} is unknown here; the parts are {', '.join(known)}")
        if not set(self.bits.values()) <= set(BITS) or self.group_size not in GROUP_SIZES:
            raise Misused(
                f"{sorted(set(self.bits.values()))} bits in groups of {self.group_size}: choose bits from {BITS}, "
                f"groups from {GROUP_SIZES}"
            )

    def tag(self, name: str) -> str:
        """Dtype of a parameter in the written files, before quantization."""
        return TAGS[self.dtype] if any(re.fullmatch(PARTS[part], name) for part in self.parts) else "F32"

    def bits_of(self, name: str, shape: Shape) -> int | None:
        """Bits of a parameter, None when it is not quantized."""
        if not name.endswith(".weight") or shape[-1] % self.group_size:
            return None
        return next((bits for part, bits in self.bits.items() if re.fullmatch(PARTS[part], name)), None)

    def layout(self, parameters: Mapping[str, Shape]) -> dict[str, TensorInfo]:
        """Every tensor of the folder, from names and shapes of the model's parameters.

        Raises:
            Misused: quantization that no layer can take.
        """
        found = {}
        for name, shape in parameters.items():
            tag, bits = self.tag(name), self.bits_of(name, shape)
            if bits is None:
                found[name] = TensorInfo(tag, shape)
                continue
            layer, (*rows, width) = name.removesuffix(".weight"), shape
            found[name] = TensorInfo("U32", (*rows, width * bits // 32))
            for key in ("scales", "biases"):
                found[f"{layer}.{key}"] = TensorInfo(tag, (*rows, width // self.group_size))
        if self.bits and len(found) == len(parameters):
            raise Misused(
                f"no layer of {', '.join(self.bits)} has a width that {self.group_size} divides; "
                f"choose another --q-group-size from {GROUP_SIZES}"
            )
        return found

    def stored(self, name: str, array: np.ndarray) -> Iterator[tuple[str, mx.array | np.ndarray]]:
        """The tensors written for one parameter (float32, finite).

        Raises:
            Refused: a value that the dtype cannot hold.
        """
        tag, bits = self.tag(name), self.bits_of(name, array.shape)
        if tag == "F32" and bits is None:
            yield name, array
            return
        rounded = mx.array(array).astype(DTYPES[tag][0])
        pieces = {name: rounded}
        if bits is not None:
            layer = name.removesuffix(".weight")
            packed, scales, biases = mx.quantize(rounded, self.group_size, bits, mode=MODE)
            pieces = {name: packed, f"{layer}.scales": scales, f"{layer}.biases": biases}
        for piece in pieces.values():
            if piece.dtype != mx.uint32 and not mx.isfinite(piece).all().item():
                raise Refused(
                    f"{name}: {np.abs(array).max():g} exceeds the range of {self.dtype}; choose bfloat16 or float32"
                )
        yield from pieces.items()

    def quantization(self, parameters: Mapping[str, Shape]) -> dict[str, Any] | None:
        """The entry of `config.json` as mlx_lm writes it; layers with other bits are listed by path."""
        if not self.bits:
            return None
        first = next(iter(self.bits.values()))
        chosen = {name: self.bits_of(name, shape) for name, shape in parameters.items()}
        others = {
            name.removesuffix(".weight"): {"group_size": self.group_size, "bits": bits}
            for name, bits in chosen.items()
            if bits not in (None, first)
        }
        return {"group_size": self.group_size, "bits": first, "mode": MODE, **others}


FLOAT32 = Precision()


@dataclass(frozen=True)
class Found:
    """Precision of a folder, from its files alone.

    Args:
        tags: dtype of every tensor by name.
        bits: numbers of bits that occur.
    """

    tags: Mapping[str, str]
    bits: tuple[int, ...]

    @cached_property
    def stages(self) -> frozenset[str]:
        """Parts of the model (`llm`, `flow`, ...) with a weight that is not float32."""
        return frozenset(name.split(".")[0] for name, tag in self.tags.items() if tag != "F32")

    @property
    def label(self) -> str:
        """`float32`, `float16`, `4-bit`, `bfloat16 and 8-bit`, ..."""
        halves = sorted({NAMES[tag] for tag in self.tags.values() if tag in ("F16", "BF16")})
        return " and ".join([*halves, *(f"{bits}-bit" for bits in self.bits)]) or "float32"


def precision_of(folder: Path) -> Found:
    """Read the precision from the headers of a converted folder.

    Raises:
        Refused: files that cannot be read.
    """
    settings = quantization_of(read_settings(folder)) or {}
    bits = [own.get("bits") for own in (settings, *settings.values()) if isinstance(own, dict)]
    return Found(
        {name: info.dtype for name, (_, info) in read_headers(folder).items()},
        tuple(sorted({b for b in bits if type(b) is int})),
    )


def from_flags(options: argparse.Namespace) -> Precision:
    """The precision that the command line asks for.

    Raises:
        Misused: parts without a dtype or `-q`, or an unknown part.
    """
    for name in ("q_bits", "q_group_size", "q_parts"):
        if not options.quantize and getattr(options, name) is not None:
            raise Misused(f"--{name.replace('_', '-')} goes with -q")
    if options.dtype_parts is not None and options.dtype == "float32":
        raise Misused("--dtype-parts goes with --dtype float16 or bfloat16")
    bits = {}
    for item in _listed(options.q_parts, QUANTIZED_BY_DEFAULT) if options.quantize else ():
        part, _, own = item.partition(":")
        if own and not own.isdigit():
            raise Misused(f"--q-parts {item}: expected PART or PART:BITS")
        bits[part] = int(own) if own else options.q_bits or BITS[0]
    parts = tuple(_listed(options.dtype_parts, HALF_BY_DEFAULT))
    return Precision(options.dtype, parts, bits, options.q_group_size or 64)


def _listed(text: str | None, default: Sequence[str]) -> list[str]:
    return list(default) if text is None else [item.strip() for item in text.split(",")]
