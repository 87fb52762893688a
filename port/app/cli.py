"""What the commands `python -m port say|vc|batch ...` do; `arguments.py` has their arguments.

Speech goes to a temporary file that is renamed at the end; an interrupted run keeps its audio as NAME.partial.wav.
Progress goes to standard error, the summary to standard output. Exit codes: 0 done, 1 something could not be used,
2 wrong arguments, 128 plus the number of the signal that ended it (130 for Ctrl-C); one line says what happened.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from tqdm import tqdm

from ..batched.spoken import Speech
from ..files.errors import Misused
from ..files.recording import check_recording
from . import benchmark, suite
from . import voice as voice_commands
from .arguments import parser
from .batch import RESULTS_FILE, not_done, run_batch
from .device import use_device
from .output import bar, check_output, give, how, tell
from .say import say
from .server.serve import serve
from .speaking import load_voice


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; returns the exit code."""
    return run(parser().parse_args(argv))


def run(options: argparse.Namespace) -> int:
    """Run the command that was parsed; returns the exit code."""
    try:
        use_device(options.device)
        return COMMANDS[options.run](options) or 0
    except Misused as error:
        return _complain(error, 2)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt as error:
        return _complain(error, 128 + (error.args or (signal.SIGINT,))[0], "interrupted")


def _complain(error: BaseException, code: int, said: str = "") -> int:
    parts = [said or str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    print("error: " + " ".join("; ".join(parts).split()), file=sys.stderr)
    return code


def _vc(options: argparse.Namespace) -> None:
    check_output(options)
    source = check_recording(options.source_wav, voice=False)
    prompt = check_recording(options.prompt_wav)
    voice = load_voice(options.model, options.revision, options.plain, lazy=True)
    with bar(desc="audio", unit="s", unit_scale=True) as progress:

        def speech() -> Speech:
            made = voice.inference_vc(source, prompt, align_prompt=options.align_prompt, **how(options))
            return _measured(made, progress, voice.sample_rate)

        told = give(options, voice, speech)
    tell(options, told)


def _batch(options: argparse.Namespace) -> None:
    more = options.seed, options.revision, options.raw_prompt, options.batch_size
    results = run_batch(options.manifest, options.out, options.model, *more)
    if told := not_done(results):
        raise RuntimeError(f"{options.out}: {'; '.join(told)}")
    print(f"{options.out}: {len(results)} utterances, {RESULTS_FILE}")


def _measured(speech: Speech, progress: tqdm, sample_rate: int) -> Speech:
    """The same speech, with its seconds on the progress bar."""
    for result in speech:
        progress.update(round(result["tts_speech"].shape[1] / sample_rate, 2))
        yield result


COMMANDS = {
    "say": say,
    "vc": _vc,
    "batch": _batch,
    **voice_commands.COMMANDS,
    **benchmark.COMMANDS,
    **suite.COMMANDS,
    "serve": serve,
}
