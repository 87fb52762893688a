"""Recognise an official checkpoint folder, say what another folder is, and list its files."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from convert.audit import SourceFile
from convert.checkpoint import StateDict, sha256
from convert.hub import TEXT_FILES, Source, check_digests
from convert.official import SPEECH_TOKENIZER_FILE, YAML_FILE
from convert.parts import Part, Weights
from port.config import MODEL_TYPE
from port.files.disk import read_json, require_regular
from port.files.errors import Refused

OTHERS = ("cosyvoice2.yaml", "cosyvoice.yaml")
BATCHED = "speech_tokenizer_v3.batch.onnx"
MAX_ENTRIES = 2000  # most entries read in one folder
LEVELS = 3  # from the top of a hub cache to a snapshot: models--NAME/snapshots/COMMIT


def require_checkpoint(folder: Path, files: Sequence[str]) -> None:
    """Check that every file that a conversion reads exists and is a regular file.

    Raises:
        Refused: one is missing or is not a file.
    """
    missing = [name for name in files if not (folder / name).is_file()]
    if YAML_FILE in missing and len(missing) > 1 and (told := _what_it_is(folder)):
        raise Refused(f"{folder}: {told}")
    if missing:
        name = missing[0]
        more = ""
        if name == SPEECH_TOKENIZER_FILE and (folder / BATCHED).exists():
            more = f"; {BATCHED} is the variant for training, download {SPEECH_TOKENIZER_FILE} too"
        elif len(missing) > 1:
            more = f", and {len(missing) - 1} more files are missing"
        raise Refused(f"{folder / name}: {'not a file' if (folder / name).exists() else 'not found'}{more}")
    for name in files:
        require_regular(folder / name)


def describe_files(source: Source, parts: Sequence[Part], opened: Mapping[str, Weights]) -> dict[str, SourceFile]:
    """Sizes and hashes of all files that were read: weights by part, text files by name.

    Raises:
        Refused: a file differs from the published one.
    """
    folder, files = source.folder, {}
    for part in tqdm(parts, desc="sha256", unit="file", file=sys.stderr, disable=None):
        path, held = folder / part.file, opened[part.name]
        elements = sum(map(math.prod, held.shapes.values())) - (held.shared if isinstance(held, StateDict) else 0)
        size = path.stat().st_size
        files[part.name] = SourceFile(part.file, sha256(path), size, len(held), elements, held.ignored)
    for name in TEXT_FILES:
        path = folder / name
        files[name] = SourceFile(name, sha256(path), path.stat().st_size, 0, 0)
    check_digests(source, {file.name: file.sha256 for file in files.values()})
    return files


def _what_it_is(folder: Path) -> str | None:
    found = sorted((path for path in _below(folder) if (path / YAML_FILE).is_file()), key=_age)
    if found:
        return f"holds no checkpoint itself; give {found[-1]}"
    if other := next((name for name in OTHERS if (folder / name).exists()), None):
        return f"holds {other}, an earlier generation; only CosyVoice 3 is converted"
    try:
        if read_json(folder / "config.json").get("model_type") == MODEL_TYPE:
            return "is already converted: --model takes it; --hf-path takes an official checkpoint"
    except Refused:
        pass
    return None


def _below(folder: Path) -> Iterator[Path]:
    """Folders up to some levels below; of each level the first `MAX_ENTRIES` entries."""
    level = [folder]
    for _ in range(LEVELS):
        entries = islice((entry for parent in level for entry in _entries(parent)), MAX_ENTRIES)
        level = [entry for entry in entries if entry.is_dir()]
        yield from level


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _age(folder: Path) -> float:
    return folder.stat().st_mtime
