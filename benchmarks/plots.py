"""Plots of a run, as SVG files: ratios with their range, cost over a stream and by length, gain of each fast form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.targets import seconds_of_chunks

COLOURS = {"port": "#1f77b4", "mlx_audio_plus": "#d62728", "torch": "#7f7f7f"}


def draw(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the plots for which the run has numbers; returns their file names."""
    drawn = {"ratios.svg": _ratios, "streams.svg": _streams, "lengths.svg": _lengths, "paths.svg": _paths}
    return [name for name, function in drawn.items() if function(result["cases"], folder / name)]


def _ratios(cases: list[Mapping[str, Any]], path: Path) -> bool:
    """Time over torch's, of port and mlx-audio-plus, a row per case."""
    rows = [(case, side) for case in cases for side in ("port", "mlx_audio_plus") if f"{side}/torch" in case["ratios"]]
    if not rows:
        return False
    names = list(dict.fromkeys(case["name"] for case, _ in rows))
    figure, axes = _figure(len(names))
    for case, side in rows:
        found = case["ratios"][f"{side}/torch"]
        y = names.index(case["name"]) + (0.15 if side == "port" else -0.15)
        bars = [[found["median"] - found["low"]], [found["high"] - found["median"]]]
        axes.errorbar(found["median"], y, xerr=bars, fmt="o", color=COLOURS[side], capsize=3, label=side)
    axes.axvline(1.0, color=COLOURS["torch"], label="torch")
    axes.set_xscale("log")
    axes.set_xlabel("time over torch's (median of the turns, and their range)")
    _finish(figure, axes, names, path)
    return True


def _streams(cases: list[Mapping[str, Any]], path: Path) -> bool:
    """Cost of each chunk, in seconds per second of audio, at its position in the stream."""
    streams = [case for case in cases if case["kind"] == "stream"]
    styles = {"port": "-", "port.recompute": "--", "torch": ":", "port.causal_final": "-."}
    drawn = [
        (f"{case['name']} {name}", style, seconds_of_chunks(case["variants"][name]["marks"]))
        for case in streams
        for name, style in styles.items()
        if case["variants"].get(name, {}).get("marks")
    ]
    if not drawn:
        return False
    figure, axes = _figure(8)
    for label, style, chunks in drawn:
        axes.step([start for start, _, _ in chunks], [cost for *_, cost in chunks], style, where="post", label=label)
    axes.set_yscale("log")
    axes.set_xlabel("second of the stream")
    axes.set_ylabel("seconds of work per second of audio")
    _finish(figure, axes, None, path)
    return True


def _lengths(cases: list[Mapping[str, Any]], path: Path) -> bool:
    """Cost per second of audio against the length, of whole requests and of all chunks of a stream."""
    ways = {"port": "a stream", "port.offline": "whole", "torch": "a stream, torch"}
    streams = sorted((case for case in cases if case["kind"] == "stream"), key=lambda case: case["audio_seconds"])
    rows = {name: [case for case in streams if case["variants"].get(name, {}).get("seconds")] for name in ways}
    if max(map(len, rows.values())) < 2:
        return False
    drawn = {
        ways[name]: [
            (case["audio_seconds"], case["variants"][name]["median"] / case["audio_seconds"]) for case in found
        ]
        for name, found in rows.items()
    }
    lines(drawn, "seconds of audio", "seconds of work per second of audio", path)
    return True


def _paths(cases: list[Mapping[str, Any]], path: Path) -> bool:
    """Time of a stage without one fast form, over its time with all."""
    rows = [
        (f"{case['name']} {name.partition('/')[0].removeprefix('port.').replace('_', ' ')}", found)
        for case in cases
        for name, found in case["ratios"].items()
        if name.startswith(("port.no_", "port.plain/", "port.separate/")) and name.endswith("/port")
    ]
    if not rows:
        return False
    figure, axes = _figure(len(rows))
    for y, (_, found) in enumerate(rows):
        bars = [[found["median"] - found["low"]], [found["high"] - found["median"]]]
        axes.barh(y, found["median"] - 1, left=1, xerr=bars, color=COLOURS["port"], capsize=3)
    axes.axvline(1.0, color=COLOURS["torch"])
    axes.set_xlabel("time without the form, over the time with all forms")
    _finish(figure, axes, [name for name, _ in rows], path)
    return True


def lines(drawn: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, path: Path) -> None:
    """Plot points (x, y), a line per name, from y = 0 on."""
    figure, axes = _figure(8)
    for name, points in drawn.items():
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", markersize=3, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _finish(figure, axes, None, path)


def _figure(rows: int) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    figure = Figure(figsize=(8, 1.5 + 0.32 * rows), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Any, axes: Any, names: list[str] | None, path: Path) -> None:
    if names:
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        axes.legend(handles.values(), handles.keys(), fontsize="small")
    axes.grid(alpha=0.3)
    # With a date, two drawings of one run would differ.
    figure.savefig(path, metadata={"Date": None})
