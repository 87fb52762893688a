"""The results of a run, as lines for the terminal and as a Markdown file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Below this share of torch's matrix product rate, MLX's BLAS is so slow that ratios say nothing about the ports.
USABLE_SHARE = 0.5
MEANINGLESS = "It is slow: the MLX numbers below mean nothing."
OPENBLAS = "Install OpenBLAS (Debian: libopenblas0-pthread) or name one with --blas PATH."
# An OpenBLAS older than the processor takes the kernel of one of 2004.
OTHER_KERNEL = (
    "Name a kernel that suits the processor, as in OPENBLAS_CORETYPE=SkylakeX, or a newer library with --blas."
)
HEADER = ("variant", "median", "range", "x torch", "x port", "GFLOP/s", "of limit", "MLX peak", "process", "check")


def describe_blas(about: Mapping[str, Any], preloaded: str | None) -> dict[str, Any]:
    """The BLAS behind the MLX numbers, in a sentence, and whether it is too slow for them to mean anything."""
    port, torch = about["port"], about["torch"]
    kernel = port.get("blas_kernel")
    found = {"preloaded": preloaded, "kernel": kernel, "meaningless": False, "sentence": None}
    if port.get("device") != "cpu" or "matrix_flops" not in torch:
        return found
    mlx, own = port["matrix_flops"], torch["matrix_flops"]
    name = f"{preloaded} put before MLX's own, kernel {kernel}" if preloaded else "MLX's own"
    said = f"BLAS of all MLX workers: {name}; {mlx / 1e9:.0f} GFLOP/s in a matrix product, torch {own / 1e9:.0f}."
    if mlx >= USABLE_SHARE * own:
        return found | {"sentence": said}
    return found | {"meaningless": True, "sentence": f"{said} {MEANINGLESS} {OTHER_KERNEL if preloaded else OPENBLAS}"}


def table(case: Mapping[str, Any], marked: bool = False) -> list[tuple[str, ...]]:
    """Rows of one case under `HEADER`; `marked` puts a question mark behind MLX times that mean nothing."""
    flops, (work, limit) = flops_of(case), limit_of(case)
    rows = []
    for name, row in case["variants"].items():
        if not row["seconds"]:
            rows.append((name, row["status"], row["message"], *[""] * 7))
            continue
        rate = flops / row["median"] if flops else None
        query = " ?" if marked and row["side"] != "torch" else ""
        rows.append(
            (
                name,
                seconds(row["median"]) + query,
                f"{seconds(row['low'])} .. {seconds(row['high'])}" if len(row["seconds"]) > 1 else "one run",
                _ratio(case, name, "torch") + query if name != "torch" else "",
                _ratio(case, name, "port") + query if name != "port" else "",
                f"{rate / 1e9:.3g}" if rate else "",
                f"{100 * work / row['median'] / limit:.0f} %" if work and limit else "",
                megabytes(row.get("peak_bytes")),
                megabytes(row.get("peak_rss_bytes")),
                _check(row),
            )
        )
    return rows


def flops_of(case: Mapping[str, Any]) -> int | None:
    """Operations in matrix products of the plain path: the same amount for all sides."""
    counts = case.get("counts", {})
    counted = counts.get("port.plain") or counts.get("port") or {}
    flops = counted.get("matmul_flops")
    return flops * case["size"]["tokens"] if flops and case["kind"] == "decode" else flops


def limit_of(case: Mapping[str, Any]) -> tuple[int | None, float]:
    """Work of the plain path that the machine limits, and the machine's speed at it by its fastest side.

    Matrix products; of tokens one by one, where each weight serves one product, the bytes of weights that are read.
    """
    counts = case.get("counts", {})
    counted = counts.get("port.plain") or counts.get("port") or {}
    if case["kind"] == "decode" and "weight_bytes" in counted:
        return counted["weight_bytes"] * case["size"]["tokens"], max(case["memory_bytes"].values(), default=0.0)
    return flops_of(case), max(case["matrix_flops"].values(), default=0.0)


def notes(case: Mapping[str, Any]) -> list[str]:
    """Speeds in units of the stage, counts, and failures."""
    found = []
    for name, row in case["variants"].items():
        if row["message"] and row["seconds"]:
            found.append(f"{name}: {row['message']}")
    names = ("torch", "port", "mlx_audio_plus")
    for name in case["variants"] if case["kind"] in ("batch", "manifest") else names:
        row = case["variants"].get(name, {})
        if not row.get("seconds"):
            continue
        if case["kind"] in ("decode", "batch"):
            found.append(f"{name}: {case['size']['tokens'] / row['median']:.1f} tokens a second")
        elif case["kind"] == "manifest":
            found.append(f"{name}: {60 * case['size']['lines'] / row['median']:.1f} utterances a minute")
        elif case["kind"] == "prefill":
            found.append(f"{name}: {case['size']['positions'] / row['median']:.0f} positions a second")
        elif case["audio_seconds"]:
            found.append(f"{name}: {row['median'] / case['audio_seconds']:.2f} s per second of audio")
    for name, counted in case.get("counts", {}).items():
        if "error" in counted:
            found.append(f"{name}: not counted: {counted['error']}")
            continue
        if counted.get("idle_waits") is not None:
            found.append(f"{name}: {counted['idle_waits']:.2g} host waits per token with nothing queued")
        if not name.startswith("port.no_"):
            found.append(
                f"{name}: {counted['matmul_flops'] / 1e9:.3g} GFLOP of matrix products, "
                f"{counted['weight_bytes'] / 1e6:.1f} MB of weights and tables read, "
                f"{counted['primitives']} primitives and {counted['layout_primitives']} changes of layout"
            )
    return found


def target_rows(targets: list[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Target, limit, measured, range, verdict, note."""
    rows: list[tuple[str, ...]] = [("target", "limit", "measured", "range", "verdict", "note")]
    for target in targets:
        value, low = target["value"], target["low"]
        rows.append(
            (
                target["what"],
                target["limit"],
                "" if value is None else f"{value:.2f}",
                "" if low is None else f"{low:.2f} .. {target['high']:.2f}",
                target["status"],
                target["note"],
            )
        )
    return rows


