"""The report page from a run of the suite, for people and for GitHub.

    python -m reports.build RUN.json [--out DIR] [--against OLD.json | --last OLD.json] [--ledger FILE] [--annotations]

With `--card DIR` the model card of a converted folder instead, with the run's verdict if one is given.

Writes report.html (one file, no outside links), report.md, summary.md (for a GitHub step summary) and report.json.
Exit 0 when the verdict is PASS, 1 when it is not or when the file cannot be read, 2 for a usage error.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import drift, plots
from reports.card import CARD_FILE, CardError, card
from reports.model import ReportError, load, to_json, validate, write_atomically
from reports.verdict import in_pipeline_order, isolated_of, status_of, worst_per_stage
from reports.words import (
    BUDGET_RATIO,
    PIPELINE,
    STAGE_NAMES,
    STAGES,
    STATUSES,
    Row,
    budget_unit,
    failure_sentence,
    number_text,
    ratio_text,
)

HERE = Path(__file__).parent
PANELS, OPEN_PANELS = 100, 5  # failures with a panel of their own; those that are open at first
OPTIONAL = (
    "weights_audit",
    "llm",
    "audio",
    "quality",
    "faults",
    "fault_catalogue",
    "liveness",
    "coverage",
    "drift",
)
SUMMARY_BYTES = 1024 * 1024  # what a GitHub step summary takes
ANNOTATIONS = 10  # what GitHub shows of one step


def view_of(report: Row) -> dict[str, Any]:
    """Everything the templates need, derived from a valid report."""
    rows, budget = report["checkpoints"], report["budget"]["ratio"]
    over = in_pipeline_order(row for row in rows if row["status"] == "FAIL")
    first = over[0] if over else None
    failing = over + in_pipeline_order(row for row in rows if row["status"] in ("ERROR", "VACUOUS"))
    rank = {id(row): i for i, row in enumerate(failing)}
    order = {id(row): i + 1 for i, row in enumerate(rows)}
    return {
        "report": dict.fromkeys(OPTIONAL) | dict(report),
        "verdict": report["verdict"],
        "about": report["provenance"],
        "budget": budget,
        "floor": report["budget"]["floor"],
        "statuses": STATUSES,
        "stage_names": {stage: STAGE_NAMES[stage] for stage in STAGES},
        "strip": [(stage, worst_per_stage(rows)[stage]) for stage in PIPELINE],
        "beside": [(s, found) for s, found in worst_per_stage(rows).items() if s not in PIPELINE and found["total"]],
        "ratio_plot": plots.ratio_plot(rows, budget, first),
        "error_plot": plots.error_plot(rows, report["budget"]["floor"]),
        "rows": [(order[id(row)], row) for row in sorted(rows, key=lambda row: rank.get(id(row), len(rows)))],
        "failing": [_panel(row, rows, budget, report["budget"]["floor"], row is first) for row in failing[:PANELS]],
        "failing_total": len(failing),
        "open_panels": OPEN_PANELS,
        "modules": list(_modules(rows)),
        "failed_tests": [test for test in report["tests"] if test["outcome"] in ("failed", "error")],
        "unrun_tests": [test for test in report["tests"] if test["outcome"] in ("skipped", "xfailed", "xpassed")],
        "unjudged": [row for row in rows if row["status"] in ("SKIP", "XFAIL")],
        "faults": _faults(report.get("faults")),
        "catalogue": _faults(report.get("fault_catalogue")),
        "liveness": _liveness(report.get("liveness")),
    }


def _panel(row: Row, rows: Sequence[Row], budget: float, floor: float, first: bool) -> dict[str, Any]:
    isolated = isolated_of(row, rows) if row["kind"] == "chained" else None
    chained = [r for r in rows if r["kind"] == "chained" and r["name"] == row["name"] and r is not row]
    return {
        "row": row,
        "sentence": failure_sentence(row, budget_ratio=budget, first=first, isolated=isolated),
        "isolated": isolated,
        "chained": max(chained, key=lambda r: r["ratio"] or 0, default=None) if row["kind"] == "isolated" else None,
        "histogram": row["histogram"] and plots.histogram_plot(row["histogram"]),
        "map": plots.error_map(row["error_map"], budget_unit(row, budget_ratio=budget, floor=floor))
        if row.get("error_map")
        else None,
        "positions": row.get("worst_positions") or ([row["worst"]] if row["worst"] else []),
    }


def _modules(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Worst isolated against worst chained ratio of each module class, in order of first appearance in the pipeline."""
    by_module: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in in_pipeline_order(rows):
        if row["ratio"] is not None and row["kind"] in ("isolated", "chained"):
            kinds = by_module.setdefault((row["stage"], row["module"]), {"isolated": [], "chained": []})
            kinds[row["kind"]].append(row)
    for (stage, module), kinds in by_module.items():
        worst = {kind: max((r["ratio"] for r in found), default=None) for kind, found in kinds.items()}
        status = status_of(r["status"] for found in kinds.values() for r in found)
        yield {"stage": stage, "module": module, "status": status, **worst}


