"""Batches of utterances: resuming, failing lines, and equal files for any number of ranks."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from parity_tests.speech_support import SYSTEM, write_voice
from port.app import batch, cli
from port.app.manifest import Utterance
from port.batched.together import together
from port.files.errors import Refused
from port.frontend.frontend import CosyVoiceFrontEnd

pytestmark = pytest.mark.robust

ROOT = Path(__file__).parents[2]
LINES = (
    dict(id="vc", source_wav="source.wav", prompt_wav="prompt.wav"),
    dict(id="zero", mode="zero-shot", text="Hi.", prompt_text=f"{SYSTEM}Hello.", prompt_wav="prompt.wav"),
    dict(id="broken", source_wav="missing.wav", prompt_wav="prompt.wav"),
    dict(id="vc-fast", mode="vc", source_wav="source.wav", prompt_wav="prompt.wav", speed=1.5),
    dict(id="seeded", text=f"{SYSTEM}Hi.", prompt_wav="prompt.wav", seed=7),
    dict(id="hurried", text=f"{SYSTEM}Hi.", prompt_wav="prompt.wav", speed=1e9),  # fails after decoding its tokens
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    write_voice(folder / "prompt.wav", 0.6, 16000)
    write_voice(folder / "source.wav", 0.8, 16000, 190)
    (folder / "manifest.jsonl").write_text("\n\n".join(map(json.dumps, LINES)), encoding="utf-8")
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def alone(model, manifest, tmp_path_factory):
    """The output folder of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert cli.main(arguments(model, manifest, out)) == 1  # two lines are broken
    return out


def arguments(model, manifest, out):
    return ["batch", str(manifest), "--model", str(model), "--out", str(out), "--seed", "3"]


def sounds(out):
    """Contents by file name: samples of WAV files, bytes of any other."""
    paths = [path for path in out.iterdir() if path.is_file()]
    return {p.name: soundfile.read(p, dtype="int16")[0] if p.suffix == ".wav" else p.read_bytes() for p in paths}


def assert_same(one, other, said=""):
    """Equal up to rounding: other utterances in the batch may move a sample by one 16-bit step."""
    assert one.keys() == other.keys(), said
    assert one["results.jsonl"] == other["results.jsonl"], said
    for name in one.keys() - {"results.jsonl"}:
        assert len(one[name]) == len(other[name]), name
        assert np.abs(one[name].astype(int) - other[name]).max() <= 1, name


