"""Measured arithmetic of both sides: a reference that computes in less than float32 makes the run an error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_parity.adapter import Adapter
from mlx_parity.judge import judge
from mlx_parity.sides import regime
from mlx_parity.sides.truth import run_reference, torch
from parity_tests import trace
from parity_tests.cases import all_cases
from parity_tests.degraded import KINDS, degraded, degraded_mlx

pytestmark = pytest.mark.meta

ROOT = Path(__file__).parents[2]
CASES = {case.name: case for case in all_cases()}
# Cases of each kind of operation, and those that each degraded machine affects.
PRODUCTS = ("flow.attention", "flow.feed_forward.tanh", "flow.cfm.full", "llm.qwen2", "speech_tokenizer.block")
CONVOLUTIONS = ("vocoder.decode.end", "speaker.tdnn", "flow.lookahead.context", "vocoder.conv.upsample.k7.s3.n11")
SPOILED = {
    "bfloat16 products": PRODUCTS + CONVOLUTIONS,
    "tf32": PRODUCTS + CONVOLUTIONS,
    "float16 convolutions": CONVOLUTIONS,
}


class _Wrong(Adapter):
    """A port with a relative error of 5e-4 everywhere."""

    name = "wrong"

    def run(self, part, config, state, inputs, call):
        truth = run_reference(part, config, state, inputs, call, torch.float64)
        return {k: (v * (1 + 5e-4)).astype(np.float32) if v.dtype.kind == "f" else v for k, v in truth.items()}


def test_this_machine_computes_in_float32():
    found = regime.arithmetic()
    assert regime.not_float32(found) == {}
    assert all(0 < error < regime.FLOAT32_ERROR for error, _ in found.values())
    regime.require_float32()


@pytest.mark.parametrize("kind", KINDS)
def test_a_degraded_reference_is_named(kind, capsys):
    with degraded(kind):
        problems = regime.not_float32(regime.arithmetic())
        with pytest.raises(regime.NotFloat32, match="the reference"):
            regime.require_float32()
        assert trace.main(["flow.attention"]) == 2
    assert list(problems) == ["reference"]
    assert capsys.readouterr().err.startswith("trace: the reference (PyTorch) does not compute in float32")


def test_a_degraded_port_is_named():
    with degraded_mlx():
        assert list(regime.not_float32(regime.arithmetic())) == ["port"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_passes_before_a_degraded_reference(kind):
    """A single case is enough: the reference's error is too large for float32."""
    for name in SPOILED[kind]:
        with degraded(kind):
            rows = judge(CASES[name], _Wrong())
        statuses = {row.reading.status for row in rows if row.reading.dtype.startswith("float")}
        assert statuses == {"ERROR"}, (kind, name, statuses)
        assert any("does not compute in float32" in row.reading.message for row in rows)


@pytest.mark.parametrize("kind", ["bfloat16 products", "float16 convolutions"])
def test_a_run_with_a_degraded_reference_is_an_error(kind, tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "parity_tests.degraded", "-q", "parity_tests", "-k", "flow.grn"]
    done = subprocess.run(
        [*command, "--report", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"DEGRADED": kind},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "the reference (PyTorch) does not compute in float32" in done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["verdict"]["status"] == "ERROR"
    assert [row["name"] for row in report["rows"]] == ["arithmetic.reference"]
    assert report["provenance"]["precision"]["reference"]["regime"] != "float32"
