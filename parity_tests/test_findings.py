"""Findings about a foreign port: they explain its failures, name existing cases, and are reported when stale."""

import json
from fnmatch import fnmatchcase
from unittest import mock

import pytest

from mlx_parity.adapter import AdapterError
from mlx_parity.judge import failures
from parity_tests.adapters import load_adapter
from parity_tests.adapters.extra import extra_cases
from parity_tests.adapters.findings import FOLDER, load_findings
from parity_tests.adapters.parts import PartsAdapter
from parity_tests.audit import judge_all
from parity_tests.cases import all_cases
from parity_tests.toy_port import toy_parts

pytestmark = pytest.mark.meta


def known_names():
    names = {f"{case.name}.{output}" for case in [*all_cases(), *extra_cases()] for output in case.part.outputs}
    return names | {"noise.rand_noise", "noise.sine_waves"}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_every_finding_names_existing_cases(name):
    findings = load_findings(name)
    assert findings.causes
    for finding in findings.causes:
        for glob in (*finding.cases, *finding.follows):
            assert any(fnmatchcase(row, glob) for row in known_names()), f"{finding.title}: {glob}"
        assert all((finding.what, finding.where, finding.original, finding.fix, finding.proof))
        assert ":" in finding.where, "a file and a line"


def test_findings_explain_failures_and_go_stale(tmp_path):
    entry = dict(title="T", what="W.", where="f:1", original="O.", fix="F.", proof="P.")
    content = {"findings": [entry | {"cases": ["vocoder.snake*"], "follows": ["vocoder.resblock*"]}]}
    (tmp_path / "toy.json").write_text(json.dumps(content))
    findings = load_findings("toy", tmp_path)
    broken, right = (PartsAdapter("toy", toy_parts(faulty)) for faulty in (True, False))
    rows = judge_all(broken, "vocoder.[sr]*")
    said = {row.name: findings.explain(row).reading.message for row in rows}
    assert "W. In f:1" in said["vocoder.snake.y"]
    assert "Follows from: T." in said["vocoder.resblock.k3.y"]
    assert findings.stale(rows) == []
    assert findings.stale(judge_all(right, "vocoder.snake")) == ["T"]
    unknown = [load_findings("nobody").explain(row).reading for row in rows]
    assert all("not written down" in r.message for r in unknown if r.status == "FAIL")
    (tmp_path / "toy.json").write_text('{"findings": [{"title": "T"}]}')
    with pytest.raises(AdapterError, match=r"toy\.json"):
        load_findings("toy", tmp_path)


# mlx-audio-plus itself, where it is installed


@pytest.fixture(scope="module")
def plus():
    pytest.importorskip("mlx_audio", reason="mlx-audio-plus is not installed; `make audit PORT=mlx_audio_plus` does it")
    return load_adapter("mlx_audio_plus")


@pytest.mark.parametrize("glob", ["flow.dit.*", "flow.decoder.prompt.chunked.*", "vocoder.f0*", "llm.layer"])
def test_mlx_audio_plus_passes_where_it_agrees(plus, glob):
    assert not failures(judge_all(plus, glob))


def test_the_recorded_cause_explains_mlx_audio_plus(plus):
    """With the padding of the source's spectrum repaired, its vocoder passes."""
    import mlx.core as mx
    from mlx_audio.tts.models.cosyvoice3 import hifigan

    broken = [row.name for row in judge_all(plus, "vocoder.decode.*") if row.reading.status != "PASS"]
    findings = load_findings("mlx_audio_plus")
    assert len(broken) == 5 and all(findings.of(name) for name in broken)
    zero_padded = hifigan.stft

    def reflected(x, n_fft, hop_len, window):
        edge = n_fft // 2
        x = mx.concatenate([x[:, 1 : edge + 1][:, ::-1], x, x[:, -edge - 1 : -1][:, ::-1]], axis=1)
        with mock.patch.object(mx, "pad", lambda padded, *_: padded):
            return zero_padded(x, n_fft, hop_len, window)

    with mock.patch.object(hifigan, "stft", reflected):
        assert not failures(judge_all(plus, "vocoder.decode.*"))
