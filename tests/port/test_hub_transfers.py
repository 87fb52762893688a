"""Transfers from a hub that fail: reported in one line, retried where that can help. And other layouts there."""

import sys
import types

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from convert import run
from convert.hub import find_source
from port.files.errors import Refused
from tests.support.fake_hub import Repo, read_folder

pytestmark = pytest.mark.robust

REPO = "me/tuned"


@pytest.fixture
def tuned(hub, official):
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit(read_folder(official))
    return hub


@pytest.mark.parametrize("package", [False, True])
@pytest.mark.skipif(not huggingface_hub.__version__.startswith("0."), reason="later versions know no hf_transfer")
def test_hf_transfer_without_its_package_and_with_one_that_fails(tuned, monkeypatch, package):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER", True)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 16)

    def download(url, filename, max_files, chunk_size, headers, parallel_failures, max_retries, callback):
        raise Exception("broke")  # as the package does

    monkeypatch.setitem(sys.modules, "hf_transfer", types.SimpleNamespace(download=download) if package else None)
    with pytest.raises(Refused, match="hf_transfer") as refusal:
        find_source(REPO)
    assert "unset" in str(refusal.value)


class XetDownloadError(Exception):
    """The name that a later client may use."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CAS service error : Reqwest Error: HTTP status 500, domain: https://x/?token=hf_secret"),
        errors.XetError("refused"),
        errors.XetAuthorizationError("refused"),
        errors.XetDownloadError("cut"),
        XetDownloadError("cut"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("times", [2, 99])
def test_errors_of_the_native_client_are_retried_and_reported(tuned, monkeypatch, error, times):
    download, calls = huggingface_hub.snapshot_download, []

    def failing(*arguments, **more):
        calls.append(arguments)
        if len(calls) <= times:
            raise error
        return download(*arguments, **more)

    monkeypatch.setattr("huggingface_hub.snapshot_download", failing)
    if times == 2:
        assert find_source(REPO).folder.is_dir()
        assert len(calls) == 3
        return
    with pytest.raises(Refused) as refusal:
        find_source(REPO)
    assert len(calls) == 5
    line = str(refusal.value)
    assert "the transfer broke off" in line and "HF_HUB_DISABLE_XET=1" in line
    assert "secret" not in line


def test_a_checkpoint_of_safetensors(hub, official, tmp_path, capsys):
    files = read_folder(official)
    for name in ("llm", "flow", "hift"):
        state = torch.load(official / f"{name}.pt", weights_only=True)
        state.pop("llm.model.lm_head.weight", None)
        save_file(state, tmp_path / "x")
        del files[f"{name}.pt"]
        files[f"{name}.safetensors"] = (tmp_path / "x").read_bytes()
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit(files)
    assert run.main(["--hf-path", REPO, "--mlx-path", str(tmp_path / "out")]) == 0, capsys.readouterr().err


def test_a_name_that_may_have_been_a_folder(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert run.main(["--hf-path", "models/CosyVoice3", "--mlx-path", "out"]) == 1
    line = capsys.readouterr().err
    assert "no such repository" in line and "nor is there such a folder here" in line
