"""Download folders from the Hugging Face hub: a commit, the needed files, and a one-line error for any failure.

The cache is that of huggingface_hub; cached files work offline. `HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT` and a stored
login work as usual. No message repeats what the hub sent, so that none can leak a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import Any

from .errors import CONVERTER, Refused

ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
ATTEMPTS = 5  # attempts of a download; each resumes the one before


class UnreachableError(Refused):
    """No network, or offline mode."""


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit.

    Args:
        commit: 40 hexadecimal digits.
        sizes: bytes of each file, None where the hub does not say.
        digests: sha256 of a large file, git's blob id of a small one.
    """

    commit: str
    sizes: Mapping[str, int | None]
    digests: Mapping[str, str | None]


def find_folder(path_or_hf_repo: str, revision: str | None = None) -> Path:
    """A folder here as it is, otherwise the converted model in a hub repository.

    Args:
        revision: branch, tag or commit of a hub id; the main branch when None.

    Raises:
        Refused: neither a folder nor a hub id, a revision of a folder, or whatever the hub refuses.
    """
    folder = Path(path_or_hf_repo)
    if folder.is_dir():
        if revision:
            raise Refused(f"revision {revision}: {folder} is a folder here and has no revisions")
        return folder
    if why := no_id(path_or_hf_repo, f"one written by {CONVERTER}, or a hub id"):
        raise Refused(why)
    try:
        names = look_up(path_or_hf_repo, revision).sizes
    except UnreachableError as error:
        if held := in_cache(path_or_hf_repo, revision, ["config.json"]):
            return held
        raise Refused(f"{error}, and the cache does not hold it") from None
    from .storage import INDEX_FILE  # here, so that an id is checked without MLX
    from .voices import VOICES

    places = ("", VOICES)
    files = [n for n in names if n.rpartition("/")[0] in places and n.endswith((".json", ".safetensors"))]
    if "config.json" not in files or not any(name.endswith((".safetensors", INDEX_FILE)) for name in files):
        raise Refused(f"{path_or_hf_repo}: holds no converted model; make one by {CONVERTER} --hf-path")
    return fetch(path_or_hf_repo, revision, files)


def no_id(name: str, wanted: str) -> str:
    """Why `name`, which is not a local folder, is not a hub id either; empty if it may be one.

    Args:
        wanted: what to give instead.
    """
    if "://" in name:
        return f"{name}: an address; give owner/name, as the hub calls the repository"
    folder = Path(name)
    if folder.exists():
        return f"{name}: not a folder; give {wanted}"
    if near := _alike(folder):
        return f"{name}: no such folder; did you mean {near}?"
    return "" if ID.fullmatch(name) else f"{name}: no such folder; give {wanted}"


def _alike(folder: Path) -> Path | None:
    """A folder with a similar name, if there is one."""
    try:
        near = get_close_matches(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()], 1)
    except OSError:
        return None
    return folder.parent / near[0] if near else None


def look_up(repo: str, revision: str | None) -> Listing:
    """Ask the hub what a revision holds.

    Raises:
        UnreachableError: no network, or offline mode.
        Refused: no such repository or revision, no access, or a malformed answer.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:
        refusal = explained(error, repo, revision)
        # A mistyped path looks like a hub id.
        unsure = isinstance(refusal, UnreachableError) or Path(repo).parent.is_dir()
        raise type(refusal)(f"{refusal}; nor is there such a folder here" if unsure else str(refusal)) from None
    files = info.siblings or []
    return Listing(
        str(info.sha),
        {file.rfilename: file.size for file in files},
        {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in files},
    )


def in_cache(repo: str, revision: str | None, files: Iterable[str]) -> Path | None:
    """The cached folder of a revision if it holds all `files`; None otherwise. Uses no network."""
    from huggingface_hub import try_to_load_from_cache

    folder = None
    for file in files:
        held = try_to_load_from_cache(repo, file, revision=revision)
        if not isinstance(held, str):
            return None
        folder = Path(held.removesuffix(file))
    return folder


def fetch(repo: str, revision: str | None, files: Iterable[str]) -> Path:
    """Download what the cache lacks, with progress bars; interrupted ones resume.

    Returns:
        Folder of the snapshot, named after its commit.

    Raises:
        Refused: as for `look_up`, or the disk is full.
    """
    from huggingface_hub import snapshot_download

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return Path(snapshot_download(repo, revision=revision, allow_patterns=[escape(file) for file in files]))
        except Exception as error:
            refusal = explained(error, repo, revision)
            if attempt == ATTEMPTS or not isinstance(refusal, UnreachableError):
                raise refusal from None
    raise AssertionError


def explained(error: Exception, repo: str, revision: str | None) -> Refused:
    """The message for an error of huggingface_hub or of the network; any other error is raised again.

    Raises:
        Exception: `error` itself, if it is neither.
    """
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in with `hf auth login`"
    match error:
        case errors.GatedRepoError():
            return Refused(f"{repo}: its authors ask for consent; give it on the repository's page, then {login}")
        case errors.RepositoryNotFoundError():
            return Refused(f"{repo}: the hub has no such repository, or it is private; check the name, or {login}")
        case errors.RevisionNotFoundError():
            return Refused(f"{repo}: has no revision {revision or 'main'!r:.80}; give a branch, a tag or a commit")
        case errors.HFValidationError():
            return Refused(f"{repo}: is not a name that a repository can have")
        case errors.OfflineModeIsEnabled():
            return UnreachableError(f"{repo}: HF_HUB_OFFLINE is set, so the hub was not asked")
        case errors.LocalEntryNotFoundError():
            return UnreachableError(f"{repo}: the hub cannot be reached")
        case errors.EntryNotFoundError():
            return Refused(f"{repo}: a listed file is not there; try again, or choose another revision")
    if status in (401, 403):
        return Refused(f"{repo}: the hub refuses access (HTTP {status}); {login} as someone who has it")
    if status is not None:
        return Refused(f"{repo}: the hub answers HTTP {status}; try again later")
    if _of_network(error):
        return UnreachableError(f"{repo}: the hub cannot be reached ({type(error).__name__})")
    if isinstance(error, OSError):
        what = error.strerror or ("a file arrived with another size" if "Consistency" in str(error) else "I/O error")
        return Refused(f"{repo}: not transferred ({what}); run again to go on")
    if "hf_transfer" in str(error):
        return Refused(
            f"{repo}: HF_HUB_ENABLE_HF_TRANSFER asks for hf_transfer, which fails or is not installed; unset it"
        )
    # The native client (xet) raises RuntimeError or its own classes for any failed transfer.
    if type(error) is RuntimeError or "xet" in f"{type(error).__module__}.{type(error).__name__}".lower():
        return UnreachableError(
            f"{repo}: the transfer broke off ({type(error).__name__}); run again to go on, or set HF_HUB_DISABLE_XET=1"
        )
    raise error


def _of_network(error: Any) -> bool:
    """huggingface_hub below 1.0 raises what requests raises, later ones what httpx raises."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in (
        "requests",
        "httpx",
        "httpx2",
        "urllib3",
    )
