"""Upload a converted folder to the hub: `python -m convert.publish --mlx-path DIR --upload-repo NAME [--report JSON]`.

Only files that the conversion wrote and verified are uploaded, with a model card. A folder that did not pass, or that
was changed since, is refused. Exit codes: 0 done, 1 refused by us or by the hub, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convert.checkpoint import sha256
from convert.flags import add_card_flags
from mlx_parity.report.codec import ReportError
from mlx_parity.report.model import Report, load
from port.files import hub
from port.files.disk import read_json
from port.files.errors import Refused, printable
from reports.card import CARD_FILE, card, is_card, write_card

AUDIT_FILE = "audit.json"
SETTLED = ("PASS", "SKIP", "REDUCED")


def publish(
    folder: Path,
    repo: str,
    report: Path | None = None,
    private: bool = False,
    base_model: str | None = None,
    licence: str | None = None,
) -> str:
    """Write the model card into the folder and upload it.

    Args:
        folder: written by convert/run.py.
        repo: hub id; created if it does not exist.
        report: report.json of a run of the suite on this folder, for the card.
        private: make a new repository private.
        base_model, licence: for the card, see `card`.

    Returns:
        Address on the hub.

    Raises:
        Refused: the folder or the report did not pass, or the hub refuses.
    """
    audit = require_verified(folder)
    run = require_report(report, audit) if report else None
    text = card(folder, run, repo, base_model, licence)
    write_card(folder, text)
    files = [*audit["written"], AUDIT_FILE, CARD_FILE]
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True, private=private)
        _say_if_replaced(repo)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[escape(file) for file in files],
            commit_message="Upload a conversion to MLX",
        )
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
        raise hub.explained(cause, repo, None) from None
    return str(done)


def _say_if_replaced(repo: str) -> None:
    """Warn that a README.md on the hub that this command did not write will be replaced."""
    from huggingface_hub import errors, hf_hub_download

    try:
        held = Path(hf_hub_download(repo, CARD_FILE))
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        return
    if not is_card(held):
        print(f"note: {repo} has its own {CARD_FILE}; the model card replaces it, and the history of {repo} keeps it")


def require_verified(folder: Path) -> dict[str, Any]:
    """The folder's audit, if it passed and no file changed since.

    Raises:
        Refused: otherwise.
    """
    audit = read_json(folder / AUDIT_FILE)
    rows, written = audit.get("parity"), audit.get("written")
    if not isinstance(rows, list) or not isinstance(written, dict) or not written:
        raise Refused(f"{folder / AUDIT_FILE}: does not record what was verified; convert again")
    statuses = [row.get("status") if isinstance(row, dict) else None for row in rows]
    if (failed := [status for status in statuses if status not in SETTLED]) or "PASS" not in statuses:
        said = f"{len(failed)} of {len(rows)} tensors failed" if failed else "nothing was compared"
        raise Refused(f"{folder}: is not verified, {said}; it is not published")
    for name, wanted in tqdm(written.items(), desc="check", unit="file", file=sys.stderr, disable=None):
        if Path(name).name != name or sha256(folder / name) != wanted:
            raise Refused(f"{folder / name}: was changed since it was verified; convert again")
    return audit


def require_report(path: Path, audit: Mapping[str, Any]) -> Report:
    """A report on the same source files that passed.

    Raises:
        Refused: another verdict, or other weights.
    """
    try:
        report = load(path)
        known = {file["name"]: file["sha256"] for file in audit["files"].values() if file["tensors"]}
    except ReportError as error:
        raise Refused(str(error)) from None
    except (KeyError, TypeError, AttributeError):
        raise Refused(f"{path}: cannot be compared, {AUDIT_FILE} does not list the source files") from None
    if report.verdict.status != "PASS":
        raise Refused(f"{path}: its verdict is {report.verdict.status}; it is not published")
    if {file.file: file.sha256 for file in report.provenance.weights} != known:
        raise Refused(f"{path}: judges other weights than these; run the suite with --checkpoint and --mlx-path")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m convert.publish", description="Upload a converted folder.")
    parser.add_argument("--mlx-path", required=True, type=Path, metavar="DIR", help="folder that convert/run.py wrote")
    parser.add_argument("--upload-repo", required=True, metavar="NAME", help="hub id, such as me/CosyVoice3-mlx")
    parser.add_argument("--report", type=Path, metavar="JSON", help="report.json of the suite on this folder")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    add_card_flags(parser)
    options = parser.parse_args(arguments)
    if not hub.ID.fullmatch(options.upload_repo):
        return _say(f"--upload-repo {options.upload_repo}: not a hub id such as me/CosyVoice3-mlx", 2)
    try:
        address = publish(
            options.mlx_path,
            options.upload_repo,
            options.report,
            options.private,
            options.base_model,
            options.license,
        )
    except (Refused, OSError) as error:
        return _say(error, 1)
    print(printable(f"published: {address}"))
    return 0


def _say(error: object, code: int) -> int:
    print("publish: " + printable(error), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
