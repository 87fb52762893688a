"""The command: an official checkpoint, in a folder or on the hub, to a verified MLX folder.

`python convert/run.py --hf-path ID_OR_DIR --mlx-path OUT` reads and converts tensor by tensor, writes beside OUT,
audits, compares the written files with the reference, and only then gives the folder its name. Exit codes: 0 done,
1 the checkpoint or the result was refused, 2 wrong arguments. A refusal is one line and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the repository, not convert/, is where imports start
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from convert.audit import Audit, port_shapes, prove
from convert.bake import Bake
from convert.card_flags import add_card_flags, card_arguments
from convert.checkpoint import sha256
from convert.hub import RELEASE, Source, differences, find_source, identity, names_in, needed_files
from convert.layout import describe_files, require_checkpoint
from convert.mapping import Step, plan
from convert.names import MAY_LACK
from convert.official import TOKENIZER_FOLDER, text_config, with_front_end
from convert.partial import MARK, beside, clear_leftover, refuse_existing
from convert.parts import LLM_FILES, Weights, official_parts
from convert.quantize import FLOAT32, Precision, add_flags, from_flags
from convert.space import output_bytes, output_layout, output_share, require_space
from port.app.device import DEVICES, use_device
from port.config import CosyVoice3Config
from port.files.errors import Misused, Refused, printable
from port.files.hub import ID
from port.files.storage import MAX_SHARD_BYTES, Writer, read_headers
from port.files.weights import check, heads, save_config
from port.frontend.tokenizer import CosyVoice3Tokenizer

AUDIT_FILE = "audit.json"
EXAMPLE = f"""example, with the language model in 4 bits:
  python convert/run.py --hf-path {RELEASE.repo} --mlx-path mlx-q4 -q"""
PASSED = ("PASS", "SKIP", "REDUCED")

Row = Mapping[str, Any]
ParityCheck = Callable[[Path, Path], Sequence[Row]]


def parity_check(source: Path, folder: Path) -> Sequence[Row]:
    """Load the port from `folder` and the reference from `source`, and compare them.

    Returns:
        One mapping for each comparison with at least `checkpoint` and `status`.
    """
    from convert.verify import verify_folder

    return verify_folder(source, folder)


def convert_folder(
    source: Source,
    out: Path,
    parity: ParityCheck | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    precision: Precision = FLOAT32,
    bake_timesteps: bool = False,
) -> tuple[Audit, Sequence[Row]]:
    """Convert, audit and verify; `out` appears complete or not at all.

    Args:
        source: see `find_source`.
        out: must not exist; its parents are made.
        parity: called with the source and the written folder; `parity_check` when None.
        max_shard_bytes: data in one weights file.
        precision: dtype and quantization of what is written.
        bake_timesteps: write tables of the flow's timesteps instead of the weights that make them, see bake.py.

    Raises:
        Misused: `out` exists.
        Misused: quantization that no layer can take.
        Refused: one line.
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
    config = with_front_end(config, opened["speech_tokenizer"].config, opened["speaker"].config)
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
        rows = _compare(parity or parity_check, source.folder, partial)
        _require_parity(rows)
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
            held = opened.pop(part)  # the pages of a finished file are given back
            for step in bake.order(steps) if bake else steps:
                result = step.apply(held, config)
                if step.target is not None and result is not None:
                    takes = bake if bake and step.target in bake.replaced else precision
                    for name, array in takes.stored(step.target, result):
                        writer.write(name, array)
                progress.update()


def _compare(parity: ParityCheck, source: Path, folder: Path) -> Sequence[Row]:
    try:
        return parity(source, folder)
    except Exception as error:  # whatever stops the comparison, unverified files must not stay
        raise Refused(f"parity: not comparable ({type(error).__name__}: {error})") from error


