"""The model card of a converted folder: its origin, how it was verified, and how to use it.

All facts come from the folder's JSON files and, if there is one, from the suite's report.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_parity.report.model import Report
from mlx_parity.report.rows import by_stage
from mlx_parity.report.words import ratio_text
from port.files.disk import beside, read_json
from port.files.errors import Refused, printable
from port.files.hub import COMMIT, ID
from reports.cosyvoice3 import WORDING

Row = Mapping[str, Any]  # of a JSON file of the folder
CARD_FILE = "README.md"
# The last line of a card, with the hash of everything before it: only an unchanged card may be replaced.
SIGNED = "<!-- made by convert/publish.py: {} -->"
OFFICIAL = "FunAudioLLM/Fun-CosyVoice3-0.5B-2512"
PROJECT_TAGS = ("mlx", "cosyvoice3", "text-to-speech", "voice-cloning")
DISCLAIMER = (
    "The authors of the weights tag them Apache-2.0. Their card adds that the content is for academic purposes only "
    "and intended to demonstrate technical capabilities, and a question about commercial use stands there unanswered: "
    f"read https://huggingface.co/{OFFICIAL} before you use them. Do not clone a voice without its owner's consent."
)
MAX_VALUE = 300  # longest value, in characters
OTHER_TERMS = "The weights are under the terms of their source. Do not clone a voice without its owner's consent."


def card(
    folder: Path,
    report: Report | None = None,
    repo: str | None = None,
    base_model: str | None = None,
    licence: str | None = None,
) -> str:
    """The card as Markdown with its YAML head.

    Args:
        folder: as convert/run.py writes it, with config.json and audit.json, perhaps quality.json.
        report: a run of the suite on this folder.
        repo: hub id that the folder will have, for the examples.
        base_model, licence: for the head, if the folder does not say.

    Raises:
        Refused: a file is missing or damaged.
    """
    config, audit = read_json(folder / "config.json"), read_json(folder / "audit.json")
    quality = read_json(folder / "quality.json") if (folder / "quality.json").exists() else None
    origin = config.get("provenance", {})
    try:
        parts = [
            _head(origin, config, base_model, licence),
            f"# {_plain((repo or folder.resolve().name).rpartition('/')[2])}",
            f"{_origin(origin)}, converted to MLX.{_precision(config)}",
            "## Use\n\n" + _usage(repo or "mlx-model"),
            "## Verification\n\n" + "\n\n".join(_verification(audit, report)),
            *(["## Quality\n\n" + _quality(quality)] if quality is not None else []),
            "## Source files\n\n" + _table(("file", "bytes", "sha256"), _files(audit)),
            "## Licence\n\n" + (DISCLAIMER if origin.get("source") == OFFICIAL else OTHER_TERMS),
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Refused(f"{folder}: its JSON files lack what a card tells ({error}); convert again") from None
    text = "\n\n".join(parts) + "\n"
    return f"{text}\n{SIGNED.format(_hash(text))}\n"


def write_card(folder: Path, text: str) -> Path:
    """Write a card into the folder, replacing an earlier one.

    Raises:
        Refused: there is a README.md that this command did not write.
    """
    path = folder / CARD_FILE
    if (path.exists() or path.is_symlink()) and not is_card(path):
        raise Refused(f"{path}: was not written by this command; move it away first")
    with beside(path) as file:
        file.write_text(text, "utf-8")
    return path


def is_card(path: Path) -> bool:
    """Whether a file is a card that `card` made and nobody changed."""
    try:
        text, _, signature = path.read_text("utf-8").rstrip("\n").rpartition("\n\n")
    except (OSError, ValueError):
        return False
    return signature == SIGNED.format(_hash(f"{text}\n"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _known_source(origin: Row) -> str | None:
    """The hub id that was converted; None if it is not valid, since config.json may hold anything."""
    source, revision = origin.get("source"), origin.get("revision")
    known = (
        isinstance(source, str) and isinstance(revision, str) and ID.fullmatch(source) and COMMIT.fullmatch(revision)
    )
    return source if known else None


def _head(origin: Row, config: Row, base_model: str | None, licence: str | None) -> str:
    lines = ["library_name: mlx", "pipeline_tag: text-to-speech"]
    if licence or origin.get("source") == OFFICIAL:
        lines.append(f"license: {licence or 'apache-2.0'}")
    if base := base_model or _known_source(origin):
        lines.append(f"base_model: {json.dumps(base)}")
        if "quantization" in config:
            lines.append("base_model_relation: quantized")
    lines += ["tags:", *(f"- {tag}" for tag in PROJECT_TAGS)]
    return "\n".join(["---", *lines, "---"])


def _origin(origin: Row) -> str:
    if source := _known_source(origin):
        return f"[{source}](https://huggingface.co/{source}) at revision `{origin['revision']}`"
    return f"A checkpoint in a folder named {_code(origin['source'])}"


def _precision(config: Row) -> str:
    quantization = config.get("quantization")
    if not quantization:
        return ""
    bits, group_size = int(quantization["bits"]), int(quantization["group_size"])
    own = sum(isinstance(value, dict) for value in quantization.values())
    more = f"; {own} layers have settings of their own" if own else ""
    return f" Quantized: {bits} bits in groups of {group_size}{more}."


def _usage(name: str) -> str:
    return f"""```sh
cosyvoice3-mlx say --model {name} --ref-audio me.wav --ref-text 'What I say in the recording.' \\
  --text 'Good morning.' -o out.wav
```

