"""The official release from a hub on this machine: what is fetched, how it is checked, and what is refused."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import convert.hub
from convert import run
from convert.audit import port_shapes
from convert.bake import Bake
from convert.hub import needed_files
from convert.quantize import PARTS, Precision
from convert.release import RELEASE, Known, Release
from convert.space import output_bytes, output_layout, output_share, require_space
from port.config import CosyVoice3Config
from tests.support.convert_support import refused_by
from tests.support.fake_hub import CHUNK, Repo, digest, read_folder, sha256

pytestmark = pytest.mark.robust

ROOT = Path(__file__).resolve().parents[2]
REPO = "FunAudioLLM/Tiny-CosyVoice3"
UNUSED = {"README.md": b"card", "config.json": b"{}", "flow.decoder.estimator.fp32.onnx": b"x" * 5000}


@pytest.fixture(scope="session")
def published(official):
    """The files of a release, by name."""
    files = read_folder(official)
    return files | {"llm.rl.pt": files["llm.pt"]}


@pytest.fixture
def release(hub, published, monkeypatch):
    """The official repository on the fake hub, with a table of sizes and digests like the real one's."""
    repo = hub.repos[REPO] = Repo()
    commit = repo.commit(published | UNUSED)
    table = {
        name: Known(len(published[name]), digest(name, published[name])) for name in (*needed_files(), "llm.rl.pt")
    }
    found = Release(REPO, commit, table)
    monkeypatch.setattr(convert.hub, "RELEASE", found)
    return found


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command on the hub's repository: exit code, the line on stderr, stdout."""

    def call(*flags, out=None, repo=REPO):
        monkeypatch.setattr(run, "parity_check", None)
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
    hub.repos[REPO].commit(UNUSED)  # main has moved on and lacks the files
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


def test_cached_files_need_no_network(hub, release, command, tmp_path):
    assert command()[0] == 0
    asked = len(hub.log)
    assert command(out=tmp_path / "again")[0] == 0
    assert len(hub.log) == asked


def test_an_interrupted_download_resumes(hub, release, command, published):
    hub.cut["llm.pt"] = 2
    assert command()[0] == 0
    starts = [int(span[6:-1]) if span else 0 for _, span in hub.downloads("llm.pt")]
    size = len(published["llm.pt"])
    assert len(starts) == 3
    assert 0 == starts[0] < size // 2 - CHUNK < starts[1] <= size // 2 < starts[2] < size


@pytest.mark.skipif(not huggingface_hub.__version__.startswith("0."), reason="later versions restart the file")
def test_a_later_run_resumes_an_interrupted_download(hub, release, command, monkeypatch, published):
    monkeypatch.setattr("port.files.hub.ATTEMPTS", 1)
    hub.cut["llm.pt"] = 1
    refused_by(command(), "cannot be reached")
    tried = len(hub.downloads("llm.pt"))
    assert command()[0] == 0
    (span,) = [span for _, span in hub.downloads("llm.pt")[tried:]]
    assert int(span[6:-1]) > len(published["llm.pt"]) // 2 - CHUNK


