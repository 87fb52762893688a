"""The result of `compare_models`: a row per output, the first wrong module, a summary to paste."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlx_parity.compare import BUDGET, Reading
from mlx_parity.judge import Row
from mlx_parity.report.model import write_atomically
from mlx_parity.report.words import markdown, ratio_text
from mlx_parity.sides import regime

WHOLE = "(model)"
LISTED = 10  # names of modules that only one side has
PACKAGES = (*regime.PACKAGES, "mlx-lm", "mlx-audio")
Where = Literal["", "here", "inside", "inputs"]
UNMATCHED = {
    "torch": "only in torch, judged as part of the surrounding module",
    "mlx": "only in mlx, judged as part of the surrounding module",
    "results": "more results on one side; the extra ones are not compared",
}
WHERE: dict[Where, str] = {"": "", "here": "wrong here", "inside": "around a wrong one", "inputs": "inherited"}


@dataclass(frozen=True)
class ModuleRow:
    """One output of one named module: the worst of its calls.

    Args:
        module: its name in PyTorch, `(model)` for the whole.
        kind: its class.
        output: place in what it returns; '' where it returns one array.
        reading: of the module inside the model.
        call: index of the call, from 0.
        where: of a failure: `here` if the module also fails on the reference's inputs, `inside` if a module within it
            does, `inputs` if only its inputs were wrong; '' if it passed or could not run alone.
        alone: the reading of that run on the reference's inputs.
    """

    module: str
    kind: str
    output: str
    reading: Reading
    call: int = 0
    where: Where = ""
    alone: Reading | None = None

    @property
    def name(self) -> str:
        return f"{self.module}.{self.output}" if self.output else self.module

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the row's fields, and the reading's."""
        own = {"module": self.module, "kind": self.kind, "output": self.output, "call": self.call, "where": self.where}
        return own | asdict(self.reading) | {"ratio": self.reading.ratio}

    def __str__(self) -> str:
        ratio = _ratio(self.reading)
        more = "  ".join(filter(None, (WHERE[self.where], self.reading.message if not ratio else "")))
        return f"{self.reading.status:8} {ratio:>9}  {self.name} ({self.kind})  {more}".rstrip()


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_models`.

    Args:
        rows: in the order in which the modules finished in PyTorch.
        unmatched: names of called modules that only one side has, by side (`torch`, `mlx`), which are judged inside the
            module around them; and (`results`) modules of which one side returns extra arrays, which are not compared.
    """

    rows: Sequence[ModuleRow]
    unmatched: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Every row passed, and there is one."""
        return bool(self.rows) and all(row.reading.status == "PASS" for row in self.rows)

    @property
    def first(self) -> str | None:
        """Name of the first module over budget; one that only inherits its error counts if no other is wrong."""
        return self.blamed[0].module if self.blamed else None

    @property
    def blamed(self) -> list[ModuleRow]:
        """Rows that do not pass; those that only inherit their error are left out, unless all do."""
        wrong = [row for row in self.rows if row.reading.status != "PASS"]
        return [row for row in wrong if row.where != "inputs"] or wrong

    @property
    def worst(self) -> float:
        """The largest ratio of all rows; 0 if no row has one."""
        return max((row.reading.ratio or 0.0 for row in self.rows), default=0.0)

    def verdict(self) -> str:
        """One sentence."""
        count = f"{len(self.rows)} outputs of {len({row.module for row in self.rows})} modules"
        if self.passed:
            worst = ratio_text(self.worst, BUDGET, padded=True)
            return f"PASS: {count} within the budget; worst {worst} of {BUDGET:g}x"
        wrong = sum(row.reading.status != "PASS" for row in self.rows)
        return f"FAIL: {wrong} of {count} do not pass; first wrong: {self.first or 'nothing was compared'}"

    def __str__(self) -> str:
        lines = [*map(str, self.rows), *self.notes()]
        return "\n".join([*lines, self.verdict()])

    def notes(self) -> Iterator[str]:
        """Modules that were not compared by themselves, one per line."""
        for side, names in self.unmatched.items():
            if names:
                more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
                yield f"{UNMATCHED[side]}: {', '.join(names[:LISTED])}{more}"

    def entries(self, part: str, case: str) -> Iterator[Row]:
        """Rows of a report, named below `part`: each module inside the model, and alone if it also ran alone."""
        for row in self.rows:
            name, module = f"{part}/{row.name}", f"{part}/{row.module}"
            yield Row(name, part, "chained", module, case, row.reading)
            if row.alone is not None:
                yield Row(name, part, "isolated", module, case, row.alone)

    def save(self, folder: str | Path) -> Path:
        """Write `report.json` (every row) and `summary.md` (to paste into a pull request) into a folder.

        Returns:
            the folder.

        Raises:
            OSError: it cannot be written.
        """
        folder = Path(folder)
        content = {
            "verdict": "PASS" if self.passed else "FAIL",
            "first": self.first,
            "budget": BUDGET,
            "versions": regime.versions(PACKAGES),
            "rows": [row.to_dict() for row in self.rows],
            "unmatched": {side: list(names) for side, names in self.unmatched.items()},
        }
        write_atomically(folder / "report.json", json.dumps(content, indent=1) + "\n")
        write_atomically(folder / "summary.md", self.summary())
        return folder

    def summary(self, rows: int = 20) -> str:
        """Markdown: verdict, versions, and a table of at most `rows` wrong rows."""
        lines = [f"**{markdown(self.verdict())}**", ""]
        lines += [", ".join(f"{name} {version}" for name, version in regime.versions(PACKAGES).items()), ""]
        if self.blamed:
            wrong = sum(row.reading.status != "PASS" for row in self.rows)
            lines += ["| module | status | ratio | |", "|---|---|---:|---|", *map(table_line, self.blamed[:rows])]
            if rest := wrong - len(self.blamed[:rows]):
                lines += ["", f"{rest} more outputs do not pass; most only inherit the error."]
            lines.append("")
        return "\n".join([*lines, *map(markdown, self.notes())]).rstrip() + "\n"


def nested(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Which of some modules, named as in `Comparison.entries`, each contains."""
    names, found = list(dict.fromkeys(modules)), {}
    for module in names:
        part, _, name = module.rpartition("/")
        beginning = f"{part}/" if name == WHOLE else f"{module}."
        found[module] = tuple(other for other in names if other != module and other.startswith(beginning))
    return found


def table_line(row: ModuleRow, before: str = "") -> str:
    """A row of a Markdown table: module, status, ratio, and a remark."""
    said = markdown(WHERE[row.where] or row.reading.message)
    return f"| {before}{markdown(row.name)} ({row.kind}) | {row.reading.status} | {_ratio(row.reading)} | {said} |"


def _ratio(reading: Reading) -> str:
    return "" if reading.ratio is None else ratio_text(reading.ratio, BUDGET, padded=True)
