"""The command: an official checkpoint, in a folder or on the hub, to a verified MLX folder.

`python convert/run.py --hf-path ID_OR_DIR --mlx-path OUT` reads and converts tensor by tensor, writes beside OUT,
audits, compares the written files with the reference, and only then gives the folder its name. Exit codes: 0 done,
1 the checkpoint or the result was refused, 2 wrong arguments. A refusal is one line and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the repository, not convert/, is where imports start
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from convert.card_flags import add_card_flags, card_arguments
from convert.conversion import Row, convert_folder
from convert.hub import RELEASE, differences, find_source
from convert.names import MAY_LACK
from convert.partial import clear_leftover, refuse_existing
from convert.parts import LLM_FILES
from convert.quantize import add_flags, from_flags
from convert.space import output_share
from port.app.device import DEVICES, use_device
from port.files.errors import Misused, Refused, printable
from port.files.hub import ID

EXAMPLE = f"""example, with the language model in 4 bits:
  python convert/run.py --hf-path {RELEASE.repo} --mlx-path mlx-q4 -q"""


def parity_check(source: Path, folder: Path) -> Sequence[Row]:
    """Load the port from `folder` and the reference from `source`, and compare them: see parity_tests/verify.py."""
    from parity_tests.verify import verify_folder

    return verify_folder(source, folder)


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
            source, options.mlx_path, parity_check, precision=precision, bake_timesteps=options.bake_timesteps
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