def _faults(faults: Row | None) -> dict[str, Any] | None:
    """Fault rows with survivors first, and the count of each family."""
    if not faults:
        return None

    def state(row: Row) -> str:
        return "caught" if row["caught"] else "equivalent" if row.get("equivalent") else "SURVIVED"

    rank = {"SURVIVED": 0, "caught": 1, "equivalent": 2}
    rows = sorted(((state(row), row) for row in faults["rows"]), key=lambda pair: rank[pair[0]])
    families: dict[str, dict[str, int]] = {}
    for what, row in rows:
        found = families.setdefault(row["family"], dict.fromkeys(rank, 0) | {"right": 0})
        found[what] += 1
        found["right"] += what == "caught" and row["right_module"] is True
    return {**faults, "rows": rows, "families": families}


def _liveness(rows: Sequence[Row] | None) -> dict[str, Any] | None:
    """Liveness rows, the weakest first."""
    if rows is None:
        return None
    rank = {"VACUOUS": 0, "ERROR": 0, "XFAIL": 1, "PASS": 2}
    ordered = sorted(rows, key=lambda row: (rank[row["status"]], row["moved_budgets"] or 0))
    counts = {status: sum(row["status"] == status for row in rows) for status in rank}
    return {"rows": ordered, "counts": counts}


def _environment(kind: str) -> Environment:
    """Both kinds escape by default: HTML by the engine, Markdown by `finalize`."""
    env = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=kind == "html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=None if kind == "html" else _markdown,
    )
    env.filters |= {
        "ratio": lambda value, budget=BUDGET_RATIO: "-" if value is None else ratio_text(value, budget),
        "padded": lambda value, budget=BUDGET_RATIO: "-" if value is None else ratio_text(value, budget, padded=True),
        "number": number_text,
        "sci": lambda value: "-" if value is None else f"{value:.2e}",
        "brief": lambda value: "not finite" if value is None else f"{value:.3g}",
        "shape": lambda value: "-" if value is None else "×".join(map(str, value)) or "scalar",
        "bytes": _bytes,
        "duration": lambda s: f"{s:.1f} s" if s < 60 else f"{int(s // 60)} min {int(s % 60)} s",
        "code": _code,
        "clip": lambda text, limit: text if len(text) <= limit else text[: limit - 4] + " ...",
    }
    return env


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


_MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "&<>|`*\\"})


def _markdown(value: object) -> object:
    """Text that Markdown shows as it is, in a table too, without tags and links; what is marked safe stays."""
    if value is None or isinstance(value, Markup):
        return value or ""
    return re.sub(r"\s+", " ", str(value)).translate(_MARKDOWN).replace("](", "]&#40;")