def test_a_hub_that_is_gone(hub, release, command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused_by(command(), "the hub cannot be reached", "cache lacks")


@pytest.mark.meta
def test_offline_mode(hub, release, published, tmp_path):
    """In subprocesses: huggingface_hub reads the environment only once."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    script = f"from convert.hub import find_source; print(find_source('{REPO}').folder)"

    def find(**more):
        call = [sys.executable, "-c", script]
        return subprocess.run(call, cwd=ROOT, env=environment | more, capture_output=True, text=True)

    refused = find(HF_HUB_OFFLINE="1")
    said = "HF_HUB_OFFLINE is set, so the hub was not asked; nor is there such a folder here, and the cache lacks"
    assert said in refused.stderr.splitlines()[-1]
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
    refused_by(command(), said, REPO)


def test_no_such_repository(hub, release, command):
    refused_by(command(repo="nobody/nothing"), "nobody/nothing: the hub has no such repository")


def test_no_such_revision(hub, release, command):
    refused_by(command("--revision", "v9"), "has no revision 'v9'")


def test_missing_file(hub, release, command, published):
    hub.repos[REPO].commit({name: data for name, data in published.items() if name != "hift.pt"})
    refused_by(command("--revision", "main"), "has no hift.pt")
    assert not hub.downloads()


def test_wrong_size_is_found_before_the_download(hub, release, command, monkeypatch, published):
    known = release.files["flow.pt"]
    change_table(monkeypatch, release, "flow.pt", Known(known.bytes + 1, known.digest))
    refused_by(command(), f"flow.pt: {known.bytes} bytes, the published file has {known.bytes + 1}")
    assert not hub.downloads()


def test_a_file_that_arrives_short(hub, release, command, published):
    hub.listed["flow.pt"] = len(published["flow.pt"])
    hub.served["flow.pt"] = published["flow.pt"][:-100]
    refused_by(command(), "flow.pt")


@pytest.mark.parametrize("name", ["hift.pt", "cosyvoice3.yaml"])
def test_wrong_content(hub, release, command, published, name):
    """The hub announces the right size and digest but sends other bytes."""
    data = bytearray(published[name])
    data[len(data) // 2] ^= 1
    hub.served[name] = bytes(data)
    refused_by(command(), f"{name}: ")


def test_a_wrong_hash_names_the_file(hub, release, command, monkeypatch, published):
    known = release.files["hift.pt"]
    change_table(monkeypatch, release, "hift.pt", Known(known.bytes, "0" * 64))
    refused_by(command(), f"hift.pt: its digest is {known.digest}, the published file's is {'0' * 64}; remove")


def test_another_revision_prints_what_it_found(hub, release, command, published):
    other = published | {"llm.pt": published["llm.rl.pt"], "hift.pt": resaved(published["hift.pt"])}
    hub.repos[REPO].commit(other, "tuned")
    code, line, said = command("--revision", "tuned")
    assert code == 0, line
    notes = [line for line in said.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "hift.pt is not the one of" in notes[0] and sha256(other["hift.pt"]) in notes[0]


def test_another_revision_is_still_checked_against_the_hubs_digests(hub, release, command, published):
    hub.repos[REPO].commit(published | {"extra.txt": b"x"}, "tuned")
    data = bytearray(published["flow.pt"])
    data[-1] ^= 1
    hub.served["flow.pt"] = bytes(data)
    refused_by(command("--revision", "tuned"), "flow.pt")


def resaved(data):
    file = io.BytesIO()
    torch.save(torch.load(io.BytesIO(data), weights_only=True) | {"epoch": 3}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("flags", "precision"),
    [((), Precision()), (("-q", "--q-group-size", "32"), Precision(bits={"llm": 4}, group_size=32))],
)
def test_too_little_disk_is_refused_beforehand(hub, release, command, monkeypatch, published, flags, precision):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1_000_000))
    download = sum(len(published[name]) for name in needed_files()) / 1e6
    written = output_share(precision) * download
    parts = f"({download:.2f} MB to download, {written:.2f} MB to write)"
    said = f"too little disk: {(download + written) / 1e3:.2f} GB needed {parts}, 1.00 MB free"
    refused_by(command(*flags), said)
    assert not hub.downloads()


@pytest.mark.parametrize("bake_timesteps", [False, True])
@pytest.mark.parametrize(
    "precision",
    [Precision(), Precision("float16"), Precision(bits={"llm": 4}), Precision("bfloat16", tuple(PARTS), {"flow": 8})],
    ids=["float32", "float16", "4-bit", "all parts"],
)
def test_the_estimated_size_of_a_conversion_is_what_it_writes(precision, bake_timesteps):
    """The estimate before a download is within 1 %; the source files also hold names and vocabularies."""
    config = CosyVoice3Config()
    bake = Bake(config) if bake_timesteps else None
    written = output_bytes(output_layout(port_shapes(config), precision, bake).values())
    before = output_share(precision, bake_timesteps) * sum(RELEASE.files[name].bytes for name in needed_files())
    assert before == pytest.approx(written, rel=0.01)


def test_needs_on_one_disk_are_added(tmp_path, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100))
    require_space({"to write": (tmp_path / "not" / "yet", 100)})
    with pytest.raises(ValueError, match="too little disk"):
        require_space({"to download": (tmp_path, 60), "to write": (tmp_path / "a", 60)})
    with pytest.raises(ValueError, match="to write"):
        require_space({"to write": (tmp_path, 101)})
