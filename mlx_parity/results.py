"""Write the results of a run to a folder: a summary to paste, commands to repeat it, the page, recorded cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_parity.compare import BUDGET, FLOOR
from mlx_parity.comparison import PACKAGES, WHOLE, nested, table_line
from mlx_parity.record import record
from mlx_parity.report import data
from mlx_parity.report.model import Report, to_json, write_atomically
from mlx_parity.report.page import render_html
from mlx_parity.report.words import Wording, markdown, ratio_text
from mlx_parity.run import Judged, Outcome, Proof
from mlx_parity.score import Score
from mlx_parity.shipped import VARIABLE, Shipped
from mlx_parity.sides import regime
from mlx_parity.sides.mlx import MlxSide
from mlx_parity.sides.pytorch import TorchSide
from mlx_parity.source import place_of

FRAMEWORKS = ("torch.", "mlx.")
SUMMARY_LINES, TABLE_ROWS = 60, 5  # lines of the summary at most, rows of a part's table in it


@dataclass(frozen=True)
class About:
    """How the run was made.

    Args:
        program: the subject's file.
        command: repeats the run, without `--only`.
        started: ISO 8601, with a zone.
        seconds: it took.
    """

    program: Path
    command: str
    seed: int
    started: str
    seconds: float


def write_results(outcome: Outcome, about: About, out: Path, shipped: Shipped | None = None) -> Report:
    """Write report.json, report.html, summary.md, reproduce.md and cases/; score.json and shipped.json where measured.

    Raises:
        OSError: the folder cannot be written.
    """
    report = report_of(outcome, about)
    cases = record(outcome, out / "cases")
    texts = {
        "report.json": to_json(report),
        "report.html": render_html(report, Wording(outcome.subject.name)),
        "summary.md": summary(outcome, about.seed, shipped),
        "reproduce.md": reproduce(outcome, about, cases),
    }
    if outcome.scores:
        texts["score.json"] = (
            json.dumps({name: _score(score) for name, score in outcome.scores.items()}, indent=1) + "\n"
        )
    if shipped:
        texts["shipped.json"] = json.dumps({"status": shipped.status} | asdict(shipped), indent=1) + "\n"
    for name, text in texts.items():
        write_atomically(out / name, text)
    return report


def verdict(outcome: Outcome) -> str:
    """One sentence."""
    good = sum(judged.comparison.passed for judged in outcome.parts.values())
    worst = max(judged.comparison.worst for judged in outcome.parts.values())
    said = [f"{good} of {len(outcome.parts)} parts conform, worst {ratio_text(worst, BUDGET)} of {BUDGET:g}x"]
    if outcome.proofs:
        proved = sum(bool(proof.parts) for proof in outcome.proofs)
        said.append(f"{proved} of {len(outcome.proofs)} findings proved by mending it for one run")
    if outcome.unexplained:
        said.append(f"no finding explains {', '.join(outcome.unexplained)}")
    if outcome.scores:
        caught, total = (sum(getattr(s, what) for s in outcome.scores.values()) for what in ("caught", "total"))
        said.append(f"{caught} of {total} generic faults caught")
    return f"{'PASS' if outcome.conforms else 'FAIL'}: {outcome.subject.name}: {'; '.join(said)}"


def versions(outcome: Outcome) -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    return regime.versions(tuple(dict.fromkeys((*PACKAGES, *outcome.subject.packages))))


def summary(outcome: Outcome, seed: int, shipped: Shipped | None = None) -> str:
    """Markdown of at most SUMMARY_LINES lines: the verdict, the versions, a row a part, what diverged and why."""
    lines = [f"**{markdown(verdict(outcome))}**", ""]
    lines += [f"Against {markdown(outcome.subject.original)}; seed {seed}; {_listed(versions(outcome))}.", ""]
    lines += ["| part | status | outputs within budget | worst | generic faults caught | reached by none |"]
    lines += ["|---|---|---:|---:|---:|---|", *(_part_line(j, outcome.scores) for j in outcome.parts.values())]
    lines += ["", *(_shipped_lines(shipped) if shipped else ())]
    for proof in outcome.proofs:
        lines += [*_finding_lines(proof), ""]
    broken = {name: judged for name, judged in outcome.parts.items() if not judged.comparison.passed}
    if broken:
        lines += ["| part: module | status | ratio | |", "|---|---|---:|---|"]
    for name, judged in broken.items():
        blamed = judged.comparison.blamed
        lines += [table_line(row, f"{markdown(name)}: ") for row in blamed[:TABLE_ROWS]]
    if len(lines) > SUMMARY_LINES:
        lines = [*lines[: SUMMARY_LINES - 2], "", "Cut here; the rest is in report.html."]
    return "\n".join(lines).rstrip() + "\n"


def _part_line(judged: Judged, scores: Mapping[str, Score]) -> str:
    rows, name = judged.comparison.rows, judged.part.name
    good = sum(row.reading.status == "PASS" for row in rows)
    score = scores.get(name)
    faults = ["", ""] if score is None else [f"{score.caught} of {score.total}", markdown(_brief(score.unreached))]
    status = "PASS" if judged.comparison.passed else "FAIL"
    worst = ratio_text(judged.comparison.worst, BUDGET, padded=True)
    return f"| {markdown(name)} | {status} | {good} of {len(rows)} | {worst} | {' | '.join(faults)} |"


def _shipped_lines(found: Shipped) -> Iterator[str]:
    yield f"| as shipped: without {VARIABLE}=0, findings mended | status | outputs within budget | worst |"
    yield "|---|---|---:|---:|"
    measured = f"a {found.product} errs by {found.error:.1e}" if found.error else "no product could be measured"
    name = f"MLX on {markdown(found.device)} computes in {found.regime}: {measured}"
    worst = ratio_text(found.worst, BUDGET, padded=True)
    yield f"| {name} | {found.status} | {found.good} of {found.outputs} | {worst} |"
    yield ""


def _brief(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _finding_lines(proof: Proof) -> Iterator[str]:
    finding = proof.finding
    yield f"**{markdown(finding.title)}.** {markdown(finding.notice)}"
    yield f"In `{_code(finding.place)}`, {markdown(finding.where.__qualname__)}: `{_code(finding.line)}`"
    yield f"should be `{_code(finding.fix)}`. {markdown(_proof(proof))}"


def _proof(proof: Proof) -> str:
    if not proof.parts:
        return "NOT PROVED: no part diverges that passes with it mended."
    said = []
    for name in proof.parts:
        before, after = proof.before[name].comparison, proof.after[name].comparison
        ratios = f"{ratio_text(before.worst, BUDGET)} before, {ratio_text(after.worst, BUDGET)} mended"
        said.append(f"{name} ({ratios}, first wrong {before.first})")
    return f"Proved by mending it for one run: {'; '.join(said)}."


def reproduce(outcome: Outcome, about: About, cases: int) -> str:
    """Markdown: the commands, the seed, the versions, the pins, and how to read the recorded cases."""
    pins = about.program.with_suffix(".requirements.txt")
    digest = hashlib.sha256(about.program.read_bytes()).hexdigest()
    lines = ["# To repeat this run", "", "```sh", about.command]
    lines += [f"{about.command} --only '{_code(name)}'" for name in outcome.parts] * (len(outcome.parts) > 1)
    lines += [
        "```",
        "",
        f"Seed {about.seed}: weights and inputs follow from it. {about.program.name} has sha256 {digest}.",
    ]
    lines += ["", "| package | version |", "|---|---|"]
    lines += [f"| {name} | {version} |" for name, version in versions(outcome).items()]
    if pins.is_file():
        lines += [
            "",
            f"{pins.name}, installed without dependencies:",
            "",
            "```",
            pins.read_text("utf-8").strip(),
            "```",
        ]
    lines += ["", f"Machine: {_listed(regime.machine())}.", f"Rule: a ratio of at most {BUDGET:g}, floor {FLOOR:.3e}."]
    if cases:
        lines += [
            "",
            f"cases/ has {cases} modules that diverge, each with its weights (`w.`), its inputs (`in.`) and what",
        ]
        lines += [
            "PyTorch returns in float32 (`out.`) and float64 (`out64.`), as safetensors; manifest.json describes them."
        ]
    return "\n".join(lines) + "\n"


def report_of(outcome: Outcome, about: About) -> Report:
    """The run as a report: a row an output, a stage and a component a part."""
    rows: list[data.Row] = []
    components: list[data.Component] = []
    modules: dict[str, data.Module] = {}
    for name, judged in outcome.parts.items():
        command = f"{about.command} --only '{name}'"
        found = [row.entry(command, command) for row in judged.comparison.entries(name, name)]
        rows += found
        modules |= _modules(judged)
        bad = [row for row in found if row.status != "PASS"]
        issues = [f"{p.finding.title}: {p.finding.notice} {p.finding.place}. {_proof(p)}" for p in outcome.proofs]
        known = [issue for issue, proof in zip(issues, outcome.proofs, strict=True) if name in proof.parts]
        components.append(
            data.Component(
                component=name,
                status="FAIL" if bad else "PASS",
                checked=judged.comparison.verdict(),
                evidence=tuple(dict.fromkeys(row.name for row in found)),
                issues=tuple(known or [f"{row.name}: {row.message}" for row in bad[:TABLE_ROWS]]),
            )
        )
    provenance = regime.provenance(
        Path.cwd(),
        regime.arithmetic(),
        versions(outcome),
        original=outcome.subject.original,
        weights=(),
        revision=None,
        dtype="float32",
        seed=about.seed,
        started=about.started,
        duration_s=round(about.seconds, 1),
        command=about.command,
        adapter=outcome.subject.name,
    )
    notes = [data.Gap(note, name) for name, j in outcome.parts.items() for note in j.comparison.notes()]
    return Report(
        provenance=provenance,
        stages=tuple(outcome.parts),
        rows=tuple(rows),
        components=tuple(components),
        modules=modules,
        not_checked=tuple(notes),
    )


def _modules(judged: Judged) -> dict[str, data.Module]:
    """Where each module is written on both sides, and which others it contains."""
    part, comparer = judged.part, judged.comparer
    port = MlxSide(part.mlx_model)
    matched, found = comparer.matched(port), {}
    for module, inside in nested(f"{part.name}/{row.module}" for row in judged.comparison.rows).items():
        name = module.removeprefix(f"{part.name}/").removeprefix(WHOLE)
        own = _place(port, matched[name]) if name in matched else None
        found[module] = data.Module(_place(comparer.side, name), own, inside)
    return found


def _place(side: MlxSide | TorchSide, name: str) -> str | None:
    """Source of a module; for a framework's own layer, that of the nearest surrounding module that is not one."""
    while name and (name not in side.names or side.kind(name).__module__.startswith(FRAMEWORKS)):
        name = name.rpartition(".")[0]
    return place_of(side.kind(name))


def _score(score: Score) -> dict[str, Any]:
    return {
        "caught": score.caught,
        "total": score.total,
        "right": score.right,
        "unreached": score.unreached,
        "survived": [f"{v.kind}: {v.module or WHOLE}" for v in score.verdicts if v.status == "SURVIVED"],
    }


def _listed(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _code(text: str) -> str:
    """For a code span or block."""
    return " ".join(text.split()).replace("`", "'")
