"""A conversion: read and convert tensor by tensor, write to a temporary folder, audit, compare, rename.

`convert_folder` is the function to call from Python; the command is run.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convert.audit import Audit, port_shapes, prove
from convert.bake import Bake
from convert.checkpoint import sha256
from convert.hub import Source, identity, names_in, needed_files
from convert.layout import describe_files, require_checkpoint
from convert.mapping import Step, plan
from convert.names import MAY_LACK
from convert.official import TOKENIZER_FOLDER, text_config, with_front_end
from convert.onnx_weights import OnnxWeights
from convert.partial import MARK, beside, refuse_existing
from convert.parts import Weights, official_parts
from convert.quantize import FLOAT32, Precision
from convert.space import output_bytes, output_layout, require_space
from port.config import CosyVoice3Config
from port.files.errors import Refused
from port.files.storage import MAX_SHARD_BYTES, Writer, read_headers
from port.files.weights import check, heads, save_config
from port.frontend.tokenizer import CosyVoice3Tokenizer

AUDIT_FILE = "audit.json"
PASSED = ("PASS", "SKIP", "REDUCED")

Row = Mapping[str, Any]
Compare = Callable[[Path, Path], Sequence[Row]]


def convert_folder(
    source: Source,
    out: Path,
    compare: Compare | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    precision: Precision = FLOAT32,
    bake_timesteps: bool = False,
) -> tuple[Audit, Sequence[Row]]:
    """Convert, audit and compare; `out` appears complete or not at all.

    Args:
        source: see `find_source`.
        out: must not exist; its parents are made.
        compare: called with the source folder and the written folder, before the rename. Returns a mapping for each
            comparison, with at least `checkpoint` and `status`. None: the folder is written and audited, and its
            audit says that nothing was compared.
        max_shard_bytes: most bytes of data in one weights file.
        precision: dtype and quantization of what is written.
        bake_timesteps: write tables for the flow's timesteps in place of the weights behind them, see bake.py.

    Raises:
        Misused: `out` exists, or quantization that no layer can take.
        Refused: a file or value that cannot be converted, or a comparison that failed.

    Returns:
        the audit, and the rows of the comparison.
    """
    refuse_existing(out)
    names = names_in(source.folder)
    require_checkpoint(source.folder, needed_files(source.llm, names))
    config = text_config(source.folder)
    tokenizer = CosyVoice3Tokenizer.from_folder(source.folder / TOKENIZER_FOLDER)
    if tokenizer.end_of_prompt != config.llm.end_of_prompt or len(tokenizer) > config.llm.qwen2.vocab_size:
        raise Refused(
            f"{source.folder / TOKENIZER_FOLDER}: a vocabulary of {len(tokenizer)} does not fit the language model's "
            f"{config.llm.qwen2.vocab_size} rows"
        )
    parts = official_parts(source.llm, names)
    opened = {part.name: part.read(source.folder / part.file) for part in parts}
    sizes = {name: held.config for name, held in opened.items() if isinstance(held, OnnxWeights)}
    config = with_front_end(config, sizes["speech_tokenizer"], sizes["speaker"])
    plans = {part: plan(part, held) for part, held in opened.items()}
    parameters = port_shapes(config)
    bake = Bake(config) if bake_timesteps else None
    layout = output_layout(parameters, precision, bake)
    shapes = {part: held.shapes for part, held in opened.items()}
    audit = prove(shapes, plans, parameters, MAY_LACK)
    baked = (
        {"timesteps": len(bake.times), "parameters": len(bake.replaced), "tensors": len(bake.tensors)} if bake else {}
    )
    audit = replace(audit, files=describe_files(source, parts, opened), baked=baked)
    require_space({"to write": (out, output_bytes(layout.values()))})
    with beside(out) as partial:
        with Writer(partial, layout, max_shard_bytes, heads(config)) as writer:
            _write(writer, opened, plans, config, precision, bake)
        check(read_headers(partial), {name: info.shape for name, info in layout.items()}, partial)
        tokenizer.save(partial)
        hashes = {file.name: file.sha256 for file in audit.files.values()}
        name, revision = identity(source, hashes)
        provenance = {"source": name, "revision": revision, "sha256": hashes}
        kept = {name: shape for name, shape in parameters.items() if name in layout}
        save_config(partial, config, provenance, precision.quantization(kept))
        rows = _compared(compare, source.folder, partial) if compare else []
        written = {path.name: sha256(path) for path in sorted(partial.iterdir()) if path.name != MARK}
        report = {**audit.to_dict(), "verdict": audit.verdict, "parity": [dict(row) for row in rows]}
        report["written"] = written
        (partial / AUDIT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return audit, rows


def _write(
    writer: Writer,
    opened: dict[str, Weights],
    plans: Mapping[str, list[Step]],
    config: CosyVoice3Config,
    precision: Precision,
    bake: Bake | None,
) -> None:
    total = sum(len(steps) for steps in plans.values())
    with tqdm(total=total, desc="convert", unit="tensor", file=sys.stderr, disable=None) as progress:
        for part, steps in plans.items():
            held = opened.pop(part)  # release the memory of a finished file
            for step in bake.order(steps) if bake else steps:
                result = step.apply(held, config)
                if step.target is not None and result is not None:
                    takes = bake if bake and step.target in bake.replaced else precision
                    for name, array in takes.stored(step.target, result):
                        writer.write(name, array)
                progress.update()


def _compared(compare: Compare, source: Path, folder: Path) -> Sequence[Row]:
    """The rows of a comparison that passed."""
    try:
        rows = compare(source, folder)
    except Exception as error:  # whatever error stops the comparison, unverified files must not remain
        raise Refused(f"parity: not comparable ({type(error).__name__}: {error})") from error
    failed = [row for row in rows if row["status"] not in PASSED]
    if failed:
        first = failed[0]
        said = f" ({first['message']})" if first.get("message") else ""
        raise Refused(f"parity: {first['name']} is {first['status']}{said}; {len(failed)} of {len(rows)} fail")
    if not any(row["status"] == "PASS" for row in rows):
        raise Refused("parity: nothing was compared")
    return rows
