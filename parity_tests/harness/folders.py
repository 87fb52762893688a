"""Whether the folders that a run names are what it takes them for; asked before anything runs."""

from __future__ import annotations

from pathlib import Path

from convert.hub import needed_files
from convert.official import TOKENIZER_FOLDER, text_config
from convert.parts import converted_parts, official_parts
from port.files import weights
from port.files.errors import Refused
from port.files.storage import INDEX_FILE, WEIGHTS_FILE
from port.frontend.tokenizer import CosyVoice3Tokenizer

CONVERTED = ("config.json", WEIGHTS_FILE, INDEX_FILE)


class FolderError(ValueError):
    """A folder that cannot be judged; one line: which, what it lacks, what to give instead."""


def check_folders(checkpoint: Path | None, mlx_path: Path | None) -> None:
    """Refuse a checkpoint that is none, or a conversion that is none; None is not checked.

    Raises:
        FolderError: files missing or damaged, or tensors missing, unknown or of another shape.
    """
    rl = False
    if mlx_path is not None:
        _check_converted(mlx_path)
        rl = converted_parts(mlx_path) != official_parts()
    if checkpoint is not None:
        _check_official(checkpoint, "rl" if rl else "base")


def _check_official(folder: Path, llm: str) -> None:
    missing = [name for name in needed_files(llm) if not (folder / name).is_file()]
    if missing:
        hint = "; it looks like a conversion, give that to --mlx-path" if _looks_converted(folder) else ""
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise FolderError(f"--checkpoint: {folder} is no official checkpoint: {missing[0]}{more} not found{hint}")
    try:
        text_config(folder)
        CosyVoice3Tokenizer.from_folder(folder / TOKENIZER_FOLDER)
        for part in official_parts(llm):
            part.read(folder / part.file)
    except Refused as error:
        raise FolderError(f"--checkpoint: {error}") from None


def _check_converted(folder: Path) -> None:
    try:
        weights.load(folder, lazy=True)
        CosyVoice3Tokenizer.from_folder(folder)
    except Refused as error:
        official = any((folder / part.file).is_file() for part in official_parts())
        hint = "; it looks like an official checkpoint, give that to --checkpoint" if official else ""
        raise FolderError(f"--mlx-path: {folder} is no conversion of this repository: {error}{hint}") from None


def _looks_converted(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CONVERTED)