def _code(value: object) -> Markup:
    """A code span, in a table too."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return Markup(f"`{text}`")


def render_html(report: Row) -> str:
    """One self-contained page."""
    static = {kind: Markup((HERE / "static" / f"report.{kind}").read_text("utf-8")) for kind in ("css", "js")}
    return _environment("html").get_template("template.html.j2").render(**view_of(report), **static)


def render_markdown(report: Row, *, summary: bool = False) -> str:
    """The report as Markdown; as a summary without the long tables and under GitHub's limit."""
    text = _environment("md").get_template("template.md.j2").render(**view_of(report), summary=summary)
    data = text.encode()
    if summary and len(data) >= SUMMARY_BYTES:
        whole_lines = data[: SUMMARY_BYTES - 100].rpartition(b"\n")[0].decode()
        text = f"{whole_lines}\n\nCut here: the rest is in report.html.\n"
    return text


def annotations(report: Row) -> list[str]:
    """GitHub workflow commands that show the first failures beside the tests they come from."""
    view = view_of(report)
    found = [(p["row"]["test"], p["row"]["name"], p["sentence"]) for p in view["failing"]]
    found += [(t["nodeid"], t["nodeid"], t["reason"] or t["outcome"]) for t in view["failed_tests"]]
    if not found and report["verdict"]["status"] != "PASS":
        found = [("", "verdict", report["verdict"]["sentence"])]
    lines = []
    for test, name, text in found[:ANNOTATIONS]:
        path = test.partition("::")[0]
        place = f"file={_property(path)},line=1," if path else ""
        lines.append(f"::error {place}title={_property(name)}::{_data(text)}")
    left = view["failing_total"] + len(view["failed_tests"]) - len(lines)
    return lines + ([f"::notice::{left} more failures are in report.html"] if left > 0 else [])


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def build(report: Row, out: str | Path) -> dict[str, Path]:
    """Write report.html, report.md, summary.md and report.json into a folder, each atomically; returns their paths.

    Raises:
        ReportError: the report is not valid; nothing was written.
    """
    out = Path(out)
    validate(report)
    texts = {"report.html": render_html(report), "report.md": render_markdown(report)}
    texts["summary.md"] = render_markdown(report, summary=True)
    texts["report.json"] = to_json(report)
    for name, text in texts.items():
        write_atomically(out / name, text)
    return {name: out / name for name in texts}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reports.build", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="the suite's JSON file")
    parser.add_argument("--card", type=Path, metavar="DIR", help="write the model card of a converted folder instead")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder to write to (default: reports/out)")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--against", type=Path, help="report.json of an earlier run: adds what changed since")
    earlier.add_argument("--last", type=Path, help="the same, but does without where that file cannot be read")
    parser.add_argument("--ledger", type=Path, help="JSON-lines file to enter the run in, once")
    parser.add_argument("--annotations", action="store_true", help="print failures as GitHub annotations too")
    options = parser.parse_args(arguments)
    if options.run is None and options.card is None:
        parser.error("give the suite's JSON file, or --card with a converted folder")
    try:
        report = load(options.run) if options.run else None
        if options.card:
            write_atomically(options.card / CARD_FILE, card(options.card, report))
            print(f"card: {options.card / CARD_FILE}")
            return 0
        shown = report
        if earlier := _earlier(options):
            shown = report | {"drift": drift.compare(earlier, report)}
        paths = build(shown, options.out)
        if options.ledger:
            drift.enter(options.ledger, [report])
    except (ReportError, CardError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    if options.annotations:
        print("\n".join(annotations(report)))
    print(f"report: {paths['report.html']}")
    print(report["verdict"]["sentence"])
    return 0 if report["verdict"]["status"] == "PASS" else 1


def _earlier(options: argparse.Namespace) -> Row | None:
    """The report to compare with: one that was asked for must be readable, the last one need not be there."""
    if options.against:
        return load(options.against)
    if options.last is None or not options.last.is_file():
        return None
    try:
        return load(options.last)
    except ReportError as error:
        print(f"build: compared with no earlier run: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
