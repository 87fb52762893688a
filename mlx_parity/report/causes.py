"""Find the causes among failures: the parts that fail by themselves, each with the rows that fail because of it.

A module fails alone when a row with given inputs (isolated, recorded or exact) fails and no module that it contains
does. Folded beneath it are failing rows of modules that contain it and, in a run of the whole model, all failing rows
after it. If something fails only inside the whole model, its cause is the first failing row of its run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlx_parity.report.data import Module, Row
from mlx_parity.report.rows import in_pipeline_order

BROKEN = ("FAIL", "ERROR")


@dataclass(frozen=True)
class Cause:
    """One part to look at.

    Args:
        row: its first failing row.
        own: its other failing rows.
        folded: failing rows of modules that contain it or come after it.
    """

    row: Row
    own: list[Row] = field(default_factory=list)
    folded: list[Row] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """It fails on given inputs, so nothing before it is the cause."""
        return self.row.kind != "chained"

    def rows(self) -> list[Row]:
        """All of its rows, the first to look at first."""
        return [self.row, *self.own, *self.folded]


def causes_of(rows: Sequence[Row], modules: Mapping[str, Module], stages: Sequence[str]) -> list[Cause]:
    """Every failing row, once, beneath its cause; causes in the order of the pipeline, vacuous rows last.

    Args:
        rows: all of a report, in the order of the run.
        modules: its section of that name, which says what each module contains.
        stages: in the order the data flows.
    """
    inside = {name: set(about.contains) for name, about in modules.items()}
    broken = in_pipeline_order((row for row in rows if row.status in BROKEN), stages)
    roots = _roots(broken, inside, modules)
    led = {id(row) for cause in roots.values() for row in cause.rows()}
    begins = _beginnings(rows, roots, inside)
    rest: list[Row] = []
    for row in broken:
        if id(row) in led:
            continue
        module, case = row.module, row.case
        found = [root for root in roots if root == module or root in inside.get(module, ())]
        if row.kind == "chained":
            found += [root for root in roots if begins.get((case, root), len(rows)) <= begins[id(row)]]
        elif _unplaced(modules, module):
            found += [root for root, cause in roots.items() if cause.row.stage == row.stage]
        if found:
            roots[found[0]].folded.append(row)
        else:
            rest.append(row)
    vacuous = [Cause(row) for row in in_pipeline_order((r for r in rows if r.status == "VACUOUS"), stages)]
    causes = [*roots.values(), *_only_in_the_whole(rest, inside)]
    return sorted(causes, key=lambda cause: stages.index(cause.row.stage)) + vacuous


def _roots(broken: Sequence[Row], inside: Mapping[str, set[str]], modules: Mapping[str, Module]) -> dict[str, Cause]:
    """The modules that fail on given inputs while nothing that they contain does.

    A row without a place in the source (a recording of several parts) is a cause only if its stage has no other.
    """
    given = [row for row in broken if row.kind != "chained"]
    alone = list(dict.fromkeys(row.module for row in given))
    smallest = [row for row in given if not any(_contains(inside, row.module, other) for other in alone)]
    placed = {row.stage for row in smallest if not _unplaced(modules, row.module)}
    roots: dict[str, Cause] = {}
    for row in smallest:
        if row.module in roots:
            roots[row.module].own.append(row)
        elif row.stage not in placed or not _unplaced(modules, row.module):
            roots[row.module] = Cause(row)
    return roots


def _unplaced(modules: Mapping[str, Module], module: str) -> bool:
    about = modules.get(module)
    return about is not None and about.reference is None and about.port is None


def _contains(inside: Mapping[str, set[str]], outer: str, inner: str) -> bool:
    """Whether one module is a part of another, and not the other way round as well."""
    return inner != outer and inner in inside.get(outer, ()) and outer not in inside.get(inner, ())


def _beginnings(rows: Sequence[Row], roots: Mapping[str, Cause], inside: Mapping[str, set[str]]) -> dict[object, int]:
    """Place of each row in the run, by its id; by (case, root) that of the first chained row which shows the fault."""
    places: dict[object, int] = {}
    for place, row in enumerate(rows):
        places[id(row)] = place
        if row.status in BROKEN and row.kind == "chained":
            for root in roots:
                if root == row.module or root in inside.get(row.module, ()):
                    places.setdefault((row.case, root), place)
    return places


def _only_in_the_whole(rows: Sequence[Row], inside: Mapping[str, set[str]]) -> Iterator[Cause]:
    """Rows that nothing alone explains: one cause for all runs that first fail at one module, or what contains it."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.case if row.kind == "chained" else row.name, []).append(row)
    causes: list[Cause] = []
    for first, *more in runs.values():
        same = [cause for cause in causes if _same(inside, cause.row.module, first.module)]
        if same:
            same[0].folded.extend([first, *more])
        else:
            causes.append(Cause(first, folded=more))
    yield from causes


def _same(inside: Mapping[str, set[str]], inner: str, outer: str) -> bool:
    return inner == outer or _contains(inside, outer, inner)
