"""Load test of a server, some minutes: many clients, clients that hang up, random requests; and its memory.

python -m tests.port.server_load MLX_FOLDER --voice me

Compares each answer bit for bit with the same request alone. Rows that decode together give the same tokens as alone
unless two tokens are equally likely up to rounding, which happens in no request of this test. Prints one line for each
part; exits with 1 if any was wrong.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import soundfile

WORDS = ("The morning train is late.", "How many people?", "The rain stopped, and the clock says twelve.")
LONG = " ".join([WORDS[0]] * 100)
FORMATS = ("wav", "pcm", "flac", "mp3", "opus")


@contextmanager
def server(folder: str) -> Iterator[tuple[str, int, Path]]:
    """Address, process and log of a server."""
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "log"
        command = [sys.executable, "-m", "port", "serve", "--model", folder, "--port", "0"]
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield re.match(r"(\S+) speaks", process.stdout.readline())[1], process.pid, log
        finally:
            process.terminate()
            process.wait()


def memory(pid: int) -> float:
    """Resident memory of a process, MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def sound(asked: dict[str, Any], got: httpx.Response) -> bytes:
    """What to compare of an answer: its bytes, or the samples of opus, whose files hold a random number."""
    got.raise_for_status()
    if asked["response_format"] != "opus":
        return got.content
    return soundfile.read(io.BytesIO(got.content), dtype="int16")[0].tobytes()


def wait_idle(client: httpx.Client, seconds: float = 60) -> bool:
    """Wait until the server has no work; False if it still has after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        health = client.get("/health").json()
        if (health["active"], health["waiting"]) == (0, 0):
            return True
        time.sleep(0.05)
    return False


def many(client: httpx.Client, pid: int, voice: str, clients: int, requests: int) -> bool:
    """Streams and whole answers in all formats, each compared with the same request alone; memory by request."""
    kinds = [
        dict(input=text, voice=voice, response_format=kind, stream=stream, seed=seed)
        for seed, kind in enumerate(FORMATS)
        for text in WORDS
        for stream in (False, True)
    ]
    answers = [(asked, client.post("/v1/audio/speech", json=asked)) for asked in kinds]
    # With some seeds, random weights end a text at once, and the request is refused.
    kinds = [asked for asked, got in answers if got.status_code == 200]
    alone = [sound(asked, got) for asked, got in answers if got.status_code == 200]
    order = [random.Random(0).randrange(len(kinds)) for _ in range(requests)]
    used: list[float] = []

    def ask(i: int) -> bool:
        equal = sound(kinds[i], client.post("/v1/audio/speech", json=kinds[i])) == alone[i]
        used.append(memory(pid))
        return equal

    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        wrong = list(pool.map(ask, order)).count(False)
    first, last = max(used[:50]), max(used[-50:])
    took, grown = time.monotonic() - started, 100 * (last / first - 1)
    print(f"{clients} clients, {requests} requests of {len(kinds)} kinds in {took:.0f} s: {wrong} wrong", flush=True)
    print(f"peak of the first 50 {first:.0f} MB, of the last 50 {last:.0f} MB ({grown:+.1f} %)", flush=True)
    return not wrong and last <= 1.05 * first


def hang_ups(client: httpx.Client, voice: str, clients: int) -> bool:
    """Clients that leave a long text midway, half of them while they wait."""

    def leave(i: int) -> None:
        asked = dict(input=LONG, voice=voice, response_format="pcm", stream=i % 2 == 0, seed=i)
        with (
            suppress(httpx.TimeoutException),
            client.stream("POST", "/v1/audio/speech", json=asked, timeout=1 + i % 5) as got,
        ):
            for _ in got.iter_raw():
                return

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(leave, range(clients)))
    started = time.monotonic()
    idle = wait_idle(client)
    print(f"{clients} clients hung up: idle {idle} after {time.monotonic() - started:.1f} s", flush=True)
    return idle


def random_requests(client: httpx.Client, log: Path, voice: str, seconds: float) -> bool:
    """Random requests, right and wrong; none may get a status of 500 or above or leave a traceback in the log."""
    draw, statuses = random.Random(1), dict[int, int]()
    values: list[Any] = [None, True, 0, -1, 1e308, "", "x", "me\0", "../x", "é" * 300, [], {}, [[]], 2**70]
    values += [voice, WORDS[0], "pcm"]
    names = ["input", "voice", "model", "response_format", "speed", "stream", "stream_format", "seed", "instructions"]
    paths = ["/v1/audio/speech"] * 6 + ["/v1/audio/voices"] * 2
    paths += ["/v1/audio/voices/x", "/health", "/", "/v1/models", "/%00"]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        body: dict[str, Any] = {"input": WORDS[1], "voice": voice, "response_format": "pcm", "seed": draw.randrange(9)}
        for _ in range(draw.randrange(3)):
            body[draw.choice(names)] = draw.choice(values)
        content = json.dumps(body).encode()
        if draw.random() < 0.3:
            at = draw.randrange(len(content))
            content = content[:at] + draw.randbytes(draw.randrange(9)) + content[at + draw.randrange(9) :]
        kind = draw.choice(["application/json"] * 5 + ["multipart/form-data; boundary=b", "text/plain", ""])
        headers = {"Content-Type": kind} | draw.choice([{}] * 5 + [{"Host": "x"}, {"Origin": "null"}])
        method = draw.choice(["POST"] * 8 + ["GET", "DELETE", "PUT"])
        status = client.request(method, draw.choice(paths), content=content, headers=headers).status_code
        statuses[status] = statuses.get(status, 0) + 1
    tracebacks, lines = log.read_text().count("Traceback"), log.read_text().count("\n")
    print(f"{sum(statuses.values())} random requests: {dict(sorted(statuses.items()))}; {tracebacks} tracebacks in "
          f"{lines} lines of the log", flush=True)  # fmt: skip
    return max(statuses) < 500 and not tracebacks and wait_idle(client)


def main() -> int:
    """Run all parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a converted model with a saved voice")
    parser.add_argument("--voice", default="me")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--hang-ups", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300)
    asked = parser.parse_args()
    with server(asked.folder) as (url, pid, log), httpx.Client(base_url=url, timeout=300) as client:
        done = [
            many(client, pid, asked.voice, asked.clients, asked.requests),
            hang_ups(client, asked.voice, asked.hang_ups),
            random_requests(client, log, asked.voice, asked.seconds),
        ]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
