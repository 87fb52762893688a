"""The report as data: what the suite uses to build it, to check it, to read it and to write it.

A report is a plain JSON object whose shape is `schema.json`; `consistency.py` adds what a schema cannot say (that a
ratio is the quotient it claims to be, that the verdict follows from the rows). JSON only: it knows neither model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from reports.consistency import contradictions
from reports.verdict import in_pipeline_order, isolated_of, verdict_of, worst_per_stage
from reports.words import BUDGET_RATIO, FLOOR, STAGES, STATUSES, Row, failure_sentence

__all__ = [
    "BUDGET_RATIO",
    "FLOOR",
    "SCHEMA_VERSION",
    "STAGES",
    "STATUSES",
    "ReportError",
    "checkpoint",
    "failure_sentence",
    "faults_section",
    "in_pipeline_order",
    "isolated_of",
    "load",
    "save",
    "to_json",
    "validate",
    "verdict_of",
    "weights_section",
    "worst_per_stage",
    "write_atomically",
]

SCHEMA_VERSION = 1
MAX_DIGITS = 19  # of a whole number


class ReportError(ValueError):
    """A report that cannot be read or that contradicts itself; the message is one line."""


def checkpoint(
    name: str,
    stage: str,
    kind: str,
    module: str,
    case: str,
    status: str,
    *,
    reproduce: str,
    test: str,
    **measured: Any,
) -> dict[str, Any]:
    """One row of `checkpoints`; fields that were not measured become null, `ratio` the larger of the two ratios.

    Raises:
        ReportError: a field the schema does not know.
    """
    fields = ("shape", "dtype", "e_ref_rms", "e_ref_max", "e_port_rms", "e_port_max", "ratio_rms", "ratio_max", "ratio")
    fields += ("reason", "message", "worst", "histogram")
    row = {"name": name, "stage": stage, "kind": kind, "module": module, "case": case, **dict.fromkeys(fields)}
    if unknown := set(measured) - set(fields) - {"worst_positions", "error_map", "nearest_fault"}:
        raise ReportError(f"checkpoint {name}: unknown fields {sorted(unknown)}")
    row |= measured
    if row["ratio"] is None and row["ratio_rms"] is not None and row["ratio_max"] is not None:
        row["ratio"] = max(row["ratio_rms"], row["ratio_max"])
    return row | {"status": status, "reproduce": reproduce, "test": test}


def weights_section(audit: Row) -> dict[str, Any]:
    """The section `weights_audit` from the converter's audit as a dictionary.

    That audit exists only when nothing is unused or missing (it is refused otherwise), hence the two empty lists.
    """
    files = {
        file["name"]: {"tensors": file["tensors"], "elements": file["elements"]}
        | ({"ignored": ", ".join(file["ignored"])} if file["ignored"] else {})
        for file in audit["files"].values()
    }
    return {
        "sources": audit["sources"],
        "consumed": audit["consumed"],
        "dropped": [{"key": key, "reason": reason} for key, reason in audit["dropped"].items()],
        "parameters": audit["parameters"],
        "filled": audit["parameters"],
        "parameters_by_part": dict(audit["parameters_by_part"]),
        "transforms": dict(audit["transforms"]),
        "elements": audit["parameter_elements"],
        "unused": [],
        "missing": [],
        "files": files,
    }


def faults_section(rows: Sequence[Row]) -> dict[str, Any]:
    """The section `faults`; faults proved equivalent are listed but leave the score."""
    counted = [row for row in rows if row["equivalent"] is None]
    return {"score": {"caught": sum(row["caught"] for row in counted), "total": len(counted)}, "rows": list(rows)}


@cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(Path(__file__).with_name("schema.json").read_text("utf-8"))
    return jsonschema.Draft202012Validator(schema)


def validate(report: Any) -> dict[str, Any]:
    """Check a report against the schema and against itself; returns it.

    Raises:
        ReportError: what is wrong and where, in one line.
    """
    errors = sorted(_validator().iter_errors(report), key=lambda error: list(map(str, error.absolute_path)))
    problems = [f"{_path(error)}: {_short(error.message)}" for error in map(_deepest, errors)]
    if not problems:
        problems = contradictions(report)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ReportError("; ".join(problems[:3]) + more)
    return report


def _deepest(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    """Inside `null or object`, the complaint about the object is the useful one."""
    while error.context:
        error = max(error.context, key=lambda e: len(e.absolute_path))
    return error


def _path(error: jsonschema.ValidationError) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path).lstrip(".") or "report"


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 40]} ... {text[-35:]}"


def load(path: str | Path) -> dict[str, Any]:
    """Read and validate a report.

    Raises:
        ReportError: the file is missing, is no strict JSON, or is no valid report.
    """

    def refuse(name: str) -> None:
        raise ReportError(f"{path}: holds {name}, which is no JSON; a value that was not measured must be null")

    def count(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise ReportError(f"{path}: holds a whole number of {len(digits)} digits, which nothing measures")
        return int(digits)

    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe might never end
            raise ReportError(f"{path}: cannot be read (no file, but a folder, a pipe or a device); name a report.json")
        report = json.loads(Path(path).read_text("utf-8"), parse_constant=refuse, parse_int=count)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); run the parity suite first") from None
    except UnicodeDecodeError:
        raise ReportError(f"{path}: is not UTF-8 text; expected a report.json of the parity suite") from None
    except RecursionError:
        raise ReportError(f"{path}: is nested too deeply to be a report") from None
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: is no JSON (line {error.lineno}: {error.msg}); write it again") from None
    try:
        return validate(report)
    except ReportError as error:
        raise ReportError(f"{path}: not a valid report: {error}") from None


def save(report: Row, path: str | Path) -> None:
    """Validate a report and write it as strict JSON, atomically; makes the folder."""
    validate(report)
    write_atomically(Path(path), to_json(report))


def to_json(report: Row) -> str:
    """The text of a report file."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename, so that no half-written file is ever seen; what a killed run left beside goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
