"""Two runs of the suite side by side: `python -m reports.drift BEFORE.json AFTER.json [--ledger F] [--json F]`.

Exit 0 without a regression, 1 with one or when a file cannot be read, 2 for a usage error.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reports.model import ReportError, load, write_atomically
from reports.words import BAD, Row, ratio_text

MOVED = 2.0
SHOWN = 20  # rows of a list in the table; the JSON file has all
_WORDS = {
    "new_failures": "New failures",
    "weakened": "No longer verified",
    "lost": "Lost",
    "fixed": "Fixed",
    "moved": f"Ratio moved by more than {MOVED:g}x",
    "gained": "Gained",
}
_OUTCOMES = {"passed": "PASS", "failed": "FAIL", "error": "ERROR", "skipped": "SKIP", "xfailed": "XFAIL"}


def compare(before: Row, after: Row) -> dict[str, Any]:
    """What changed between two valid reports, as the schema's `drift` section.

    Regressions: a new failure; a row that passed and is now skipped, excused or only measured at reduced precision; a
    row that is gone; a ratio that moved up by more than 2x to above the budget; a fault that survives now; a wider
    budget; a verdict that was PASS.
    """
    old, new = _rows(before), _rows(after)
    found: dict[str, Any] = {"before": _name(before), "after": _name(after), "regressions": []}
    found |= {key: [] for key in _WORDS}
    for name in [*old, *(n for n in new if n not in old)]:
        row = _pair(name, old.get(name), new.get(name))
        for key in _kinds(row, after["budget"]["ratio"]):
            if key == "regression":
                found["regressions"].append(_regression(row))
            else:
                found[key].append(row)
    found["changes"] = list(_changes(before, after))
    for norm in ("ratio", "floor"):
        if after["budget"][norm] > before["budget"][norm]:
            found["regressions"].append(f"the budget's {norm} grew to {after['budget'][norm]:g}")
    shares = [_exercised(report) for report in (before, after)]
    if shares[1] < shares[0]:
        found["regressions"].append(f"weights exercised: {shares[0]:.1%} before, {shares[1]:.1%} now")
    if before["verdict"]["status"] == "PASS" != after["verdict"]["status"]:
        found["regressions"].append(f"the verdict was PASS and is {after['verdict']['status']}")
    return found


def _rows(report: Row) -> dict[str, tuple[str, float | None]]:
    """Status and ratio of everything that has a status, by a name that is unique in a report."""
    rows = {}
    for row in report["checkpoints"]:
        kind = "" if row["kind"] == "chained" else f" ({row['kind']})"
        rows[f"{row['name']}{kind} [{row['case']}]"] = (row["status"], row["ratio"])
    for test in report["tests"]:
        rows[f"test {test['nodeid']}"] = (_OUTCOMES.get(test["outcome"], "PASS"), None)
    for row in report.get("liveness") or ():
        rows[f"liveness {row['case']} {row['tensor']}"] = (row["status"], None)
    for row in (report.get("faults") or {"rows": ()})["rows"]:
        status = "SKIP" if row.get("equivalent") else "PASS" if row["caught"] else "FAIL"
        rows[f"fault {row['name']} caught"] = (status, None)
    return rows


def _pair(name: str, old: tuple[str, float | None] | None, new: tuple[str, float | None] | None) -> dict[str, Any]:
    (before, ratio_before), (after, ratio_after) = old or (None, None), new or (None, None)
    return {
        "name": name,
        "before": before,
        "after": after,
        "ratio_before": ratio_before,
        "ratio_after": ratio_after,
    }


def _kinds(row: Row, budget: float) -> Iterable[str]:
    """The lists a row belongs to, and `regression` when it is one."""
    before, after = row["before"], row["after"]
    if after is None:
        return ("lost",) if before in BAD | {"SKIP"} else ("lost", "regression")
    if before is None:
        return ("gained", "new_failures", "regression") if after in BAD else ("gained",)
    found = []
    if after in BAD and before not in BAD:
        found += ["new_failures", "regression"]
    elif before == "PASS" != after and after not in BAD:
        found += ["weakened", "regression"]
    elif before in BAD and after not in BAD:
        found += ["fixed"]
    old, new = row["ratio_before"], row["ratio_after"]
    if old is not None and new is not None and max(old, new) > MOVED * min(old, new):
        found += ["moved"]
        if new > max(old, budget) and "regression" not in found:
            found += ["regression"]
    return found


def _regression(row: Row) -> str:
    if row["after"] is None:
        return f"{row['name']}: was {row['before']}, is gone"
    if row["before"] == row["after"]:
        return f"{row['name']}: {ratio_text(row['ratio_before'])} to {ratio_text(row['ratio_after'])}"
    ratio = "" if row["ratio_after"] is None else f" at {ratio_text(row['ratio_after'])}"
    return f"{row['name']}: {row['before'] or 'not there'} to {row['after']}{ratio}"


def _changes(before: Row, after: Row) -> Iterable[dict[str, str | None]]:
    """Differences of the surroundings: versions, device, arithmetic, dtype, weights, budget."""
    old, new = _surroundings(before), _surroundings(after)
    for what in [*old, *(k for k in new if k not in old)]:
        if old.get(what) != new.get(what):
            yield {"what": what, "before": old.get(what), "after": new.get(what)}


def _surroundings(report: Row) -> dict[str, str]:
    about = report["provenance"]
    found = {f"arithmetic of the {side}": about["precision"][side]["regime"] for side in ("reference", "port")}
    found |= {"device": about["device"], "dtype": about["dtype"]}
    found |= {f"{name} version": version for name, version in about["versions"].items()}
    found |= {k: str(about[k]) for k in ("adapter", "original", "revision", "seed", "os", "machine")}
    found |= {"MLX_ENABLE_TF32": str(about["precision"]["tf32_flag"])}
    found |= {f"budget {k}": f"{v:g}" for k, v in report["budget"].items()}
    found |= {f"weights {w['file']}": w["sha256"] for w in about["weights"]}
    return found | {"commit": about["commit"] + (" with local changes" if about["dirty"] else "")}


def _exercised(report: Row) -> float:
    cover = report["verdict"]["weight_coverage"]
    return cover["covered"] / max(cover["total"], 1) if cover else 0.0


def _name(report: Row) -> dict[str, str]:
    about = report["provenance"]
    return {"commit": about["commit"], "started": about["started"], "status": report["verdict"]["status"]}


def table(drift: Row) -> str:
    """The comparison as plain text."""
    lines = [
        f"{side:<6} {drift[side]['started']}  commit {drift[side]['commit'][:12]}  {drift[side]['status']}"
        for side in ("before", "after")
    ]
    if drift["changes"]:
        lines += ["", "Surroundings"]
        lines += [f"  {c['what']}: {c['before']} -> {c['after']}" for c in drift["changes"]]
    for key, words in _WORDS.items():
        if drift[key]:
            lines += ["", f"{words} ({len(drift[key])})"]
            lines += [f"  {_line(row)}" for row in drift[key][:SHOWN]]
            lines += _rest(drift[key])
    n = len(drift["regressions"])
    lines += ["", f"{n} regression{'s' * (n != 1)}" + (":" if n else ".")]
    lines += [f"  {_one_line(text)}" for text in drift["regressions"][:SHOWN]]
    return "\n".join(lines + _rest(drift["regressions"]))


def _rest(entries: Sequence[Any]) -> list[str]:
    return [f"  and {len(entries) - SHOWN} more: --json FILE lists all"] if len(entries) > SHOWN else []


def _line(row: Row) -> str:
    states = f"{row['before'] or '-':>7} -> {row['after'] or '-':<7}"
    ratios = ["-" if r is None else ratio_text(r) for r in (row["ratio_before"], row["ratio_after"])]
    return f"{states} {ratios[0]:>9} -> {ratios[1]:<9} {_one_line(row['name'])}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def ledger_line(report: Row) -> dict[str, Any]:
    """One run in one line; `id` is the hash of the whole report, so that a run is entered once."""
    text = json.dumps(report, sort_keys=True, allow_nan=False)
    about, verdict = report["provenance"], report["verdict"]
    return {
        "id": hashlib.sha256(text.encode()).hexdigest()[:16],
        **{k: about[k] for k in ("started", "commit", "dirty", "adapter", "device", "dtype", "duration_s", "versions")},
        **{side: about["precision"][side]["regime"] for side in ("reference", "port")},
        **{k: verdict[k] for k in ("status", "counts", "worst", "first_over_budget", "fault_score")},
    }


def enter(ledger: str | Path, reports: Iterable[Row]) -> int:
    """Append the runs that the ledger does not hold yet; returns how many.

    Raises:
        ReportError: the ledger is there but is no JSON-lines file.
    """
    ledger = Path(ledger)
    try:
        text = ledger.read_text("utf-8") if ledger.exists() else ""
        known = {json.loads(line)["id"] for line in text.splitlines() if line.strip()}
    except OSError as error:
        raise ReportError(f"{ledger}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise ReportError(f"{ledger}: is no ledger of this command; name another file") from None
    lines = {line["id"]: line for line in map(ledger_line, reports)}
    new = [line for name, line in lines.items() if name not in known]
    if new:
        text += "" if not text or text.endswith("\n") else "\n"
        write_atomically(ledger, text + "".join(json.dumps(line) + "\n" for line in new))
    return len(new)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reports.drift",
        description="Compare two runs of the suite: what broke, what was mended, which ratios moved.",
        epilog="example: python -m reports.drift monday/report.json tuesday/report.json",
    )
    parser.add_argument("before", type=Path, metavar="BEFORE.json", help="report.json of the older run")
    parser.add_argument("after", type=Path, metavar="AFTER.json", help="report.json of the newer run")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="JSON-lines file to enter both runs in, once each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison here as well")
    options = parser.parse_args(arguments)
    try:
        before, after = load(options.before), load(options.after)
        drift = compare(before, after)
        if options.json:
            write_atomically(options.json, json.dumps(drift, indent=1, allow_nan=False) + "\n")
        if options.ledger:
            enter(options.ledger, (before, after))
    except (ReportError, OSError) as error:
        print(f"drift: {error}", file=sys.stderr)
        return 1
    # A reader that stops early, such as `head`, is no error.
    with contextlib.suppress(BrokenPipeError):
        print(table(drift), flush=True)
    return 1 if drift["regressions"] else 0


if __name__ == "__main__":
    sys.exit(main())
