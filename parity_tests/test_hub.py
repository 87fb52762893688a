"""Getting a checkpoint from the hub, against a small hub on this machine; and a conversion that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest

import convert.hub
from convert import run
from convert.hub import RELEASE, Known, Release, needed_files, require_space
from convert.partial import MARK, partial_folder
from parity_tests.fake_hub import CHUNK, Repo, digest, read_folder, sha256
from port.cosyvoice3 import CosyVoice3
from port.hub import find_folder
from port.storage import WeightsError
from reference.synthesize import synthesize

pytestmark = pytest.mark.meta
ROOT = Path(__file__).resolve().parents[1]
REPO = "FunAudioLLM/Tiny-CosyVoice3"
UNUSED = {"README.md": b"card", "config.json": b"{}", "flow.decoder.estimator.fp32.onnx": b"x" * 5000}


def passing(source, folder):
    return [{"checkpoint": "stand-in", "status": "PASS"}]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official") / "tiny"
    synthesize(folder, "tiny", seed=3)
    shutil.copy(folder / "llm.pt", folder / "llm.rl.pt")
    return read_folder(folder)


@pytest.fixture
def release(hub, official, monkeypatch):
    """The official repository of the fake hub, its files known as the real ones are."""
    repo = hub.repos[REPO] = Repo()
    commit = repo.commit(official | UNUSED)
    table = {name: Known(len(official[name]), digest(name, official[name])) for name in (*needed_files(), "llm.rl.pt")}
    found = Release(REPO, commit, table)
    monkeypatch.setattr(convert.hub, "RELEASE", found)
    return found


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command on the hub's repository: exit code, the line on stderr, stdout."""

    def call(*flags, out=None, repo=REPO):
        monkeypatch.setattr(run, "parity_check", passing)
        capsys.readouterr()
        code = run.main(["--hf-path", repo, "--mlx-path", str(out or tmp_path / "results" / "out"), *flags])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("convert: ")]
        assert "hf_secret" not in captured.err + captured.out
        if code:
            assert len(lines) == 1, captured.err
            assert "Traceback" not in captured.err
            assert not (tmp_path / "results").exists()
        return code, "".join(lines), captured.out

    return call


def change_table(monkeypatch, release, name, known):
    monkeypatch.setattr(convert.hub, "RELEASE", Release(release.repo, release.revision, {**release.files, name: known}))


# ---- the real table


def test_the_table_names_every_needed_file_once():
    assert set(RELEASE.files) == {*needed_files("base"), *needed_files("rl")}
    assert len(RELEASE.revision) == 40
    for name, known in RELEASE.files.items():
        assert len(known.digest) == (64 if name.endswith((".pt", ".onnx")) else 40)
    assert 4.3e9 < sum(RELEASE.files[name].bytes for name in needed_files()) < 4.5e9


# ---- downloads


def test_a_release_is_fetched_checked_and_pinned(hub, release, command, tmp_path):
    hub.repos[REPO].commit(UNUSED)  # main has moved on and holds nothing of use
    code, line, said = command()
    assert code == 0, line
    assert "note:" not in said
    fetched = {path.split("/", 5)[5] for path, _ in hub.downloads()}
    assert fetched == set(needed_files())
    config = (tmp_path / "results" / "out" / "config.json").read_text()
    assert release.revision in config and REPO in config


def test_llm_rl_takes_the_other_file(hub, release, command, tmp_path):
    assert command("--llm", "rl")[0] == 0
    assert hub.downloads("llm.rl.pt") and not hub.downloads("llm.pt")
    assert '"llm.rl.pt"' in (tmp_path / "results" / "out" / "config.json").read_text()


def test_what_is_in_the_cache_needs_no_network(hub, release, command, tmp_path):
    assert command()[0] == 0
    asked = len(hub.log)
    assert command(out=tmp_path / "again")[0] == 0
    assert len(hub.log) == asked


def test_a_broken_connection_is_gone_on_with(hub, release, command, official):
    hub.cut["llm.pt"] = 2
    assert command()[0] == 0
    starts = [int(span[6:-1]) if span else 0 for _, span in hub.downloads("llm.pt")]
    size = len(official["llm.pt"])
    assert len(starts) == 3
    assert 0 == starts[0] < size // 2 - CHUNK < starts[1] <= size // 2 < starts[2] < size


@pytest.mark.skipif(not huggingface_hub.__version__.startswith("0."), reason="later versions begin the file again")
def test_a_later_run_goes_on_with_an_interrupted_download(hub, release, command, monkeypatch, official):
    monkeypatch.setattr("port.hub.ATTEMPTS", 1)
    hub.cut["llm.pt"] = 1
    code, line, _ = command()
    assert code == 1 and "cannot be reached" in line
    tried = len(hub.downloads("llm.pt"))
    assert command()[0] == 0
    (span,) = [span for _, span in hub.downloads("llm.pt")[tried:]]
    assert int(span[6:-1]) > len(official["llm.pt"]) // 2 - CHUNK


