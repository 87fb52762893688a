"""The list of the official files' tensors (data/official/tensors.txt), and what each must become in the port."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

Shape = tuple[int, ...]
LIST = Path(__file__).parents[2] / "parity_tests" / "data" / "official" / "tensors.txt"
PARTS = ("llm", "flow", "hift", "speech_tokenizer", "speaker")


@dataclass(frozen=True)
class Entry:
    """One parameter of the port and what it is made of.

    Args:
        names: of the source tensors, two for a weight norm.
        shapes: of each.
        target: in the port; None where the tensor is only checked.
        layout: as the list explains it.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    target: str | None
    layout: str

    def shape(self) -> Shape:
        """Shape of the parameter."""
        whole = self.shapes[-1]
        moved = whole if self.layout == "same" else (whole[0], *whole[2:], whole[1])
        return (2, *moved) if self.layout == "gain64" else moved

    def value(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The parameter in float64; for `gain64` the sum of its two summands."""
        first, last = (tensors[name].astype(np.float64) for name in (self.names[0], self.names[-1]))
        if self.layout.startswith("gain"):
            axes = tuple(range(1, last.ndim))
            last = first * last / np.sqrt((last * last).sum(axis=axes, keepdims=True))
        return last if self.layout == "same" else np.moveaxis(last, 1, -1)


def entries(part: str) -> list[Entry]:
    """The list's entries for one file, one for each index and choice."""
    section = LIST.read_text(encoding="utf-8").split(f"[{part}]\n")[1].split("\n\n")[0]
    found: list[Entry] = []
    for line in section.splitlines():
        name, shape, *rest = line.split()
        expanded = list(_expanded(name, shape, rest[0] if rest else ""))
        if rest:
            found += [Entry((n,), (s,), None if t == "-" else t, rest[1]) for n, s, t in expanded]
        else:  # the direction of the gains before it
            for i, (n, s, _) in enumerate(expanded, len(found) - len(expanded)):
                found[i] = Entry((*found[i].names, n), (*found[i].shapes, s), found[i].target, found[i].layout)
    return found


def shapes(part: str) -> dict[str, Shape]:
    """Shape of every tensor of one file."""
    return {n: s for entry in entries(part) for n, s in zip(entry.names, entry.shapes, strict=True)}


def _expanded(name: str, shape: str, target: str) -> Iterator[tuple[str, Shape, str]]:
    pieces = re.split(r"\{(.*?)\}", name)
    for chosen in product(*map(_choices, pieces[1::2])):
        filled = "".join(a + b for a, b in zip(pieces[::2], (*chosen, ""), strict=True))

        def put(text: str, chosen: tuple[str, ...] = chosen) -> str:
            return re.sub(r"\$(\d)", lambda m: chosen[int(m[1]) - 1], text)

        yield filled, tuple(_number(put(size)) for size in shape.split(",")), put(target)


def _choices(text: str) -> list[str]:
    first, dots, last = text.partition("..")
    return [str(i) for i in range(int(first), int(last) + 1)] if dots else text.split(",")


def _number(text: str) -> int:
    constant, _, times = text.partition("+")
    factors = [int(factor) for factor in times.split("*")] if times else [0, 0]
    return int(constant) + factors[0] * factors[1]
