"""Convert an official checkpoint, in a folder or on the hub, to a verified MLX folder.

`python convert/run.py --hf-path ID_OR_DIR --mlx-path OUT` reads and converts tensor by tensor, writes to a folder
beside OUT, audits it, compares it with the reference, and only then renames it to OUT. Exit codes: 0 done,
1 the checkpoint or the result was refused, 2 wrong arguments. A refusal is one line and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the repository, not convert/, is where imports start
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from convert.flags import RUN, card_arguments, parser
from port.app.device import use_device
from port.files.errors import Misused, Refused, printable
from port.files.hub import ID

Row = Mapping[str, Any]


def parity_check(source: Path, folder: Path) -> Sequence[Row]:
    """Compare the port loaded from `folder` with the reference loaded from `source`: see parity_tests/verify.py."""
    from parity_tests.verify import verify_folder

    return verify_folder(source, folder)


def main(arguments: Sequence[str] | None = None, program: str = RUN) -> int:
    options = parser(program).parse_args(arguments)
    try:
        lines = _converted(options)
    except Misused as error:
        return _say(error, 2)
    except Refused as error:
        return _say(error, 1)
    except OSError as error:  # an error while writing, such as a full disk, names no file
        return _say(error if error.filename else f"{options.mlx_path}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _say("interrupted; nothing was written", 1)
    print("\n".join(map(printable, lines)))
    return _upload(options) if options.upload_repo else 0


def _converted(options: argparse.Namespace) -> list[str]:
    """Convert; returns the lines to print, the verdict last."""
    # Imported here: help and wrong flags are answered without loading torch.
    from convert.conversion import convert_folder
    from convert.hub import differences, find_source
    from convert.names import MAY_LACK
    from convert.partial import clear_leftover, refuse_existing
    from convert.quantize import from_flags
    from convert.space import output_share

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
        source, options.mlx_path, parity_check, precision=precision, bake_timesteps=options.bake_timesteps
    )
    others = differences(source, {file.name: file.sha256 for file in audit.files.values()})
    lacking = (f"the checkpoint has no {key}: {MAY_LACK[key]}" for key in audit.lacking)
    return [
        *(f"note: {line}" for line in (*others, *lacking)),
        f"{options.mlx_path}: {audit.verdict}; {parity_verdict(rows)}",
    ]


def parity_verdict(rows: Sequence[Row]) -> str:
    """One line for people: how many comparisons passed, and how those in reduced precision are judged."""
    counts = Counter(row["status"] for row in rows)
    said = f"parity {counts['PASS']} of {len(rows)} tensors pass"
    said += "".join(f", {count} {status}" for status, count in sorted(counts.items()) if status != "PASS")
    if counts["REDUCED"]:
        said += " (reduced precision is not judged by tensor: see quality.json)"
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
