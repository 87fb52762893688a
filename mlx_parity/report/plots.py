"""Plots of the report as inline SVG: no libraries, colours from the page's style sheet, exact values on hover."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mlx_parity.report.data import ErrorMap, Histogram, Row
from mlx_parity.report.rows import in_pipeline_order
from mlx_parity.report.words import ratio_text

WIDTH, LEFT, RIGHT, TOP = 1000.0, 58.0, 12.0, 18.0
BAND = 84.0  # least width of a stage's band, so that its name fits
SHADES, FAINT = 12, 0.01  # of an error map; what it leaves white, in budgets
LOWEST_RATIO, LOWEST_ERROR = 1e-2, 1e-9  # smaller values are drawn here


def _tag(name: str, body: object = "", **attributes: object) -> Markup:
    def text(value: object) -> object:
        return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value

    inside = Markup("").join(
        Markup(' {}="{}"').format(k.rstrip("_").replace("_", "-"), text(v)) for k, v in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), inside, body)


def _join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


@dataclass(frozen=True)
class LogAxis:
    """A vertical log axis over whole decades; values under the lowest are drawn on it."""

    low: int
    high: int
    top: float
    bottom: float

    @classmethod
    def over(cls, values: Sequence[float], least: float, most: float, height: float) -> LogAxis:
        low = math.floor(math.log10(max(least, min(values, default=least))))
        return cls(low, max(math.ceil(math.log10(max([*values, most]))), low + 1), TOP, TOP + height)

    def __call__(self, value: float) -> float:
        place = (math.log10(max(value, 10.0**self.low)) - self.low) / (self.high - self.low)
        return self.bottom - place * (self.bottom - self.top)

    def grid(self, label: Callable[[int], str]) -> Markup:
        step = max(1, math.ceil((self.high - self.low) / 8))
        parts = []
        for decade in range(self.low, self.high + 1, step):
            y = self(10.0**decade)
            parts.append(_tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
            parts.append(_tag("text", label(decade), class_="tick", x=LEFT - 6, y=y + 4, text_anchor="end"))
        return _join(parts)


def _bands(groups: Mapping[str, int], axis: LogAxis, names: Mapping[str, str]) -> tuple[list[float], Markup]:
    """x of every point, stage after stage, and the stages' backgrounds with their names below the axis."""
    free = WIDTH - LEFT - RIGHT - BAND * len(groups)
    total = sum(groups.values())
    places, parts, left = [], [], LEFT
    for i, (stage, n) in enumerate(groups.items()):
        width = BAND + free * n / total
        places += [left + width * (j + 0.5) / n for j in range(n)]
        height = axis.bottom - axis.top
        parts.append(_tag("rect", class_=f"band{i % 2}", x=left, y=axis.top, width=width, height=height))
        middle, label = left + width / 2, names[stage]
        parts.append(_tag("text", label, class_="tick", x=middle, y=axis.bottom + 16, text_anchor="middle"))
        left += width
    return places, _join(parts)


