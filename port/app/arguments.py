"""Arguments of the command line; `cli.py` runs the commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..files.errors import CONVERTER
from ..frontend.special_tokens import END_OF_PROMPT, PREAMBLE
from ..request import LONGEST_PAUSE
from . import argument_types as types
from .arguments_serve import add_serve
from .arguments_tools import add_tools
from .device import DEVICES

# The name in a checkout, or as installed.
PROGRAM = "python -m port" if __package__ == "port.app" else "cosyvoice3-mlx"
SEED = types.whole(0, (1 << 64) - 1, "is no whole number in 0..2^64-1", types.MAX_DIGITS)
PAUSE = types.seconds(0, LONGEST_PAUSE, f"is no number of seconds in 0..{LONGEST_PAUSE}")
VOICE = "Keep voices in the model's folder: one file a voice."
DESCRIPTION = "CosyVoice 3 on MLX: text to speech with the voice of a short recording."
EXAMPLES = f"""
one example for each mode:
  zero-shot, the voice of a recording whose words are known:
    {PROGRAM} say --model MLX --ref-audio me.wav --ref-text 'What I say in it.' --text 'Good morning.' -o out.wav
  cross-lingual, the voice of a recording in any language:
    {PROGRAM} say --model MLX --ref-audio me.wav --text 'Guten Morgen.' -o out.wav
  instruct, how to say it:
    {PROGRAM} say --model MLX --ref-audio me.wav --instruct 'Please speak very slowly.' --text 'Hello.' -o out.wav
  a saved voice, text from standard input, streamed:
    echo 'Good morning.' | {PROGRAM} say --model MLX --voice me --stream -o out.wav
  heard while it is made, and while another program is still writing:
    {PROGRAM} say --model MLX --voice me --text 'Good morning.' --stream --play
    LLM 'Tell me a story.' | {PROGRAM} say --model MLX --voice me --play
  a long text, with a pause after each paragraph and subtitles:
    {PROGRAM} say --model MLX --voice me --text-file story.txt --pause 0.8 --subtitles story.srt -o story.mp3
  voice conversion, what one recording says with the voice of another:
    {PROGRAM} vc --model MLX --source-wav you.wav --ref-audio me.wav -o out.wav
  many utterances, one JSON object a line; run it again to resume:
    {PROGRAM} batch manifest.jsonl --model MLX --out speech
    mlx.launch -n 4 --backend ring -- {PROGRAM} batch manifest.jsonl --model MLX --out speech
  saved voices:
    {PROGRAM} voice add me --model MLX --ref-audio me.wav --ref-text 'What I say in it.'
    {PROGRAM} voice list --model MLX
    {PROGRAM} voice export me --model MLX -o me.safetensors
    {PROGRAM} voice import me.safetensors --model MLX --name mine
    {PROGRAM} voice remove me --model MLX
  a server for OpenAI's clients, with a page at http://127.0.0.1:8000:
    {PROGRAM} serve --model MLX
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line; `run` in the parsed options is the command."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(within: Any, name: str, run: str, text: str, *aliases: str) -> argparse.ArgumentParser:
        form = argparse.RawDescriptionHelpFormatter
        made = within.add_parser(
            name, aliases=aliases, help=text, description=text, epilog=EXAMPLES, formatter_class=form
        )
        made.add_argument("--model", required=True, metavar="DIR", help=f"folder written by {CONVERTER}, or a hub id")
        made.add_argument(
            "--revision", metavar="R", help="branch, tag or commit of a hub id (default: its main branch)"
        )
        made.add_argument(
            "--device", default="auto", choices=DEVICES, help="where to compute (default: auto, a GPU if any)"
        )
        made.set_defaults(run=run)
        return made

    say = command(commands, "say", "say", "Speak a text: zero-shot, cross-lingual or instruct, by the arguments given.",
                  "clone")  # fmt: skip
    text = say.add_mutually_exclusive_group()
    # If not given, it must not overwrite --text, which has the same name.
    text.add_argument("text", nargs="?", default=argparse.SUPPRESS, type=types.text, metavar="TEXT", help="what to say")
    text.add_argument(
        "--text",
        type=types.text,
        help="what to say; read from standard input when neither this nor --text-file is given. With --stream or "
        "--play and a voice whose words are known, a pipe is spoken as it comes, numbers as the model reads them",
    )
    text.add_argument("--text-file", type=Path, metavar="FILE", help="UTF-8 file with what to say")
    say.add_argument(
        "--pause", type=PAUSE, default=0.0, metavar="S", help="seconds of silence between paragraphs (default: 0)"
    )
    say.add_argument(
        "--subtitles", type=Path, metavar="FILE.srt", help="write subtitles: the text and time of each piece"
    )
    _add_recording(say, required=False)
    how = say.add_mutually_exclusive_group()
    _add_transcript(how, required=False)
    how.add_argument("--instruct", type=types.text, metavar="TEXT", help="how to speak")
    say.add_argument("--voice", "--spk", dest="spk", metavar="NAME", help="a saved voice instead of a recording")
    _add_raw_prompt(say)
    say.add_argument("--seed", type=SEED, metavar="N", help="of the sampling (default: random, and printed)")
    say.add_argument(
        "--no-text-frontend", action="store_true", help="speak the text as it is: no spelling out, no cutting"
    )
    say.add_argument("--strict-min-length", action="store_true", help="fix of the original: hold back an early end")
    _add_output(say)

    vc = command(commands, "vc", "vc", "Say what a recording says with the voice of another.")
    vc.add_argument("--source-wav", required=True, type=Path, metavar="FILE", help="what to say, 30 s at most")
    _add_recording(vc)
    vc.add_argument(
        "--align-prompt",
        action="store_true",
        help="fix of the original: trim the prompt to whole tokens, so that none of it is heard",
    )
    _add_output(vc)

    batch = command(commands, "batch", "batch", "Speak every line of a manifest; alone, or as the ranks of mlx.launch.")
    batch.add_argument(
        "manifest",
        type=Path,
        metavar="MANIFEST.jsonl",
        help="one JSON object a line: id, text, voice; a line that cannot be spoken fails alone, one without JSON or "
        "without an id of its own refuses the whole manifest",
    )
    batch.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for ID.wav and results.jsonl")
    batch.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="with its id, seeds a line that has none (default: 0)"
    )
    batch.add_argument("--batch-size", type=types.BATCH_SIZE, metavar="N",
                       help=f"utterances that a rank speaks at once; 1: one by one {types.BY_DEFAULT}")  # fmt: skip
    _add_raw_prompt(batch)

    voice = commands.add_parser("voice", help=VOICE, description=VOICE, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    actions = voice.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = command(actions, name, f"voice_{name}", text)
        if name not in ("list", "import"):
            made.add_argument("name", metavar="NAME", help="name of the voice")
        return made

    add = action("add", "Save the voice of a recording under a name; a voice of that name is replaced.")
    _add_recording(add)
    _add_transcript(add)
    add.add_argument(
        "--licence", "--license", default="", type=types.text, metavar="TEXT", help="what it may be used for"
    )
    action("list", "Print the names of the saved voices.")
    action("show", "Print what a saved voice contains.")
    action("remove", "Forget a saved voice.")
    export = action("export", "Write a saved voice to a file, for another model's folder or another person.")
    export.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="file to write")
    import_ = action("import", "Add a voice from a file; a file made by a model of other sizes is refused.")
    import_.add_argument("file", type=Path, metavar="FILE", help="written by `voice export`")
    import_.add_argument("--name", metavar="NAME", help="name of the voice here (default: the file's)")
    add_tools(commands, command)
    add_serve(commands, command)
    return top


