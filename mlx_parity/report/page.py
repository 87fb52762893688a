"""The pages of a report: report.html (one file, no outside links), report.md, and summary.md for a pull request."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mlx_parity.report.data import BUDGET
from mlx_parity.report.model import Report, to_json, write_atomically
from mlx_parity.report.view import view_of
from mlx_parity.report.words import Wording, number_text, precision_text, ratio_text, sci_text, stage_number

TEMPLATES = Path(__file__).with_name("templates")
SUMMARY_BYTES = 1024 * 1024  # what a GitHub step summary takes
ANNOTATIONS = 10  # what GitHub shows of one step


def _environment(kind: str) -> Environment:
    """Both kinds escape by default: HTML by the engine, Markdown by `finalize`."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=kind == "html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=None if kind == "html" else _markdown,
    )
    env.filters |= {
        "ratio": lambda value, budget=BUDGET.ratio: "-" if value is None else ratio_text(value, budget),
        "padded": lambda value, budget=BUDGET.ratio: "-" if value is None else ratio_text(value, budget, padded=True),
        "number": number_text,
        "stage_number": stage_number,
        "precision": precision_text,
        "sci": sci_text,
        "brief": lambda value: "not finite" if value is None else f"{value:.3g}",
        "percent": lambda value: "-" if value is None else f"{value:.1f} %",
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
    """Text escaped for Markdown, also in a table, without tags and links; text marked safe is unchanged."""
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


def render_html(report: Report, wording: Wording) -> str:
    """One self-contained page."""
    static = {kind: Markup((TEMPLATES / f"report.{kind}").read_text("utf-8")) for kind in ("css", "js")}
    return _environment("html").get_template("report.html.j2").render(**view_of(report, wording), **static)


def render_markdown(report: Report, wording: Wording, *, summary: bool = False) -> str:
    """The report as Markdown; as a summary only the verdict and what diverged, under GitHub's limit."""
    template = "summary.md.j2" if summary else "report.md.j2"
    text = _environment("md").get_template(template).render(**view_of(report, wording))
    data = text.encode()
    if summary and len(data) >= SUMMARY_BYTES:
        whole_lines = data[: SUMMARY_BYTES - 100].rpartition(b"\n")[0].decode()
        text = f"{whole_lines}\n\nCut here: the rest is in report.html.\n"
    return text


def annotation_lines(report: Report, wording: Wording) -> list[str]:
    """GitHub workflow commands that show each cause at the part's line of the port, and failed tests at their file."""
    view = view_of(report, wording)
    found = []
    for panel in view["failing"]:
        file, _, line = ((panel.place and panel.place.port) or "").rpartition(":")
        place = (file, line) if file else (panel.row.test.partition("::")[0], "1")
        found.append((*place, panel.row.name, panel.sentence))
    found += [(t.nodeid.partition("::")[0], "1", t.nodeid, t.reason or t.outcome) for t in view["failed_tests"]]
    if not found and report.verdict.status != "PASS":
        found = [("", "", "verdict", report.verdict.sentence)]
    lines = []
    for path, line, name, text in found[:ANNOTATIONS]:
        at = f"file={_property(path)},line={line}," if path else ""
        lines.append(f"::error {at}title={_property(name)}::{_data(text)}")
    left = view["failing_total"] + len(view["failed_tests"]) - len(lines)
    return lines + ([f"::notice::{left} more failures are in report.html"] if left > 0 else [])


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def write_pages(report: Report, out: Path, wording: Wording) -> dict[str, Path]:
    """Write report.html, report.md, summary.md and report.json into a folder, each atomically; returns their paths.

    Raises:
        ReportError: the report is not valid; nothing was written.
    """
    texts = {"report.json": to_json(report), "report.html": render_html(report, wording)}
    texts |= {"report.md": render_markdown(report, wording)}
    texts |= {"summary.md": render_markdown(report, wording, summary=True)}
    for name, text in texts.items():
        write_atomically(out / name, text)
    return {name: out / name for name in texts}