def _level(y: float, kind: str, text: str, text_kind: str) -> list[Markup]:
    """A line across the plot, and what it is."""
    line = _tag("line", class_=kind, x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
    return [line, _tag("text", text, class_=text_kind, x=WIDTH - RIGHT - 4, y=y - 5, text_anchor="end")]


def _svg(height: float, body: Iterable[Markup], label: str, width: float = WIDTH, kind: str = "plot") -> Markup:
    box = f"0 0 {width:g} {height:g}"
    return _tag("svg", _join(body), viewBox=box, class_=kind, role="img", aria_label=label)


def _mark(kind: str, x: float, y: float, title: str, bad: bool, status: str) -> Markup:
    name = f"mark {kind}{' bad' if bad else ''}"
    r = 5.0 if bad else 3.5
    tip = _tag("title", title)
    if kind == "isolated":
        return _tag("circle", tip, class_=name, cx=x, cy=y, r=r, data_status=status)
    if kind == "chained":
        points = f"{x - r:.1f},{y:.1f} {x:.1f},{y - r:.1f} {x + r:.1f},{y:.1f} {x:.1f},{y + r:.1f}"
        return _tag("polygon", tip, class_=name, points=points, data_status=status)
    return _tag(
        "rect", tip, class_=name, x=x - r + 0.5, y=y - r + 0.5, width=2 * r - 1, height=2 * r - 1, data_status=status
    )


def ratio_plot(rows: Sequence[Row], names: Mapping[str, str], budget: float, first: Row | None) -> Markup | None:
    """Error ratio of every tensor on a log axis with the budget; a name's isolated and chained run share one x.

    Args:
        names: of the stages in words, in the order the data flows.
    """
    rows = [row for row in rows if row.ratio is not None and row.status != "REDUCED"]
    rows = in_pipeline_order(rows, list(names))
    if not rows:
        return None
    axis = LogAxis.over([row.ratio for row in rows], LOWEST_RATIO, 10 * budget, 250)
    slots = list(dict.fromkeys((row.stage, row.name) for row in rows))
    places, bands = _bands(Counter(stage for stage, _ in slots), axis, names)
    x_of = dict(zip(slots, places, strict=True))
    body = [bands, axis.grid(lambda d: f"{10.0**d:g}x")]
    body += _level(axis(budget), "budget", f"budget {budget:g}x", "budget-name")
    if first is not None and (first.stage, first.name) in x_of:
        x = x_of[first.stage, first.name]
        end = "start" if x < WIDTH / 2 else "end"
        name = first.name if len(first.name) < 64 else f"...{first.name[-60:]}"
        body.append(_tag("line", class_="first", x1=x, x2=x, y1=axis.top - 6, y2=axis.bottom))
        offset = 5 if end == "start" else -5
        label = f"first over budget: {name}"
        body.append(_tag("text", label, class_="first-name", x=x + offset, y=axis.top - 6, text_anchor=end))
    for row in rows:
        title = f"{row.name} ({row.kind}): {ratio_text(row.ratio, budget)}, {row.status}"
        bad = row.status == "FAIL"
        body.append(_mark(row.kind, x_of[row.stage, row.name], axis(row.ratio), title, bad, row.status))
    return _svg(axis.bottom + 26, body, "Error ratio of every tensor, log axis, with the budget")


def error_plot(rows: Sequence[Row], names: Mapping[str, str], floor: float) -> Markup | None:
    """The port's and the float32 reference's rms error against float64, tensor by tensor: overlap is health."""
    rows = in_pipeline_order((row for row in rows if None not in (row.e_ref_rms, row.e_port_rms)), list(names))
    if not rows:
        return None
    values = [getattr(row, key) for row in rows for key in ("e_ref_rms", "e_port_rms")]
    axis = LogAxis.over(values, LOWEST_ERROR, 10 * floor, 220)
    groups = Counter(row.stage for row in rows)
    places, bands = _bands(groups, axis, names)
    body = [bands, axis.grid(lambda d: f"1e{d}"), *_level(axis(floor), "floor", f"floor {floor:.2g}", "tick")]
    for name, key in (("reference", "e_ref_rms"), ("port", "e_port_rms")):
        start = 0
        for n in groups.values():
            points = " ".join(f"{places[i]:.1f},{axis(getattr(rows[i], key)):.1f}" for i in range(start, start + n))
            body.append(_tag("polyline", class_=f"line {name}", points=points))
            start += n
        for x, row in zip(places, rows, strict=True):
            tip = _tag("title", f"{row.name} ({row.kind}): {name} {getattr(row, key):.3g}")
            body.append(_tag("circle", tip, class_=f"dot {name}", cx=x, cy=axis(getattr(row, key)), r=2.2))
    return _svg(axis.bottom + 26, body, "Error of port and reference against float64, log axis")


def histogram_plot(histogram: Histogram) -> Markup:
    """Both error sets over the same log bins; bar heights are shares of the elements, on a square-root scale."""
    edges, n = histogram.edges, len(histogram.port)
    width, height, left, bottom = 460.0, 150.0, 8.0, 122.0
    step = (width - 2 * left) / n
    body = []
    for place, name in ((0.08, "reference"), (0.5, "port")):
        counts = getattr(histogram, name)
        total = max(sum(counts), 1)
        for i, count in enumerate(counts):
            tall = math.sqrt(count / total) * (bottom - 12)
            tip = _tag("title", f"{name}: {count} elements, |error| from 1e{edges[i]:g} to 1e{edges[i + 1]:g}")
            x = left + (i + place) * step
            body.append(_tag("rect", tip, class_=f"bar {name}", x=x, y=bottom - tall, width=step * 0.42, height=tall))
    body.append(_tag("line", class_="axis", x1=left, x2=width - left, y1=bottom, y2=bottom))
    every = max(1, math.ceil(n / 8))
    for i in range(0, n + 1, every):
        anchor = "start" if i == 0 else "end" if i == n else "middle"
        body.append(
            _tag("text", f"1e{edges[i]:g}", class_="tick", x=left + i * step, y=bottom + 15, text_anchor=anchor)
        )
    return _svg(height, body, "Histogram of both error sets", width, "plot small")


def error_map(grid: ErrorMap, unit: float) -> Markup:
    """The port's error over two axes of the tensor, in budgets of one element: log shades from FAINT to the largest."""
    rows = [[value / unit for value in row] for row in grid.rows]
    largest = max(max(max(row) for row in rows), 10 * FAINT)
    decades = math.log10(largest / FAINT)
    width, cell = 460.0, min(22.0, 440.0 / len(rows[0]))
    tall = min(cell, 140.0 / len(rows)) if len(rows) * cell > 140 else cell
    shades: dict[int, list[str]] = {}
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            shade = round(SHADES * math.log10(max(value, FAINT) / FAINT) / decades)
            if shade > 0:
                at = f"M{j * cell:.1f} {i * tall:.1f}h{cell:.1f}v{tall:.1f}h-{cell:.1f}z"
                shades.setdefault(shade, []).append(at)
    frame = {"x": 0, "y": 0, "width": cell * len(rows[0]), "height": tall * len(rows)}
    body = [_tag("rect", class_="frame", **frame)]
    for shade, cells in sorted(shades.items()):
        body.append(_tag("path", class_="cell", d="".join(cells), fill_opacity=shade / SHADES))
    bottom = len(rows) * tall
    words = f"rows: {grid.row_axis}, columns: {grid.column_axis}; a cell shows the largest error in it"
    body.append(_tag("text", words, class_="tick", x=0, y=bottom + 16))
    words = f"log shades: white up to {FAINT:g} budgets of one element, darkest {largest:.3g}"
    body.append(_tag("text", words, class_="tick", x=0, y=bottom + 31))
    return _svg(bottom + 37, body, "Where the error sits", width, "plot small")