def _add_recording(parser: Any, required: bool = True) -> None:
    parser.add_argument("--ref-audio", "--prompt-wav", dest="prompt_wav", required=required, type=Path, metavar="FILE",
                        help="recording of the voice, 30 s at most")  # fmt: skip


def _add_transcript(parser: Any, required: bool = True) -> None:
    parser.add_argument("--ref-text", "--prompt-text", dest="prompt_text", required=required, type=types.text,
                        metavar="TEXT", help="what is said in the recording, word for word")  # fmt: skip


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write: .wav, .flac, .mp3, .ogg, .opus; - for standard output (default: speech.wav, or the next "
        "name that is free; none with --play)",
    )
    parser.add_argument("--play", action="store_true", help="play it while it is made; needs the extra [play]")
    parser.add_argument(
        "--stream", action="store_true", help="make it chunk by chunk, so that playback can start early"
    )
    parser.add_argument(
        "--format", choices=("wav", "raw"), default="wav",
        help="of standard output: wav, or raw 16-bit little-endian mono samples at 24000 Hz (default: wav)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the last line as JSON")
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="X", help="tempo; not with --stream (default: 1.0, as learnt)"
    )
    parser.add_argument(
        "--reset-hop", action="store_true", help="fix of the original: each piece starts with a short chunk"
    )
    parser.add_argument(
        "--causal-final", action="store_true", help="fix of the original: keep the mask in the last chunk"
    )
    parser.add_argument(
        "--no-incremental", action="store_true", help="recompute all speech so far for each chunk, as the original does"
    )
    parser.add_argument(
        "--plain", action="store_true", help="keep the plain layers, which follow the original step by step; slower"
    )
    parser.add_argument(
        "--max-cache-bytes",
        type=types.size,
        metavar="SIZE",
        help="what a stream may keep between chunks, such as 500M or 2G (default: a quarter of the device's memory)",
    )


def _add_raw_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--raw-prompt",
        action="store_true",
        help=f"the original's law for prompt and text: refuse them without {END_OF_PROMPT}; speak a text with <|...|> "
        "in it as it is, in one piece however long; cut others at .?!;: and, with Chinese characters, at 。？！；：、. "
        f"Default: '{PREAMBLE}{END_OF_PROMPT}' is put before the words of the recording, the instruction or the text, "
        "and every text is spelled out and cut, at the full stops of any script, a long sentence at commas or blanks",
    )
