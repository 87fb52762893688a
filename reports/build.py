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
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import drift
from reports.model import ReportError, load, to_json, validate, write_atomically
from reports.view import view_of
from reports.words import BUDGET_RATIO, Row, number_text, precision_text, ratio_text, stage_number

HERE = Path(__file__).parent
SUMMARY_BYTES = 1024 * 1024  # what a GitHub step summary takes
ANNOTATIONS = 10  # what GitHub shows of one step


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
        "stage_number": stage_number,
        "precision": precision_text,
        "sci": lambda value: "-" if value is None else f"{value:.2e}",
        "brief": lambda value: "not finite" if value is None else f"{value:.3g}",
        "shape": lambda value: "-" if value is None else "×".join(map(str, value)) or "scalar",
        "bytes": _bytes,
        "duration": lambda s: f"{s:.1f} s" if s < 60 else f"{int(s // 60)} min {int(s % 60)} s",
        "code": _code,
        "command": _command,
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


def _command(value: object) -> Markup:
    """A code span of a command, to be pasted as it stands; not for tables."""
    text = " ".join(str(value).splitlines())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")


def render_html(report: Row) -> str:
    """One self-contained page."""
    static = {kind: Markup((HERE / "static" / f"report.{kind}").read_text("utf-8")) for kind in ("css", "js")}
    return _environment("html").get_template("template.html.j2").render(**view_of(report), **static)


def render_markdown(report: Row, *, summary: bool = False) -> str:
    """The report as Markdown; as a summary only the verdict and what diverged, under GitHub's limit."""
    template = "summary.md.j2" if summary else "template.md.j2"
    text = _environment("md").get_template(template).render(**view_of(report))
    data = text.encode()
    if summary and len(data) >= SUMMARY_BYTES:
        whole_lines = data[: SUMMARY_BYTES - 100].rpartition(b"\n")[0].decode()
        text = f"{whole_lines}\n\nCut here: the rest is in report.html.\n"
    return text


def annotations(report: Row) -> list[str]:
    """GitHub workflow commands that show each cause at the part's line of the port, and failed tests at their file."""
    view = view_of(report)
    found = []
    for panel in view["failing"]:
        file, _, line = ((panel["place"] or {}).get("port") or "").rpartition(":")
        place = (file, line) if file else (panel["row"]["test"].partition("::")[0], "1")
        found.append((*place, panel["row"]["name"], panel["sentence"]))
    found += [
        (t["nodeid"].partition("::")[0], "1", t["nodeid"], t["reason"] or t["outcome"]) for t in view["failed_tests"]
    ]
    if not found and report["verdict"]["status"] != "PASS":
        found = [("", "", "verdict", report["verdict"]["sentence"])]
    lines = []
    for path, line, name, text in found[:ANNOTATIONS]:
        place = f"file={_property(path)},line={line}," if path else ""
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


def _write_card(folder: Path, report: dict[str, Any] | None) -> int:
    from reports.card import Refused, card, write_card

    try:
        print(f"card: {write_card(folder, card(folder, report))}")
    except (Refused, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reports.build",
        description=__doc__.splitlines()[0],
        epilog="example: python -m reports.build report.json --against earlier/report.json",
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN.json", help="report.json that the suite wrote")
    parser.add_argument("--card", type=Path, metavar="DIR", help="write the model card of a converted folder instead")
    parser.add_argument(
        "--out", type=Path, default=HERE / "out", metavar="DIR", help="folder to write to (default: reports/out)"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--against", type=Path, metavar="OLD.json", help="report.json of an earlier run: adds what changed since"
    )
    earlier.add_argument("--last", type=Path, metavar="OLD.json", help="the same, if that file is there and readable")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="JSON-lines file to enter the run in, once")
    parser.add_argument("--annotations", action="store_true", help="print failures as GitHub annotations too")
    options = parser.parse_args(arguments)
    if options.run is None and options.card is None:
        parser.error("give the suite's JSON file, or --card with a converted folder")
    try:
        report = load(options.run) if options.run else None
        if options.card:
            return _write_card(options.card, report)
        shown = report
        if earlier := _earlier(options):
            shown = report | {"drift": drift.compare(earlier, report)}
        paths = build(shown, options.out)
        if options.ledger:
            drift.enter(options.ledger, [report])
    except (ReportError, OSError) as error:
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
