"""Compare two runs: regressions, fixes, moved ratios; and keep a ledger of runs."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlx_parity.report.codec import ReportError, plain
from mlx_parity.report.model import Report, load, to_json, write_atomically
from mlx_parity.report.rows import BAD
from mlx_parity.report.sections import Change, Drift, DriftRow, RunName
from mlx_parity.report.words import ratio_text

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
_OUTCOMES = {"passed": "PASS", "failed": "FAIL", "error": "ERROR", "skipped": "SKIP"}
_FATE = {"caught": "PASS", "SURVIVED": "FAIL", "equivalent": "SKIP"}


def compare(before: Report, after: Report) -> Drift:
    """What changed between two reports.

    Regressions: a new failure; a row that passed and is now skipped or only measured at reduced precision; a row that
    is gone; a ratio that moved up by more than 2x to above the budget; a fault that survives now; a wider budget; a
    verdict that was PASS.
    """
    old, new = _rows(before), _rows(after)
    found: dict[str, list[Any]] = {key: [] for key in ("regressions", *_WORDS)}
    for name in dict.fromkeys([*old, *new]):
        (was, ratio_was), (now, ratio_now) = old.get(name, (None, None)), new.get(name, (None, None))
        row = DriftRow(name, was, now, ratio_was, ratio_now)
        for key in _kinds(row, after.budget.ratio):
            found[key].append(_regression(row) if key == "regressions" else row)
    for norm in ("ratio", "floor"):
        if (now := getattr(after.budget, norm)) > getattr(before.budget, norm):
            found["regressions"].append(f"the budget's {norm} grew to {now:g}")
    if before.verdict.status == "PASS" != after.verdict.status:
        found["regressions"].append(f"the verdict was PASS and is {after.verdict.status}")
    lists = {key: tuple(entries) for key, entries in found.items()}
    return Drift(_name(before), _name(after), changes=tuple(_changes(before, after)), **lists)


def _rows(report: Report) -> dict[str, tuple[str, float | None]]:
    """Status and ratio of everything that has a status, by a name that is unique in a report."""
    rows: dict[str, tuple[str, float | None]] = {}
    for row in report.rows:
        kind = "" if row.kind == "chained" else f" ({row.kind})"
        rows[f"{row.name}{kind} [{row.case}]"] = (row.status, row.ratio)
    rows |= {f"test {test.nodeid}": (_OUTCOMES[test.outcome], None) for test in report.tests}
    rows |= {f"liveness {row.case} {row.tensor}": (row.status, None) for row in report.liveness}
    faults = report.faults.rows if report.faults else ()
    return rows | {f"fault {row.name} caught": (_FATE[row.state], None) for row in faults}


def _kinds(row: DriftRow, budget: float) -> Iterable[str]:
    """The lists that a row belongs to."""
    before, after = row.before, row.after
    if after is None:
        return ("lost",) if before in BAD | {"SKIP"} else ("lost", "regressions")
    if before is None:
        return ("gained", "new_failures", "regressions") if after in BAD else ("gained",)
    found = []
    if after in BAD and before not in BAD:
        found += ["new_failures", "regressions"]
    elif before == "PASS" != after and after not in BAD:
        found += ["weakened", "regressions"]
    elif before in BAD and after not in BAD:
        found += ["fixed"]
    old, new = row.ratio_before, row.ratio_after
    if old is not None and new is not None and max(old, new) > MOVED * min(old, new):
        found += ["moved"]
        if new > max(old, budget) and "regressions" not in found:
            found += ["regressions"]
    return found


def _regression(row: DriftRow) -> str:
    if row.after is None:
        return f"{row.name}: was {row.before}, is gone"
    if row.before == row.after:
        return f"{row.name}: {ratio_text(row.ratio_before)} to {ratio_text(row.ratio_after)}"
    ratio = "" if row.ratio_after is None else f" at {ratio_text(row.ratio_after)}"
    return f"{row.name}: {row.before or 'not there'} to {row.after}{ratio}"


def _changes(before: Report, after: Report) -> Iterable[Change]:
    """Differences of the surroundings: versions, device, arithmetic, dtype, weights, budget."""
    old, new = _surroundings(before), _surroundings(after)
    for what in dict.fromkeys([*old, *new]):
        if old.get(what) != new.get(what):
            yield Change(what, old.get(what), new.get(what))


def _surroundings(report: Report) -> dict[str, str]:
    about = report.provenance
    found = {"arithmetic of the reference": about.precision.reference.regime}
    found |= {"arithmetic of the port": about.precision.port.regime, "device": about.device, "dtype": about.dtype}
    found |= {f"{name} version": version for name, version in about.versions.items()}
    found |= {k: str(getattr(about, k)) for k in ("adapter", "original", "revision", "seed", "os", "machine")}
    found |= {"MLX_ENABLE_TF32": str(about.precision.tf32_flag)}
    found |= {f"budget {norm}": f"{getattr(report.budget, norm):g}" for norm in ("ratio", "floor")}
    found |= {f"weights {w.file}": w.sha256 for w in about.weights}
    return found | {"commit": about.commit + (" with local changes" if about.dirty else "")}


def _name(report: Report) -> RunName:
    return RunName(report.provenance.commit, report.provenance.started, report.verdict.status)


def table(drift: Drift) -> str:
    """The comparison as plain text."""
    lines = [
        f"{side:<6} {run.started}  commit {run.commit[:12]}  {run.status}"
        for side, run in (("before", drift.before), ("after", drift.after))
    ]
    if drift.changes:
        lines += ["", "Surroundings", *(f"  {c.what}: {c.before} -> {c.after}" for c in drift.changes)]
    for key, words in _WORDS.items():
        if found := getattr(drift, key):
            lines += ["", f"{words} ({len(found)})", *(f"  {_line(row)}" for row in found[:SHOWN]), *_rest(found)]
    n = len(drift.regressions)
    lines += ["", f"{n} regression{'s' * (n != 1)}" + (":" if n else ".")]
    lines += [f"  {_one_line(text)}" for text in drift.regressions[:SHOWN]]
    return "\n".join([*lines, *_rest(drift.regressions)])


def _rest(entries: Sequence[Any]) -> list[str]:
    return [f"  and {len(entries) - SHOWN} more: --json FILE lists all"] if len(entries) > SHOWN else []


def _line(row: DriftRow) -> str:
    states = f"{row.before or '-':>7} -> {row.after or '-':<7}"
    ratios = ["-" if r is None else ratio_text(r) for r in (row.ratio_before, row.ratio_after)]
    return f"{states} {ratios[0]:>9} -> {ratios[1]:<9} {_one_line(row.name)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def ledger_line(report: Report) -> dict[str, Any]:
    """One run in one line; `id` is the hash of the whole report, so that a run is entered once."""
    about, verdict = plain(report.provenance), plain(report.verdict)
    return {
        "id": hashlib.sha256(to_json(report).encode()).hexdigest()[:16],
        **{k: about[k] for k in ("started", "commit", "dirty", "adapter", "device", "dtype", "duration_s", "versions")},
        **{side: about["precision"][side]["regime"] for side in ("reference", "port")},
        **{k: verdict[k] for k in ("status", "counts", "worst", "first_over_budget", "fault_score")},
    }


def enter(ledger: str | Path, reports: Iterable[Report]) -> int:
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


def main(arguments: list[str] | None = None, prog: str = "python -m mlx_parity.report.drift") -> int:
    """Compare two files: 0 without a regression, 1 with one or when a file cannot be read, 2 for a usage error."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare two runs of the suite: what broke, what was mended, which ratios moved.",
        epilog=f"example: {prog} monday/report.json tuesday/report.json",
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
            write_atomically(options.json, json.dumps(plain(drift), indent=1, allow_nan=False) + "\n")
        if options.ledger:
            enter(options.ledger, (before, after))
    except (ReportError, OSError) as error:
        print(f"drift: {error}", file=sys.stderr)
        return 1
    # A reader that stops early, such as `head`, is no error.
    with contextlib.suppress(BrokenPipeError):
        print(table(drift), flush=True)
    return 1 if drift.regressions else 0


if __name__ == "__main__":
    sys.exit(main())