def test_a_hub_that_is_gone(hub, release, command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, line, _ = command()
    assert code == 1
    assert "the hub cannot be reached" in line and "cache does not hold" in line


def test_offline_mode(hub, release, official, tmp_path):
    """In processes of their own: huggingface_hub reads the environment once."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    script = f"from convert.hub import find_source; print(find_source('{REPO}').folder)"

    def find(**more):
        call = [sys.executable, "-c", script]
        return subprocess.run(call, cwd=ROOT, env=environment | more, capture_output=True, text=True)

    refused = find(HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to ask the hub, and the cache does not hold" in refused.stderr.splitlines()[-1]
    fetched = find()
    assert fetched.returncode == 0, fetched.stderr
    asked = len(hub.log)
    offline = find(HF_HUB_OFFLINE="1")
    assert offline.stdout == fetched.stdout
    assert len(hub.log) == asked


@pytest.mark.parametrize(
    ("refuses", "said"),
    [
        ((403, "GatedRepo"), "ask for consent"),
        ((401, "RepoNotFound"), "no such repository, or it is private"),
        ((403, None), "refuses access (HTTP 403)"),
        ((418, None), "the hub answers HTTP 418"),
    ],
)
def test_a_hub_that_refuses(hub, release, command, refuses, said):
    hub.repos[REPO].refuses = refuses
    code, line, _ = command()
    assert code == 1
    assert said in line and REPO in line


def test_no_such_repository(hub, release, command):
    code, line, _ = command(repo="nobody/nothing")
    assert code == 1 and "nobody/nothing: the hub has no such repository" in line


def test_no_such_revision(hub, release, command):
    code, line, _ = command("--revision", "v9")
    assert code == 1 and "has no revision 'v9'" in line


def test_missing_file(hub, release, command, official):
    hub.repos[REPO].commit({name: data for name, data in official.items() if name != "hift.pt"})
    code, line, _ = command("--revision", "main")
    assert code == 1 and "has no hift.pt" in line
    assert not hub.downloads()


def test_wrong_size_is_found_before_the_download(hub, release, command, monkeypatch, official):
    known = release.files["flow.pt"]
    change_table(monkeypatch, release, "flow.pt", Known(known.bytes + 1, known.digest))
    code, line, _ = command()
    assert code == 1
    assert f"flow.pt: {known.bytes} bytes, the published file has {known.bytes + 1}" in line
    assert not hub.downloads()


def test_a_file_that_arrives_short(hub, release, command, official):
    hub.listed["flow.pt"] = len(official["flow.pt"])
    hub.served["flow.pt"] = official["flow.pt"][:-100]
    code, line, _ = command()
    assert code == 1
    assert "flow.pt" in line


@pytest.mark.parametrize("name", ["hift.pt", "cosyvoice3.yaml"])
def test_wrong_content(hub, release, command, official, name):
    """Sent with the right size, under the right digest."""
    data = bytearray(official[name])
    data[len(data) // 2] ^= 1
    hub.served[name] = bytes(data)
    code, line, _ = command()
    assert code == 1
    assert f"{name}: " in line


def test_a_wrong_hash_names_the_file(hub, release, command, monkeypatch, official):
    known = release.files["hift.pt"]
    change_table(monkeypatch, release, "hift.pt", Known(known.bytes, "0" * 64))
    code, line, _ = command()
    assert code == 1
    assert f"hift.pt: its digest is {known.digest}, the published file's is {'0' * 64}; remove" in line


def test_another_revision_prints_what_it_found(hub, release, command, official):
    other = official | {"llm.pt": official["llm.rl.pt"], "hift.pt": resaved(official["hift.pt"])}
    hub.repos[REPO].commit(other, "tuned")
    code, line, said = command("--revision", "tuned")
    assert code == 0, line
    notes = [line for line in said.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "hift.pt is not the one of" in notes[0] and sha256(other["hift.pt"]) in notes[0]


def test_another_revision_is_still_held_to_the_hubs_own_digests(hub, release, command, official):
    hub.repos[REPO].commit(official | {"extra.txt": b"x"}, "tuned")
    data = bytearray(official["flow.pt"])
    data[-1] ^= 1
    hub.served["flow.pt"] = bytes(data)
    code, line, _ = command("--revision", "tuned")
    assert code == 1 and "flow.pt" in line


def resaved(data):
    import io

    import torch

    file = io.BytesIO()
    torch.save(torch.load(io.BytesIO(data), weights_only=True) | {"epoch": 3}, file)
    return file.getvalue()


def test_too_little_disk_is_told_before_the_download(hub, release, command, monkeypatch, official):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1_000_000))
    code, line, _ = command()
    assert code == 1
    total = sum(len(official[name]) for name in needed_files()) / 1e6
    parts = f"({total:.2f} MB to download, {total:.2f} MB to write)"
    assert f"too little disk: {2 * total / 1e3:.2f} GB needed {parts}, 1.00 MB free" in line
    assert not hub.downloads()


def test_purposes_on_one_disk_are_added(tmp_path, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100))
    require_space({"to write": (tmp_path / "not" / "yet", 100)})
    with pytest.raises(ValueError, match="too little disk"):
        require_space({"to download": (tmp_path, 60), "to write": (tmp_path / "a", 60)})
    with pytest.raises(ValueError, match="to write"):
        require_space({"to write": (tmp_path, 101)})


# ---- a conversion that is killed

WAITS = """
import sys, time
from pathlib import Path
from convert import run
def wait(source, folder):
    Path(sys.argv[3]).touch()
    time.sleep(60)
run.parity_check = wait
run.main(["--hf-path", sys.argv[1], "--mlx-path", sys.argv[2]])
"""


@pytest.fixture
def killed(official, tmp_path):
    """A conversion stopped with SIGKILL after its files were written: source and output."""
    source, out, ready = tmp_path / "source", tmp_path / "results" / "out", tmp_path / "ready"
    for name, data in official.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(source), str(out), str(ready)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ready.exists()
    yield process, source, out
    process.kill()
    process.wait()


def test_a_killed_conversion_leaves_nothing_that_looks_finished(killed, monkeypatch, capsys):
    process, source, out = killed
    monkeypatch.setattr(run, "parity_check", passing)
    arguments = ["--hf-path", str(source), "--mlx-path", str(out)]
    assert run.main(arguments) == 2
    assert "another conversion is writing it" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in out.parent.iterdir()] == ["out.partial"]
    with pytest.raises(WeightsError):  # config.json and weights are there, the name is not
        CosyVoice3.from_pretrained(out)
    assert run.main(arguments) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not (out / MARK).exists()


def test_a_folder_in_the_way_is_kept(official, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "parity_check", passing)
    partial = partial_folder(tmp_path / "out")
    partial.mkdir()
    (partial / "mine.txt").write_text("keep")
    assert run.main(["--hf-path", str(tmp_path), "--mlx-path", str(tmp_path / "out")]) == 2
    assert "not left by a conversion" in capsys.readouterr().err
    assert (partial / "mine.txt").read_text() == "keep"


# ---- converted folders on the hub


@pytest.fixture
def converted(hub, parity):
    repo = hub.repos["someone/mlx"] = Repo()
    files = read_folder(parity.models.folder)
    commit = repo.commit(files | {"README.md": b"card", "asset/big.safetensors": b"x"})
    return repo, commit, files


def test_a_converted_folder_is_fetched(hub, converted):
    _, commit, files = converted
    folder = find_folder("someone/mlx")
    assert folder.name == commit
    assert read_folder(folder) == files
    assert find_folder("someone/mlx", revision=commit) == folder
    CosyVoice3.from_pretrained("someone/mlx")


def test_revisions_of_a_converted_folder(hub, converted):
    repo, commit, files = converted
    newer = repo.commit(files | {"audit.json": b"{}"})
    assert find_folder("someone/mlx").name == newer
    assert find_folder("someone/mlx", commit).name == commit
    with pytest.raises(WeightsError, match=r"has no revision 'v9'"):
        CosyVoice3.from_pretrained("someone/mlx", revision="v9")


def test_a_converted_folder_without_network(hub, converted, monkeypatch):
    folder = find_folder("someone/mlx")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert find_folder("someone/mlx") == folder
    with pytest.raises(WeightsError, match="cannot be reached"):
        find_folder("someone/else")


def test_a_repository_that_is_not_converted(hub, release):
    with pytest.raises(WeightsError, match=f"{REPO}: holds no converted model"):
        CosyVoice3.from_pretrained(REPO)
    assert not hub.downloads()


@pytest.mark.parametrize(("refuses", "said"), [((403, "GatedRepo"), "consent"), ((401, "RepoNotFound"), "no such")])
def test_a_converted_folder_that_is_refused(hub, converted, refuses, said):
    converted[0].refuses = refuses
    with pytest.raises(WeightsError, match=said) as error:
        CosyVoice3.from_pretrained("someone/mlx")
    assert "\n" not in str(error.value)