```python
from cosyvoice3_mlx.cosyvoice3 import CosyVoice3

voice = CosyVoice3.from_pretrained("{name}")
for chunk in voice.inference_zero_shot("Good morning.", "What I say in the recording.", "me.wav"):
    samples = chunk["tts_speech"]  # (1, n) at voice.sample_rate
```"""


def _verification(audit: Row, report: Report | None) -> Iterable[str]:
    yield f"Conversion: {_plain(audit['verdict'])}."
    rows = audit["parity"]
    judged = [row for row in rows if row.get("ratio") is not None and row["status"] == "PASS"]
    worst = max(judged, key=lambda row: row["ratio"], default=None)
    counts = {
        status: sum(row["status"] == status for row in rows) for status in dict.fromkeys(r["status"] for r in rows)
    }
    said = ", ".join(f"{count} {_plain(status)}" for status, count in counts.items())
    at = (
        f"; worst {ratio_text(worst['ratio'])} the reference's own float32 error at {_code(worst['name'])}"
        if worst
        else ""
    )
    yield f"Parity with the PyTorch reference, deep stacks cut to two layers: {said} of {len(rows)} tensors{at}."
    if report:
        yield f"The whole suite: {_plain(report.verdict.sentence)}"
        stages = by_stage(report.rows, report.stages)
        yield _table(
            ("stage", "status", "worst ratio", "passed", "of"),
            [
                (
                    _plain(WORDING.stages.get(stage, stage)),
                    found.status,
                    ratio_text(found.ratio),
                    found.passed,
                    found.total,
                )
                for stage, found in stages.items()
                if found.total
            ],
        )


def _quality(quality: Row) -> str:
    rows = [
        (
            _plain(row["metric"]),
            _number(row["value"]),
            _plain(row["unit"]),
            _number(row["rounding"]),
            _number(row["limit"]),
            _plain(row["status"]),
        )
        for row in quality["metrics"]
    ]
    depth = f", on the first {int(quality['layers'])} layers of each stack" if quality.get("layers") else ""
    return f"{_plain(quality['precision'])} against the float32 original{depth}.\n\n" + _table(
        ("metric", "value", "unit", "by rounding alone", "limit", "status"), rows
    )


def _files(audit: Row) -> list[tuple[Any, ...]]:
    return [(_code(file["name"]), f"{int(file['bytes']):,}", _code(file["sha256"])) for file in audit["files"].values()]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _code(value: object) -> str:
    return "`" + re.sub(r"[`|<>!\s]+", " ", printable(value, MAX_VALUE)) + "`"


def _plain(value: object) -> str:
    """Text without characters that Markdown or HTML would interpret: the hub renders both."""
    return re.sub(r"[`|<>\[\]!&*\\\s]+", " ", printable(value, MAX_VALUE))
