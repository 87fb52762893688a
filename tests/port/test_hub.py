"""Converted folders from a hub on this machine: revisions, the cache, and what is refused."""

import json

import pytest

from convert.conversion import convert_folder
from convert.hub import find_source
from port.cosyvoice3 import CosyVoice3
from port.files.errors import Refused
from port.files.hub import find_folder
from tests.support.cli_support import MODES, assert_one_line, heard
from tests.support.fake_hub import Repo, read_folder

pytestmark = pytest.mark.part("files")


@pytest.fixture(scope="module")
def folder(official, tmp_path_factory):
    """A small conversion, whatever checkpoint this run tests."""
    out = tmp_path_factory.mktemp("converted") / "out"
    convert_folder(find_source(str(official)), out)
    return out


@pytest.fixture
def converted(hub, folder):
    repo = hub.repos["someone/mlx"] = Repo()
    files = read_folder(folder)
    commit = repo.commit(files | {"README.md": b"card", "asset/big.safetensors": b"x"})
    return repo, commit, files


def test_a_converted_folder_is_fetched(hub, converted):
    _, commit, files = converted
    folder = find_folder("someone/mlx")
    assert folder.name == commit
    assert read_folder(folder) == files
    assert find_folder("someone/mlx", revision=commit) == folder
    CosyVoice3.from_pretrained("someone/mlx")


def test_voices_of_a_converted_folder_are_fetched(converted):
    repo, _, files = converted
    repo.commit(more := files | {"voices/me.safetensors": b"x"})
    assert read_folder(find_folder("someone/mlx")) == more


def test_revisions_of_a_converted_folder(hub, converted):
    repo, commit, files = converted
    newer = repo.commit(files | {"audit.json": b"{}"})
    assert find_folder("someone/mlx").name == newer
    assert find_folder("someone/mlx", commit).name == commit
    with pytest.raises(Refused, match=r"has no revision 'v9'"):
        CosyVoice3.from_pretrained("someone/mlx", revision="v9")


def test_a_converted_folder_without_network(hub, converted, monkeypatch):
    folder = find_folder("someone/mlx")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert find_folder("someone/mlx") == folder
    with pytest.raises(Refused, match="cannot be reached"):
        find_folder("someone/else")


def test_a_repository_that_is_not_converted(hub, official):
    hub.repos["someone/original"] = Repo()
    hub.repos["someone/original"].commit(read_folder(official))
    with pytest.raises(Refused, match="someone/original: holds no converted model"):
        CosyVoice3.from_pretrained("someone/original")
    assert not hub.downloads()


@pytest.mark.parametrize("find", [find_folder, find_source])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nothing", "./nothing: no such folder; give"),
        ("../nothing", "../nothing: no such folder; give"),
        ("/nothing/at/all", "/nothing/at/all: no such folder; give"),
        ("~/nothing", "~/nothing: no such folder; give"),
        ("nothing", "nothing: no such folder; give"),
        ("file", "file: not a folder; give"),
        ("build/mxl", "build/mxl: no such folder; did you mean build/mlx?"),
        ("./build/mxl", "./build/mxl: no such folder; did you mean build/mlx?"),
        ("build/other", "no such repository, or it is private; check the name, or log in with `hf auth login`; nor is"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b: an address; give owner/name"),
    ],
)
def test_a_mistyped_path(hub, monkeypatch, tmp_path, find, name, said):
    """In the port as in the converter: what cannot be a hub id is a missing folder."""
    (tmp_path / "here" / "build" / "mlx").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "file").touch()
    with pytest.raises(Refused) as refusal:
        find(name)
    assert said in str(refusal.value)
    assert bool(hub.log) == (name == "build/other")


@pytest.mark.parametrize("find", [find_folder, find_source])
def test_a_mistyped_path_without_network(hub, monkeypatch, tmp_path, find):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Refused, match=r"cannot be reached \(\w+\); nor is there such a folder here, and the cache"):
        find("bulid/mlx")


@pytest.mark.parametrize(("refuses", "said"), [((403, "GatedRepo"), "consent"), ((401, "RepoNotFound"), "no such")])
def test_a_hub_that_refuses(hub, converted, refuses, said):
    converted[0].refuses = refuses
    with pytest.raises(Refused, match=said) as error:
        CosyVoice3.from_pretrained("someone/mlx")
    assert "\n" not in str(error.value)


# ---- the command line


@pytest.mark.meta
def test_every_command_takes_a_revision(converted, run, recordings, tmp_path):
    repo, commit, _ = converted
    repo.commit({"README.md": b"main has moved on and holds no model"})
    prompt, source = recordings
    where = ("--model", "someone/mlx", "--revision", commit)
    voice = ("--prompt-wav", prompt)
    (tmp_path / "lines.jsonl").write_text(json.dumps({"id": "a", "source_wav": str(source), "prompt_wav": str(prompt)}))
    for arguments in (
        ("say", *where, *voice, *MODES["cross-lingual"], "-o", tmp_path / "say.wav"),
        ("vc", *where, *voice, "--source-wav", source, "-o", tmp_path / "vc.wav"),
        ("batch", tmp_path / "lines.jsonl", *where, "--out", tmp_path / "out"),
    ):
        code, _, err = run(*arguments)
        assert code == 0, err
    for path in ("say.wav", "vc.wav", "out/a.wav"):
        heard(tmp_path / path)
    assert run("voice", "add", "bob", *where, *voice, *MODES["zero-shot"][2:])[0] == 0
    assert run("voice", "list", *where)[:2] == (0, "bob\n")
    assert run("voice", "remove", "bob", *where)[0] == 0
    assert run("voice", "list", *where)[:2] == (0, "")


def test_a_revision_that_is_not_there(converted, run, folder):
    for model, revision, said in (
        ("someone/mlx", "v9", "has no revision 'v9'"),
        (folder, "main", "is a folder here and has no revisions"),
    ):
        assert_one_line(run("voice", "list", "--model", model, "--revision", revision), 1, said)
