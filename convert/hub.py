"""The official checkpoint: download it from the hub, and check that its files are the published ones."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convert.official import QWEN_FILE, TOKENIZER_FILE, VOCABULARY_FILES, YAML_FILE
from convert.parts import held_as, official_parts
from convert.release import RELEASE, Known
from convert.space import require_space
from port.files import hub
from port.files.errors import Misused, Refused

TEXT_FILES = (YAML_FILE, QWEN_FILE, TOKENIZER_FILE, *VOCABULARY_FILES)


@dataclass(frozen=True)
class Source:
    """An official checkpoint folder on this machine, and how the user named it.

    Args:
        folder: where the files are.
        name: folder or hub id as given.
        revision: commit on the hub.
        llm: `base` for llm.pt, `rl` for llm.rl.pt.
        digests: expected digest by file; see `Known`.
    """

    folder: Path
    name: str
    revision: str | None = None
    llm: str = "base"
    digests: Mapping[str, str] = field(default_factory=dict)


def needed_files(llm: str = "base", names: Container[str] = ()) -> tuple[str, ...]:
    """What a conversion reads, about 4.4 GB of the 9.9 GB that the repository holds; see `official_parts`."""
    return (*(part.file for part in official_parts(llm, names)), *TEXT_FILES)


def names_in(folder: Path) -> frozenset[str]:
    """Names of the files of a folder."""
    try:
        return frozenset(path.name for path in folder.iterdir())
    except OSError as error:
        raise Refused(f"{folder}: cannot be read ({error.strerror or error})") from None


def find_source(
    hf_path: str, revision: str | None = None, llm: str = "base", out: Path | None = None, share: float = 1.0
) -> Source:
    """Use a local folder as it is, or download the needed files of a hub id.

    Args:
        hf_path: folder or hub id.
        revision: branch, tag or commit of a hub id; `RELEASE.revision` of the official one and `main` of others when
            None.
        llm: see `Source`.
        out: where the conversion will go; the disk must have room for both. None: check room for the download only.
        share: bytes that the conversion will write for each byte of the checkpoint, see `output_share`.

    Raises:
        Misused: neither a folder nor a hub id, or a revision of a folder.
        Refused: files that the hub does not deliver, files that are not the published ones, or too little disk space.
    """
    folder = Path(hf_path)
    if folder.is_dir():
        if revision:
            raise Misused(f"--revision {revision}: {hf_path} is a folder here and has no revisions")
        return Source(folder, hf_path, None, llm)
    if why := hub.no_id(hf_path, f"a folder, or a hub id such as {RELEASE.repo}"):
        raise Misused(why)
    if revision is None and hf_path == RELEASE.repo:
        revision = RELEASE.revision
    files: Sequence[str] = needed_files(llm)
    known = RELEASE.files if (hf_path, revision) == (RELEASE.repo, RELEASE.revision) else {}
    fixed = revision is not None and hub.COMMIT.fullmatch(revision)
    folder = (hub.in_cache(hf_path, revision, files) if fixed else None) or _download(
        hf_path, revision, files, out, share, known
    )
    files = [held_as(name, names_in(folder)) for name in files]
    _check_sizes(folder, {name: known[name].bytes for name in files if name in known})
    digests = {name: known[name].digest if name in known else _cached_digest(folder / name) for name in files}
    return Source(folder, hf_path, folder.name, llm, {name: digest for name, digest in digests.items() if digest})


def _download(
    repo: str, revision: str | None, files: Sequence[str], out: Path | None, share: float, known: Mapping[str, Known]
) -> Path:
    try:
        listing = hub.look_up(repo, revision)
    except hub.UnreachableError as error:
        if held := hub.in_cache(repo, revision, files):
            return held
        raise Refused(f"{error}, and the cache lacks files that a conversion needs") from None
    files = [held_as(name, listing.sizes) for name in files]
    if missing := [name for name in files if name not in listing.sizes]:
        raise Refused(f"{repo}: has no {missing[0]} at {listing.commit}; not an official CosyVoice 3 checkpoint")
    sizes = {name: listing.sizes[name] or 0 for name in files}
    for name in known.keys() & sizes.keys():
        _compare_sizes(f"{repo}: {name}", sizes[name], known[name].bytes)
    require_space(
        {
            "to download": (_cache_folder(), _bytes_to_come(repo, listing, files)),
            "to write": (out, round(share * sum(sizes.values()))),
        }
    )
    return hub.fetch(repo, revision, files)


def _bytes_to_come(repo: str, listing: hub.Listing, files: Iterable[str]) -> int:
    """Bytes still to download: neither in the cache nor in an interrupted download."""
    from huggingface_hub import file_download, try_to_load_from_cache

    blobs = _cache_folder() / file_download.repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    total = 0
    for name in files:
        if not isinstance(try_to_load_from_cache(repo, name, revision=listing.commit), str):
            begun = blobs / f"{listing.digests[name]}.incomplete"
            total += max((listing.sizes[name] or 0) - (begun.stat().st_size if begun.is_file() else 0), 0)
    return total


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        _compare_sizes(f"{folder / name}", (folder / name).stat().st_size, size)


def _compare_sizes(where: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise Refused(f"{where}: {found} bytes, the published file has {wanted}")


def _cached_digest(path: Path) -> str | None:
    """The digest that the hub gave for a file; the cache uses it as the file name."""
    name = path.resolve().name
    return name if len(name) in (40, 64) and set(name) <= set("0123456789abcdef") else None


def check_digests(source: Source, hashes: Mapping[str, str]) -> None:
    """Compare the digests of the files that were read with the published ones.

    Args:
        source: with its `digests`.
        hashes: sha256 by file.

    Raises:
        Refused: a file differs from the published one.
    """
    for name, wanted in source.digests.items():
        path = source.folder / name
        if (found := digest_like(wanted, path, hashes[name])) != wanted:
            raise Refused(
                f"{path}: its digest is {found}, the published file's is {wanted}; "
                f"remove {path.resolve()} and run again"
            )


def digest_like(known: str, path: Path, sha256: str) -> str:
    """Digest of a file, of the same kind as `known`; see `Known`."""
    return sha256 if len(known) == len(sha256) else git_blob_id(path)


def git_blob_id(path: Path) -> str:
    """SHA-1 of a git blob, which the hub gives for small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def identity(source: Source, hashes: Mapping[str, str]) -> tuple[str, str | None]:
    """Name and commit of the converted checkpoint; a folder with exactly the release's files counts as the release.

    For any other folder only its name is recorded, never its full path, to avoid leaking private paths.
    """
    if source.revision is None and not differing(source, hashes):
        return RELEASE.repo, RELEASE.revision
    return (source.name if source.revision else source.folder.resolve().name), source.revision


def differing(source: Source, hashes: Mapping[str, str]) -> list[str]:
    """The files of a source that differ from those of `RELEASE`."""
    return [
        name
        for name, found in hashes.items()
        if name not in RELEASE.files
        or digest_like(RELEASE.files[name].digest, source.folder / name, found) != RELEASE.files[name].digest
    ]


def differences(source: Source, hashes: Mapping[str, str]) -> list[str]:
    """For a checkpoint from the hub: a line for each file that differs from `RELEASE`, with its sha256."""
    if source.revision is None:
        return []
    return [
        f"{name} is not the one of {RELEASE.repo} at {RELEASE.revision[:8]}: sha256 {hashes[name]}"
        for name in differing(source, hashes)
    ]
