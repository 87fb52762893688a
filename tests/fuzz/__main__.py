"""Damage untrusted files at random: every reader must accept them or refuse in one line.

    python -m tests.fuzz [--only GLOB] [--seconds 600 | --inputs N] [--seed N] [--keep DIR]

A reader fails when it raises another exception than the product's own errors, prints more than one line or
unprintable characters, dies, computes longer than `CPU_LIMIT`, takes longer than `TIME_LIMIT`, or grows the process by
more than `MEMORY_LIMIT`. Readers run in a subprocess, and each input is saved before it is read, so a crash keeps it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from tests.fuzz.readers import READERS, REFUSALS, Reader

ROOT = Path(__file__).parents[2]
CPU_LIMIT = 5  # seconds for one input; valid ones take some milliseconds
TIME_LIMIT = 20  # the same on the clock of a busy machine
MEMORY_LIMIT = 512 << 20  # bytes
CURRENT, FAILURE, TALLY = "current.bin", "failure.txt", "tally.txt"
NUMBERS = ("0", "-1", "1", "255", "65536", "2147483648", "18446744073709551616", "1e309", "-0.0", "NaN", "9" * 400)
WORDS = (
    "null",
    "[]",
    "{}",
    '""',
    "true",
    "[" * 3000,
    "{" * 3000,
    '"\\ud800"',
    "..",
    "/etc/passwd",
    "\x00",
    "!!python/name:os.system",
)
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def damage(data: bytes, rng: random.Random) -> bytes:
    """A copy with one to six changes: bits, bytes, numbers as binary and as text, cuts, repeats, dangerous words."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not changed:
            break
        at = rng.randrange(len(changed))
        # Headers decide more than data.
        at = at if rng.random() < 0.5 else rng.randrange(min(len(changed), 512))
        length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(changed) - at)
        kind = rng.randrange(9)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            edge = rng.choice(EDGES) & ((1 << 8 * size) - 1)
            changed[at : at + size] = edge.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 5:
            del changed[at:]
        elif kind == 6:
            changed[at:at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
        elif kind == 7 and (numbers := list(re.finditer(rb"-?\d[\d.]*", changed))):
            place = rng.choice(numbers)
            changed[place.start() : place.end()] = rng.choice(NUMBERS).encode()
        elif kind == 8 and (values := list(re.finditer(rb'"[^"]*"|\[[^\[\]]*\]', changed))):
            place, other = rng.choice(values), rng.choice(values)
            changed[place.start() : place.end()] = rng.choice((other[0], rng.choice(WORDS).encode()))
    return bytes(changed)


def attempt(reader: Reader, folder: Path) -> tuple[str, str]:
    """Read once: ("read" or "refused", the error message).

    Raises:
        AssertionError: a refusal of more than one line, or one with control characters.
        Exception: whatever the reader should not have raised.
    """
    try:
        reader.read(folder)
    except REFUSALS as error:
        assert "\n" not in str(error).strip(), f"more than one line: {error}"
        assert str(error).isprintable(), f"does not print: {str(error)!r}"
        return "refused", str(error)
    return "read", ""


def work(reader: Reader, state: Path, seconds: float, inputs: int, seed: int) -> None:
    """Read damaged inputs until `seconds` or `inputs` are used up; writes findings and the last input to `state`."""
    rng = random.Random(seed)
    (folder := state / "folder").mkdir(exist_ok=True)
    reader.write(folder)
    part = folder / reader.file
    valid = part.read_bytes()
    assert attempt(reader, folder)[0] == "read", f"{reader.name} refuses a valid file: {attempt(reader, folder)[1]}"
    started = time.monotonic()
    tally = {"read": 0, "refused": 0}
    while sum(tally.values()) < inputs and time.monotonic() - started < seconds:
        content = damage(valid, rng)
        part.unlink()  # another inode: a memory map of the last input may still be open
        part.write_bytes(content)
        (state / CURRENT).write_bytes(content)
        signal.alarm(TIME_LIMIT)
        before, started_at = peak(), time.process_time()
        try:
            tally[attempt(reader, folder)[0]] += 1
        except Exception as error:
            (state / FAILURE).write_text(f"{type(error).__name__}: {error}", encoding="utf-8", errors="replace")
            raise
        signal.alarm(0)
        if (taken := time.process_time() - started_at) > CPU_LIMIT:
            (state / FAILURE).write_text(f"took {taken:.1f} s", encoding="utf-8")
            raise SystemExit(1)
        if (grown := peak() - before) > MEMORY_LIMIT:
            (state / FAILURE).write_text(f"grew by {grown >> 20} MiB", encoding="utf-8")
            raise SystemExit(1)
        (state / TALLY).write_text(f"{tally['read']} {tally['refused']}", encoding="utf-8")


def fuzz(
    reader: Reader, seconds: float, inputs: int, seed: int, keep: Path | None = None
) -> tuple[int, int, str | None]:
    """Run `work` in a subprocess.

    Returns:
        inputs read, inputs refused, and what went wrong (None when nothing did).
    """
    with TemporaryDirectory(prefix="fuzz-") as name:
        state = Path(name)
        command = [sys.executable, "-m", "tests.fuzz", "--work", reader.name, "--state", name]
        command += ["--seconds", str(seconds), "--inputs", str(inputs), "--seed", str(seed)]
        environment = os.environ | {"TMPDIR": name}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        read, refused = map(int, (state / TALLY).read_text().split()) if (state / TALLY).exists() else (0, 0)
        if done.returncode == 0:
            return read, refused, None
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        if (state / FAILURE).exists():
            said = (state / FAILURE).read_text("utf-8", errors="replace")
        elif done.returncode < 0:
            hung = -done.returncode == signal.SIGALRM
            said = f"no answer within {TIME_LIMIT} s" if hung else f"died of {signal.Signals(-done.returncode).name}"
        if keep and (state / CURRENT).exists():
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{reader.name}-{seed}{Path(reader.file).suffix}").write_bytes((state / CURRENT).read_bytes())
        return read, refused, said


def peak() -> int:
    """Peak memory of this process, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="*", metavar="GLOB", help=f"of {', '.join(r.name for r in READERS)}")
    parser.add_argument("--seconds", type=float, default=600, help="for each reader (default 600)")
    parser.add_argument("--inputs", type=int, default=1 << 60, help="at most, for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for inputs that a reader failed on")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        (reader,) = (r for r in READERS if r.name == options.work)
        work(reader, options.state, options.seconds, options.inputs, options.seed)
        return 0
    chosen = [reader for reader in READERS if fnmatchcase(reader.name, options.only)]
    if not chosen:
        parser.error(f"--only {options.only}: no such reader")
    failed = 0
    for reader in tqdm(chosen, desc="fuzz", unit="reader", file=sys.stderr, disable=None):
        read, refused, wrong = fuzz(reader, options.seconds, options.inputs, options.seed, options.keep)
        failed += wrong is not None
        print(
            f"{reader.name:24} {read + refused:8} inputs, {read:7} read, {refused:8} refused  {wrong or 'ok'}",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