def launch(ranks, model, manifest, out, *further):
    """Start ranks by `mlx.launch`, from the checkout."""
    script = "import sys; from port.app.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [str(Path(sys.executable).parent / "mlx.launch"), "-n", str(ranks), "--backend", "ring"]
    command += [
        "--starting-port",
        str(40000 + os.getpid() % 20000),
        "--cwd",
        str(ROOT),
        "--",
        "env",  # before 0.32 mlx.launch takes a file named here for a Python script, even Python itself
        sys.executable,
        "-c",
        script,
    ]
    return subprocess.Popen(
        [*command, *arguments(model, manifest, out), *further],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_it_speaks_every_line_and_says_which_failed(alone, manifest):
    results = [json.loads(line) for line in (alone / "results.jsonl").read_text().splitlines()]
    assert [r["id"] for r in results] == [line["id"] for line in LINES]
    assert [r["status"] for r in results] == ["done", "done", "failed", "done", "done", "failed"]
    assert "missing.wav" in results[2]["error"] and "speed 1e+09 would turn" in results[5]["error"]
    by_name = {r["id"]: r for r in results}
    assert by_name["vc"]["seconds"] == pytest.approx(1.5 * by_name["vc-fast"]["seconds"], rel=0.1)
    assert set(sounds(alone)) == {"results.jsonl", *(r["file"] for r in results if r["status"] == "done")}


def test_a_second_run_does_only_what_is_missing(model, manifest, alone, monkeypatch):
    before = sounds(alone)
    (alone / "zero.wav").unlink()
    spoken, real = [], batch._prepared
    monkeypatch.setattr(batch, "_prepared", lambda line, *given: spoken.append(line["id"]) or real(line, *given))
    assert cli.main(arguments(model, manifest, alone)) == 1
    assert spoken == ["zero", "broken", "hurried"]
    assert_same(sounds(alone), before)
    cli.main([*arguments(model, manifest, alone)[:-1], "4"])  # another seed is another request
    assert spoken[3:] == [line["id"] for line in LINES]
    cli.main(arguments(model, manifest, alone))
    assert_same(sounds(alone), before)


def test_two_ranks_make_the_same_files(model, manifest, alone, tmp_path):
    process = launch(2, model, manifest, tmp_path / "out")
    said, _ = process.communicate(timeout=200)
    assert_same(sounds(tmp_path / "out"), sounds(alone), said)


def test_one_by_one_makes_the_same_files(model, manifest, alone, tmp_path):
    assert cli.main([*arguments(model, manifest, tmp_path / "out"), "--batch-size", "1"]) == 1
    assert_same(sounds(tmp_path / "out"), sounds(alone))


def test_the_size_of_the_batch(model, manifest, tmp_path, monkeypatch):
    """It is the requested size, or what device and memory allow; each utterance is recorded as soon as it is done."""
    sizes, recorded, out = [], [], tmp_path / "out"

    def watched(model, asked, size):
        sizes.append(size)
        for made in together(model, asked, size):
            recorded.append(len(list((out / batch.RECORDS).glob("*.json"))))
            yield made

    monkeypatch.setattr(batch, "together", watched)
    batch.run_batch(manifest, out, str(model), batch_size=2)
    assert recorded == [*range(len(LINES))]
    monkeypatch.setattr(batch, "together", lambda model, asked, size: sizes.append(size) or ())
    monkeypatch.setattr(batch, "default_batch_size", lambda _: 5)
    batch.run_batch(manifest, tmp_path / "other", str(model))
    assert sizes == [2, 5]


def test_a_killed_rank_is_told_of_and_its_lines_can_be_spoken_later(model, manifest, alone, tmp_path):
    out = tmp_path / "out"
    process = launch(2, model, manifest, out, "--batch-size", "1")
    try:
        deadline = time.monotonic() + 150
        while not list(out.glob("*.wav")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(rank_of(process), signal.SIGKILL)
        said, _ = process.communicate(timeout=200)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (out / "results.jsonl").exists(), said
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    left = [result["id"] for result in results if result.get("error") == batch.LEFT]
    assert left and f"{len(left)} of {len(LINES)} utterances remain; run it again" in said, said
    process = launch(2, model, manifest, out)
    said, _ = process.communicate(timeout=200)
    assert_same(sounds(out), sounds(alone), said)


def test_an_end_while_the_model_is_loaded_is_told_of(model, manifest, tmp_path, monkeypatch, capsys):
    """Another rank may die while this one still loads the model."""
    monkeypatch.setattr(batch, "load_voice", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert cli.main(arguments(model, manifest, tmp_path / "out")) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "error: interrupted; 6 of 6 utterances remain; run it again\n"
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [result["error"] for result in results] == [batch.LEFT] * len(LINES)


def test_an_end_while_lines_are_spoken_keeps_those_that_are_done(model, manifest, tmp_path, monkeypatch, capsys):
    def ends(*given):
        for done, (line, made) in enumerate(together(*given)):
            yield line, made
            if done == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(batch, "together", ends)
    assert cli.main(arguments(model, manifest, tmp_path / "out")) == 130
    assert " of 6 utterances remain; run it again\n" in capsys.readouterr().err
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert sum(result.get("error") == batch.LEFT for result in results) == 3
    for result in results:
        assert result["status"] == "failed" or len(sounds(tmp_path / "out")[result["file"]])


def test_a_recording_that_lines_share_is_encoded_once(model, manifest, tmp_path, monkeypatch):
    """Lines of every mode share it, and at most `MOST_RECORDINGS` are kept."""
    encoded, plain = [], CosyVoiceFrontEnd.extract_speech_token
    monkeypatch.setattr(
        CosyVoiceFrontEnd, "extract_speech_token", lambda *given: encoded.append(given[1].name) or plain(*given)
    )
    cli.main(arguments(model, manifest, tmp_path / "out"))
    assert sorted(Path(name).name for name in encoded) == ["prompt.wav", "source.wav"]
    monkeypatch.setattr(batch, "MOST_RECORDINGS", 1)
    encoded.clear()
    cli.main([*arguments(model, manifest, tmp_path / "other"), "--batch-size", "1"])
    assert len(encoded) > 2


def rank_of(launcher):
    """The process id of one rank."""
    listed = subprocess.run(["ps", "-eo", "pid,pgid,args"], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 2) for line in listed.splitlines()[1:]]
    (*_, last) = [int(pid) for pid, group, args in found if int(group) == launcher.pid and "port.app.cli" in args]
    return last


def test_a_disk_that_takes_no_record_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Refused, match=r"results.jsonl: cannot be written \(No space left on device\)"):
        batch._write_atomically(tmp_path / "results.jsonl", "")


@pytest.mark.parametrize("rank", [0, 1])
def test_two_batches_do_not_mix(model, manifest, tmp_path, capsys, rank):
    """A lock of any rank of another batch refuses this one, even if this one has only one rank."""
    lock = tmp_path / "out" / batch.RECORDS / f".rank{rank}"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert cli.main(arguments(model, manifest, tmp_path / "out")) == 1
    assert "another batch is writing there" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.wav"))


def test_no_line_stops_the_others(model, manifest, tmp_path, monkeypatch):
    lines = [
        dict(id="first", source_wav="source.wav", prompt_wav="prompt.wav"),
        '{"id": "huge", "source_wav": "source.wav", "prompt_wav": "prompt.wav", "speed": 1' + "0" * 400 + "}",
        '{"id": "endless", "source_wav": "source.wav", "prompt_wav": "prompt.wav", "speed": 1' + "0" * 5000 + "}",
        '{"id": "seeded", "text": "x", "spk": "nobody", "seed": 1' + "0" * 5000 + "}",
        '{"id": "odd", "source_wav": "source.wav", "prompt_wav": "prompt.wav", "speed": NaN}',
        dict(id="日" * 100, source_wav="source.wav", prompt_wav="prompt.wav"),
        dict(id="fails", text="x", spk="nobody"),
        dict(id="zero", source_wav="source.wav", prompt_wav="prompt.wav", speed=0),
        dict(id="nul", source_wav="a\0b", prompt_wav="prompt.wav"),
        dict(id=7, source_wav="source.wav", prompt_wav="prompt.wav", seed=None, text=None, mode=None),
        dict(id="日" * 60, source_wav="source.wav", prompt_wav="prompt.wav"),
    ]
    path = manifest.parent / "mixed.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    real = Utterance.speak

    def breaks(self, *given):
        if self.id == "fails":
            raise ZeroDivisionError
        return real(self, *given)

    monkeypatch.setattr(Utterance, "speak", breaks)
    for _ in range(2):  # the second run reads the records of the first
        assert cli.main(arguments(model, path, tmp_path / "out")) == 1
        results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
        assert {r["id"]: r.get("error") for r in results} == {
            "first": None,
            "huge": "speed 1" + "0" * 39 + " is no tempo; give a number above 0",
            "endless": "speed inf is no tempo; give a number above 0",
            "seeded": "seed: a float cannot stand here",
            "odd": "speed nan is no tempo; give a number above 0",
            "日" * 100: "the id has more than 200 bytes, too many for the name of a file",
            "fails": "ZeroDivisionError",
            "zero": "speed 0 is no tempo; give a number above 0",
            "nul": results[8]["error"],
            "7": None,
            "日" * 60: None,
        }
        assert "cannot be read as audio" in results[8]["error"]
    assert (tmp_path / "out" / "7.wav").is_file()
