"""The command: an official checkpoint, in a folder or on the hub, to a verified MLX folder.

`python convert/run.py --hf-path ID_OR_DIR --mlx-path OUT` reads and converts tensor by tensor, writes beside OUT,
audits, compares the written files with the reference, and only then gives the folder its name. Exit codes: 0 done,
1 the checkpoint or the result was refused, 2 wrong arguments. A refusal is one line and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the repository, not convert/, is where imports start
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from convert.audit import Audit, AuditError, SourceFile, port_shapes, prove
from convert.checkpoint import CheckpointError, StateDict, sha256
from convert.mapping import ConversionError, Step, plan
from convert.official import (
    QWEN_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FOLDER,
    VOCABULARY_FILES,
    YAML_FILE,
    text_config,
    with_front_end,
)
from convert.parts import PARTS, Weights
from port.config import ConfigError, CosyVoice3Config
from port.device import DEVICES, use_device
from port.frontend.tokenizer import CosyVoice3Tokenizer, TokenizerError
from port.storage import MAX_SHARD_BYTES, TensorInfo, WeightsError, Writer, read_headers
from port.weights import check, save_config

FILES = {part.name: part.file for part in PARTS}
TEXT_FILES = (YAML_FILE, QWEN_FILE, TOKENIZER_FILE, *VOCABULARY_FILES)
AUDIT_FILE = "audit.json"
PASSED = ("PASS", "SKIP", "XFAIL")

Row = Mapping[str, Any]
ParityCheck = Callable[[Path, Path], Sequence[Row]]


class UsageError(ValueError):
    """Arguments that cannot work."""


class ParityError(ValueError):
    """Written files that do not do what the source does."""


REFUSALS = (CheckpointError, ConfigError, ConversionError, AuditError, WeightsError, TokenizerError, ParityError)


@dataclass(frozen=True)
class Source:
    """An official checkpoint folder on this machine, and how it was asked for."""

    folder: Path
    name: str
    revision: str | None = None


def parity_check(source: Path, folder: Path) -> Sequence[Row]:
    """Load the port from `folder` and the reference from `source`, and compare them.

    Returns:
        One mapping for each comparison with at least `checkpoint` and `status`.
    """
    from convert.verify import verify_folder

    return verify_folder(source, folder)


def convert_folder(
    source: Source, out: Path, parity: ParityCheck | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> tuple[Audit, Sequence[Row]]:
    """Convert, audit and verify; `out` appears complete or not at all.

    Args:
        source: see `find_source`.
        out: must not exist; its parents are made.
        parity: called with the source and the written folder; `parity_check` when None.
        max_shard_bytes: data in one weights file.

    Raises:
        UsageError: `out` exists.
        CheckpointError, ConfigError, ConversionError, AuditError, WeightsError, TokenizerError, ParityError: one line.
    """
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: exists already; remove it or choose another --mlx-path")
    for file in (*TEXT_FILES, *FILES.values()):
        if not (source.folder / file).is_file():
            raise CheckpointError(f"{source.folder / file}: not found")
    config = text_config(source.folder)
    tokenizer = CosyVoice3Tokenizer.from_folder(source.folder / TOKENIZER_FOLDER)
    if tokenizer.end_of_prompt != config.llm.end_of_prompt or len(tokenizer) > config.llm.qwen2.vocab_size:
        raise CheckpointError(
            f"{source.folder / TOKENIZER_FOLDER}: a vocabulary of {len(tokenizer)} does not fit the language model's "
            f"{config.llm.qwen2.vocab_size} rows"
        )
    opened = {part.name: part.read(source.folder / part.file) for part in PARTS}
    config = with_front_end(config, opened["speech_tokenizer"].config, opened["speaker"].config)
    plans = {part: plan(part, held) for part, held in opened.items()}
    parameters = port_shapes(config)
    shapes = {part: held.shapes for part, held in opened.items()}
    audit = prove(shapes, plans, parameters)
    audit = replace(audit, files=describe_files(source.folder, opened))
    with _beside(out) as partial:
        _write(partial, opened, plans, config, parameters, max_shard_bytes)
        check(read_headers(partial), parameters, partial)
        tokenizer.save(partial)
        hashes = {file.name: file.sha256 for file in audit.files.values()}
        save_config(partial, config, {"source": source.name, "revision": source.revision, "sha256": hashes})
        rows = _compare(parity or parity_check, source.folder, partial)
        report = {**audit.to_dict(), "verdict": audit.verdict, "parity": [dict(row) for row in rows]}
        (partial / AUDIT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _require_parity(rows)
    return audit, rows


def describe_files(folder: Path, opened: Mapping[str, Weights]) -> dict[str, SourceFile]:
    """Sizes and hashes of everything that was read, weights by part and text files by name."""
    files = {}
    for part in tqdm(PARTS, desc="sha256", unit="file", file=sys.stderr, disable=None):
        path, held = folder / part.file, opened[part.name]
        elements = sum(map(math.prod, held.shapes.values())) - (held.shared if isinstance(held, StateDict) else 0)
        size = path.stat().st_size
        files[part.name] = SourceFile(part.file, sha256(path), size, len(held), elements, held.ignored)
    for name in TEXT_FILES:
        path = folder / name
        files[name] = SourceFile(name, sha256(path), path.stat().st_size, 0, 0)
    return files


def _write(
    folder: Path,
    opened: dict[str, Weights],
    plans: Mapping[str, list[Step]],
    config: CosyVoice3Config,
    parameters: Mapping[str, tuple[int, ...]],
    max_shard_bytes: int,
) -> None:
    announced = {name: TensorInfo("F32", shape) for name, shape in parameters.items()}
    total = sum(len(steps) for steps in plans.values())
    with (
        Writer(folder, announced, max_shard_bytes) as writer,
        tqdm(total=total, desc="convert", unit="tensor", file=sys.stderr, disable=None) as progress,
    ):
        for part, steps in plans.items():
            held = opened.pop(part)  # the pages of a finished file are given back
            for step in steps:
                result = step.apply(held, config)
                if step.target is not None and result is not None:
                    writer.write(step.target, result)
                progress.update()


def _compare(parity: ParityCheck, source: Path, folder: Path) -> Sequence[Row]:
    try:
        return parity(source, folder)
    except Exception as error:  # whatever stops the comparison, unverified files must not stay
        raise ParityError(f"parity: not comparable ({type(error).__name__}: {error})") from error


def _require_parity(rows: Sequence[Row]) -> None:
    failed = [row for row in rows if row["status"] not in PASSED]
    if failed:
        raise ParityError(f"parity: {failed[0]['checkpoint']} is {failed[0]['status']} ({len(failed)} of {len(rows)})")
    if not any(row["status"] == "PASS" for row in rows):
        raise ParityError("parity: nothing was compared")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out` that takes its name at the end, or goes away with the parents made for it."""
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise UsageError(f"{out.parent}: cannot be written to ({error.strerror or error})") from None
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find_source(hf_path: str, revision: str | None = None) -> Source:
    """A local folder as it is; otherwise a hub id, of which just the needed files are fetched.

    Raises:
        UsageError: neither a folder nor a hub id, or a revision of a folder.
        CheckpointError: the hub does not give the files.
    """
    folder = Path(hf_path)
    if folder.is_dir():
        if revision:
            raise UsageError(f"--revision {revision}: {hf_path} is a folder here and has no revisions")
        return Source(folder, hf_path)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", hf_path):
        raise UsageError(f"{hf_path}: neither a folder nor a hub id such as FunAudioLLM/Fun-CosyVoice3-0.5B-2512")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [*FILES.values(), *TEXT_FILES]
        fetched = Path(snapshot_download(hf_path, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{hf_path}: not a folder here, and the hub answers: {reason[0][:200]}") from None
    return Source(fetched, hf_path, fetched.name)  # a snapshot folder is named after its commit


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="convert/run.py", description="Convert an official CosyVoice 3 checkpoint to a verified MLX folder."
    )
    parser.add_argument("--hf-path", "--model", required=True, metavar="ID_OR_DIR", help="checkpoint folder or hub id")
    parser.add_argument("--mlx-path", required=True, type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=["float32"], default="float32", help="dtype of the written weights")
    parser.add_argument("--device", default="auto", choices=DEVICES, help="where the written files are compared")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    options = parser.parse_args(arguments)
    try:
        if options.mlx_path.exists():
            raise UsageError(f"{options.mlx_path}: exists already; remove it or choose another --mlx-path")
        _choose(options.device)
        audit, rows = convert_folder(find_source(options.hf_path, options.revision), options.mlx_path)
    except UsageError as error:
        return _say(error, 2)
    except (*REFUSALS, OSError) as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return _say("interrupted; nothing was written", 1)
    passed = sum(row["status"] == "PASS" for row in rows)
    print(f"{options.mlx_path}: {audit.verdict}; parity {passed} of {len(rows)} checkpoints pass")
    return 0


def _choose(device: str) -> None:
    try:
        use_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _say(error: object, code: int) -> int:
    print("convert: " + " ".join(str(error).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