def text(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def markdown(result: Mapping[str, Any], plots: list[str]) -> str:
    """The whole run as a page."""
    about, machine = result["sides"], result["machine"]
    lines = ["# Benchmark", "", f"{machine['machine']}, {machine['os']}, {result['options']['threads']} threads.", ""]
    versions = [
        f"{name} {side.get('version', side.get('error'))} on {side.get('device')}" for name, side in about.items()
    ]
    lines += [f"Command: `{result['command']}`; commit {result['commit'][:12]}; {', '.join(versions)}.", ""]
    lines += [result["blas"]["sentence"], ""] if result["blas"]["sentence"] else []
    lines += [
        "Times are medians; ratios are medians of the ratios of neighbouring runs. `x torch` is the time over torch's. "
        "`of limit` is the share of the fastest side's matrix product; token by token, of its speed of reading memory.",
        "",
    ]
    lines += ["## Targets", "", *_pipes(target_rows(result["targets"])), ""]
    for plot in plots:
        lines += [f"![{plot}]({plot})", ""]
    for case in result["cases"]:
        lines += [f"## {case['name']}: {case['what']}", ""]
        lines += _pipes([HEADER, *table(case, result["blas"]["meaningless"])])
        lines += ["", *(f"- {note}" for note in notes(case)), ""]
    return "\n".join(lines)


def seconds(value: float) -> str:
    """A time with three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f} MB"


def _pipes(rows: list[tuple[str, ...]]) -> list[str]:
    written = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    return [written[0], "|" + "---|" * len(rows[0]), *written[1:]]


def _ratio(case: Mapping[str, Any], name: str, base: str) -> str:
    found = case["ratios"].get(f"{name}/{base}")
    return f"{found['median']:.2f}" if found else ""


def _check(row: Mapping[str, Any]) -> str:
    check = row.get("check")
    if not check:
        return ""
    if check["status"] == "REDUCED":
        return "other tokens" if check["error_rms"] is None else f"error {check['error_rms']:.1e}"
    return check["status"] if check["ratio"] is None else f"{check['status']} {check['ratio']:.3g}x"