def _require_parity(rows: Sequence[Row]) -> None:
    failed = [row for row in rows if row["status"] not in PASSED]
    if failed:
        first = failed[0]
        said = f" ({first['message']})" if first.get("message") else ""
        raise Refused(f"parity: {first['checkpoint']} is {first['status']}{said}; {len(failed)} of {len(rows)} fail")
    if not any(row["status"] == "PASS" for row in rows):
        raise Refused("parity: nothing was compared")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python convert/run.py",
        description="Convert an official CosyVoice 3 checkpoint to a verified MLX folder.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hf-path", "--model", required=True, metavar="ID_OR_DIR", help="checkpoint folder or hub id")
    parser.add_argument("--mlx-path", required=True, type=Path, metavar="OUT", help="folder to write; must not exist")
    add_flags(parser)
    parser.add_argument(
        "--bake-timesteps",
        action="store_true",
        help="write what the flow decoder makes of its fixed timesteps instead of the weights that make it: 0.56 GB "
        "less in float32, the same speech; the model then takes no other number of steps",
    )
    parser.add_argument(
        "--device", default="auto", choices=DEVICES, help="where the written files are compared (default: auto)"
    )
    parser.add_argument(
        "--revision",
        metavar="R",
        help=f"branch, tag or commit of a hub id (default: {RELEASE.revision[:8]} of the official one, else main)",
    )
    parser.add_argument("--upload-repo", metavar="NAME", help="hub id to publish the verified folder under")
    parser.add_argument(
        "--llm", choices=LLM_FILES, default="base", help="language model: llm.pt, or rl for llm.rl.pt (default: base)"
    )
    add_card_flags(parser)
    options = parser.parse_args(arguments)
    try:
        refuse_existing(options.mlx_path)
        clear_leftover(options.mlx_path)
        _choose(options.device)
        if options.upload_repo and not ID.fullmatch(options.upload_repo):
            raise Misused(f"--upload-repo {options.upload_repo}: not a hub id such as me/CosyVoice3-mlx")
        if not options.upload_repo and (given := card_arguments(options)):
            raise Misused(f"{given[0]} goes with --upload-repo")
        precision = from_flags(options)
        share = output_share(precision, options.bake_timesteps)
        source = find_source(options.hf_path, options.revision, options.llm, options.mlx_path, share)
        audit, rows = convert_folder(
            source, options.mlx_path, precision=precision, bake_timesteps=options.bake_timesteps
        )
    except Misused as error:
        return _say(error, 2)
    except (Refused, OSError) as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return _say("interrupted; nothing was written", 1)
    for line in differences(source, {file.name: file.sha256 for file in audit.files.values()}):
        print("note: " + printable(line))
    for key in audit.lacking:
        print(f"note: the checkpoint has no {key}: {MAY_LACK[key]}")
    print(printable(f"{options.mlx_path}: {audit.verdict}; {parity_verdict(rows)}"))
    return _upload(options) if options.upload_repo else 0


def parity_verdict(rows: Sequence[Row]) -> str:
    """One line for people: how many comparisons came out how, and what the reduced ones are judged by."""
    counts = Counter(row["status"] for row in rows)
    if set(counts) == {"PASS"}:
        return f"parity {len(rows)} of {len(rows)} checkpoints pass"
    said = f"parity {counts['PASS']} of {len(rows)} checkpoints pass"
    said += "".join(f", {count} {status}" for status, count in sorted(counts.items()) if status != "PASS")
    if counts["REDUCED"]:
        said += " (not float32, so not judged one by one: quality.json has what they are judged by)"
    return said


def _upload(options: argparse.Namespace) -> int:
    from convert.publish import main as publish

    given = ["--mlx-path", str(options.mlx_path), "--upload-repo", options.upload_repo]
    return publish([*given, *card_arguments(options)])


def _choose(device: str) -> None:
    try:
        use_device(device)
    except ValueError as error:
        raise Misused(str(error)) from None


def _say(error: object, code: int) -> int:
    print("convert: " + printable(error), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
