"""Model cards and uploads, against a small hub on this machine that speaks the commit and LFS protocols."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from convert import publish, run
from convert.conversion import convert_folder
from convert.hub import RELEASE, find_source
from mlx_parity.report.data import WeightFile
from mlx_parity.report.model import save
from port.cosyvoice3 import CosyVoice3
from port.files.errors import Refused
from reports import build
from reports.card import OFFICIAL, card
from tests.support.convert_support import refused_by
from tests.support.fake_hub import Repo, read_folder
from tests.support.synthetic_report import make, provenance

pytestmark = pytest.mark.meta
NAME = "me/CosyVoice3-mlx"
METRIC = {"metric": "mel SNR", "stage": "flow", "unit": "dB", "value": 31.25, "rounding": 33.0, "variety": 2.0}
QUALITY = {"precision": "4 bits", "layers": 2, "metrics": [METRIC | {"limit": 21.0, "status": "PASS"}]}


def compared(source, folder):
    """Rows and quality.json of a comparison, for the card."""
    (folder / "quality.json").write_text(json.dumps(QUALITY))
    return [
        {"name": "walk.llm/llm", "status": "PASS", "ratio": 1.5},
        {"name": "walk.flow/flow", "status": "SKIP", "ratio": None},
    ]


@pytest.fixture(scope="module")
def written(parity, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "mlx"
    convert_folder(find_source(str(parity.models.source)), folder, compared)
    return folder


@pytest.fixture
def converted(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "mlx"))


@pytest.fixture
def command(converted, capsys):
    """Publish the folder: exit code, stderr without progress bars, stdout."""

    def call(*flags):
        code = publish.main(["--mlx-path", str(converted), "--upload-repo", NAME, *flags])
        captured = capsys.readouterr()
        assert "hf_secret" not in captured.err + captured.out
        assert "Traceback" not in captured.err
        said = [line for line in captured.err.splitlines() if "publish: " in line]  # a progress bar may stand before it
        assert len(said) == bool(code)
        return code, "".join(said), captured.out

    return call


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def head(text):
    return yaml.safe_load(text.split("---")[1])


# ---- the card


def test_card_of_a_folder(converted, parity):
    text = card(converted)
    audit = json.loads((converted / "audit.json").read_text())
    assert head(text)["library_name"] == "mlx" and head(text)["pipeline_tag"] == "text-to-speech"
    assert "base_model" not in head(text) and "license" not in head(text)  # an unknown checkpoint
    for file in audit["files"].values():
        assert f"| `{file['name']}` | {file['bytes']:,} | `{file['sha256']}` |" in text
    assert audit["verdict"] in text
    assert "1 PASS, 1 SKIP of 2 tensors; worst 1.5x the reference's own float32 error at `walk.llm/llm`" in text
    assert "| mel SNR | 31.2 | dB | 33 | 21 | PASS |" in text
    assert str(parity.models.source.parent) not in text  # no path of this machine
    assert str(parity.models.source.parent) not in (converted / "config.json").read_text()


def test_card_of_the_release(converted):
    def change(config):
        config["provenance"] |= {"source": OFFICIAL, "revision": RELEASE.revision}
        config["quantization"] = {"bits": 4, "group_size": 64}

    edit(converted / "config.json", change)
    text = card(converted, repo=NAME)
    assert RELEASE.repo == OFFICIAL
    found = head(text)
    assert found["license"] == "apache-2.0"
    assert found["base_model"] == OFFICIAL and found["base_model_relation"] == "quantized"
    assert "mlx" in found["tags"]
    assert f"[{OFFICIAL}](https://huggingface.co/{OFFICIAL}) at revision `{RELEASE.revision}`" in text
    assert "academic purposes only" in text
    assert "# CosyVoice3-mlx" in text and f'from_pretrained("{NAME}")' in text


def test_card_with_a_report(converted, tmp_path, capsys):
    report = make()
    save(report, tmp_path / "report.json")
    assert build.main([str(tmp_path / "report.json"), "--card", str(converted)]) == 0
    assert f"card: {converted / 'README.md'}" in capsys.readouterr().out
    text = (converted / "README.md").read_text()
    assert "The whole suite: PASS: " in text
    assert "| flow | PASS |" in text
    assert build.main(["--card", str(converted)]) == 0
    assert "The whole suite" not in (converted / "README.md").read_text()


@pytest.mark.parametrize("name", ["config.json", "audit.json", "quality.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_card_of_a_damaged_folder(converted, capsys, name, content):
    if content is None:
        (converted / name).unlink()
    else:
        (converted / name).write_text(content)
    if content is None and name == "quality.json":
        assert card(converted)
        return
    with pytest.raises(Refused) as error:
        card(converted)
    assert "\n" not in str(error.value)
    assert build.main(["--card", str(converted)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_build_needs_a_report_or_a_folder(capsys):
    with pytest.raises(SystemExit) as stop:
        build.main([])
    assert stop.value.code == 2


# ---- uploads


def test_upload(hub, converted, command):
    (converted / "voices").mkdir()
    (converted / "voices" / "me.safetensors").write_bytes(b"somebody's voice")
    code, line, said = command()
    assert code == 0, line
    assert f"{hub.url}/{NAME}/" in said
    repo = hub.repos[NAME]
    sent = repo.commits[repo.branches["main"]]
    local = read_folder(converted)
    assert sent == {name: data for name, data in local.items() if name != "voices/me.safetensors"}
    assert "README.md" in sent and "quality.json" in sent
    assert hub.tokens == {"Bearer hf_secretsecretsecret"}
    CosyVoice3.from_pretrained(NAME)


def test_upload_with_the_conversion(hub, parity, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "parity_check", compared)
    out = tmp_path / "out"
    assert run.main(["--hf-path", str(parity.models.source), "--mlx-path", str(out), "--upload-repo", NAME]) == 0
    assert "model.safetensors" in hub.repos[NAME].commits[hub.repos[NAME].branches["main"]]
    arguments = ["--hf-path", str(parity.models.source), "--mlx-path", str(tmp_path / "more"), "--upload-repo", "x"]
    assert run.main(arguments) == 2
    assert not (tmp_path / "more").exists()


def test_a_readme_of_the_users_own_is_neither_lost_nor_sent(hub, converted, command):
    (converted / "README.md").write_text("mine")
    refused_by(command(), "README.md: was not written by this command; move it away")
    assert (converted / "README.md").read_text() == "mine"
    assert NAME not in hub.repos


def test_a_readme_on_the_hub_is_not_replaced_without_a_word(hub, converted, command):
    hub.repos[NAME] = Repo()
    hub.repos[NAME].commit({"README.md": b"mine"})
    assert f"note: {NAME} has its own README.md" in command()[2]
    assert "note:" not in command()[2]


def test_base_model_and_license_come_from_flags(hub, converted, command):
    assert command("--base-model", "me/tuned", "--license", "cc-by-4.0")[0] == 0
    found = head(converted.joinpath("README.md").read_text())
    assert (found["base_model"], found["license"]) == ("me/tuned", "cc-by-4.0")
    for flags in (["--base-model", "x"], ["--license", "a\nb"], ["--base-model", "a/b\n- c"]):
        with pytest.raises(SystemExit):
            command(*flags)


def test_uploading_again_changes_nothing(hub, converted, command):
    assert command()[0] == 0
    first = hub.repos[NAME].branches["main"]
    assert command()[0] == 0
    assert hub.repos[NAME].branches["main"] == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda audit: audit["parity"][0].update(status="FAIL"), "is not verified, 1 of 2 tensors failed"),
        (lambda audit: audit["parity"][0].update(status="SKIP"), "nothing was compared"),
        (lambda audit: audit["parity"].clear(), "nothing was compared"),
        (lambda audit: audit["parity"].append(3), "1 of 3 tensors failed"),
        (lambda audit: audit.pop("parity"), "does not record what was verified"),
        (lambda audit: audit.pop("written"), "does not record what was verified"),
        (lambda audit: audit["written"].update({"../mlx/config.json": "0"}), "changed since"),
    ],
)
def test_a_folder_that_did_not_pass_is_not_published(hub, converted, command, change, said):
    edit(converted / "audit.json", change)
    refused_by(command(), said)
    assert hub.log == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_is_not_published(hub, converted, command, name):
    with (converted / name).open("ab") as file:
        file.write(b" ")
    refused_by(command(), f"{name}: was changed since it was verified")
    assert hub.log == []


def test_a_report_must_be_of_these_weights_and_pass(hub, converted, command, tmp_path):
    path = tmp_path / "report.json"
    report = make(broken=True)
    save(report, path)
    refused_by(command("--report", str(path)), "its verdict is FAIL")
    save(make(), path)
    refused_by(command("--report", str(path)), "judges other weights")
    audit = json.loads((converted / "audit.json").read_text())
    files = [f for f in audit["files"].values() if f["name"].endswith((".pt", ".onnx"))]
    weights = tuple(WeightFile(f["name"], f["sha256"], f["bytes"]) for f in files)
    save(make(provenance=replace(provenance(), weights=weights)), path)
    code, line, _ = command("--report", str(path))
    assert code == 0, line
    assert "The whole suite" in (converted / "README.md").read_text()


@pytest.mark.parametrize(
    ("refuses", "said"), [((403, None), "refuses access (HTTP 403)"), ((401, None), "log in with `hf auth login`")]
)
def test_a_hub_that_refuses(hub, command, refuses, said):
    hub.repos[NAME] = Repo(refuses=refuses)
    hub.repos[NAME].commit({})
    refused_by(command(), said)


def test_a_large_file_that_the_hub_rejects(hub, command):
    hub.fail_uploads = 100
    refused_by(command(), "the hub answers HTTP 400")
    assert "model.safetensors" not in hub.repos[NAME].commits[hub.repos[NAME].branches["main"]]


def test_an_invalid_repository_name(command, converted):
    assert publish.main(["--mlx-path", str(converted), "--upload-repo", "no name"]) == 2
