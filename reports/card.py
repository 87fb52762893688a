"""The model card of a converted folder: what it was made from, how that was verified, and how to use it.

Everything in it is read from the folder's own JSON files and, where there is one, from the suite's report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reports.verdict import worst_per_stage
from reports.words import STAGE_NAMES, Row, ratio_text

CARD_FILE = "README.md"
OFFICIAL = "FunAudioLLM/Fun-CosyVoice3-0.5B-2512"
PROJECT_TAGS = ("mlx", "cosyvoice3", "text-to-speech", "voice-cloning")
DISCLAIMER = (
    "The authors of the weights tag them Apache-2.0. Their card adds that the content is for academic purposes only "
    "and intended to demonstrate technical capabilities, and a question about commercial use stands there unanswered: "
    f"read https://huggingface.co/{OFFICIAL} before you use them. Do not clone a voice without its owner's consent."
)
OTHER_TERMS = "The weights are under the terms of their source. Do not clone a voice without its owner's consent."


class CardError(ValueError):
    """A folder of which no card can be written; one line."""


def read_json(path: Path) -> dict[str, Any]:
    """Raises:
    CardError: not there, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror}); give a folder of convert/run.py") from None
    except (ValueError, RecursionError):
        raise CardError(f"{path}: is not JSON") from None
    if not isinstance(content, dict):
        raise CardError(f"{path}: is not a JSON object")
    return content


def card(folder: Path, report: Row | None = None, repo: str | None = None) -> str:
    """The card as Markdown with its YAML head.

    Args:
        folder: as convert/run.py writes it, with config.json and audit.json, perhaps quality.json.
        report: a run of the suite on this folder.
        repo: hub id that the folder will have, for the examples.

    Raises:
        CardError: a file is missing or damaged.
    """
    config, audit = read_json(folder / "config.json"), read_json(folder / "audit.json")
    quality = read_json(folder / "quality.json") if (folder / "quality.json").exists() else None
    origin = config.get("provenance", {})
    try:
        parts = [
            _head(origin, config),
            f"# {(repo or folder.resolve().name).rpartition('/')[2]}",
            f"{_origin(origin)}, converted to MLX.{_precision(config)}",
            "## Use\n\n" + _usage(repo or "mlx-model"),
            "## Verification\n\n" + "\n\n".join(_verification(audit, report)),
            *(["## Quality\n\n" + _quality(quality)] if quality is not None else []),
            "## Source files\n\n" + _table(("file", "bytes", "sha256"), _files(audit)),
            "## Licence\n\n" + (DISCLAIMER if origin.get("source") == OFFICIAL else OTHER_TERMS),
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise CardError(f"{folder}: its JSON files lack what a card tells ({error}); convert again") from None
    return "\n\n".join(parts) + "\n"


def _head(origin: Row, config: Row) -> str:
    lines = ["library_name: mlx", "pipeline_tag: text-to-speech"]
    if origin.get("source") == OFFICIAL:
        lines.append("license: apache-2.0")
    if origin.get("revision"):
        lines.append(f"base_model: {json.dumps(origin['source'])}")
        if "quantization" in config:
            lines.append("base_model_relation: quantized")
    lines += ["tags:", *(f"- {tag}" for tag in PROJECT_TAGS)]
    return "\n".join(["---", *lines, "---"])


def _origin(origin: Row) -> str:
    if origin.get("revision"):
        source = origin["source"]
        return f"[{source}](https://huggingface.co/{source}) at revision `{origin['revision']}`"
    return f"A checkpoint in a folder named {_code(origin['source'])}"


def _precision(config: Row) -> str:
    quantization = config.get("quantization")
    if not quantization:
        return ""
    own = sum(isinstance(value, dict) for value in quantization.values())
    more = f"; {own} layers have settings of their own" if own else ""
    return f" Quantized: {quantization['bits']} bits in groups of {quantization['group_size']}{more}."


def _usage(name: str) -> str:
    return f"""```sh
cosyvoice3-mlx say --model {name} --prompt-wav me.wav \\
  --prompt-text 'You are a helpful assistant.<|endofprompt|>What I say in the recording.' \\
  --text 'Good morning.' -o out.wav
```

```python
from cosyvoice3_mlx.cosyvoice3 import CosyVoice3

voice = CosyVoice3.from_pretrained("{name}")
prompt = "You are a helpful assistant.<|endofprompt|>What I say in the recording."
for chunk in voice.inference_zero_shot("Good morning.", prompt, "me.wav"):
    samples = chunk["tts_speech"]  # (1, n) at voice.sample_rate
```"""


def _verification(audit: Row, report: Row | None) -> Iterable[str]:
    yield f"Conversion: {audit['verdict']}."
    rows = audit["parity"]
    judged = [row for row in rows if row.get("ratio") is not None and row["status"] == "PASS"]
    worst = max(judged, key=lambda row: row["ratio"], default=None)
    counts = {
        status: sum(row["status"] == status for row in rows) for status in dict.fromkeys(r["status"] for r in rows)
    }
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    at = (
        f"; worst {ratio_text(worst['ratio'])} the reference's own float32 error at {_code(worst['checkpoint'])}"
        if worst
        else ""
    )
    yield f"Parity with the PyTorch reference, deep stacks cut to two layers: {said} of {len(rows)} checkpoints{at}."
    if report:
        yield f"The whole suite: {_plain(report['verdict']['sentence'])}"
        found = worst_per_stage(report["checkpoints"])
        yield _table(
            ("stage", "status", "worst ratio", "passed", "of"),
            [
                (STAGE_NAMES[stage], row["status"], ratio_text(row["ratio"]), row["passed"], row["total"])
                for stage, row in found.items()
                if row["total"]
            ],
        )


def _quality(quality: Row) -> str:
    rows = [
        (
            row["metric"],
            _number(row["value"]),
            row["unit"],
            _number(row["rounding"]),
            _number(row["limit"]),
            row["status"],
        )
        for row in quality["metrics"]
    ]
    depth = f", on the first {quality['layers']} layers of each stack" if quality.get("layers") else ""
    return f"{_plain(quality['precision'])} against the float32 original{depth}.\n\n" + _table(
        ("metric", "value", "unit", "by rounding alone", "limit", "status"), rows
    )


def _files(audit: Row) -> list[tuple[Any, ...]]:
    return [(_code(file["name"]), f"{file['bytes']:,}", _code(file["sha256"])) for file in audit["files"].values()]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _code(value: object) -> str:
    return "`" + re.sub(r"[`|\s]+", " ", str(value)) + "`"


def _plain(value: object) -> str:
    return re.sub(r"[`|<>\s]+", " ", str(value))
