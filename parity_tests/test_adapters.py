"""Judging a foreign port through its adapter: what passes, what fails, and that nothing passes unproved."""

import sys
from unittest import mock

import numpy as np
import pytest

import port.flow.layers
from mlx_parity.adapter import Adapter, AdapterError, NotOffered
from mlx_parity.judge import failures, judge
from mlx_parity.report import model, page
from parity_tests.adapters import adapter_names, load_adapter
from parity_tests.adapters.audit_report import lines
from parity_tests.adapters.extra import extra_cases, noise_rows
from parity_tests.adapters.own import OwnPort
from parity_tests.adapters.parts import Parts, PartsAdapter
from parity_tests.audit import audit, main
from parity_tests.cases import all_cases
from parity_tests.toy_port import toy_parts
from port import noise
from reports.cosyvoice3 import WORDING

pytestmark = pytest.mark.meta


@pytest.mark.parametrize("faulty", [False, True], ids=["right", "one fault"])
def test_a_foreign_port_goes_through_the_whole_audit(faulty):
    adapter = PartsAdapter("toy", toy_parts(faulty), {"vocoder.stft": "no spectra"})
    found = audit(adapter, "toy", "vocoder.*")
    verdict, parts = found.verdict, {part.component: part for part in found.components}
    assert verdict.status == ("FAIL" if faulty else "PASS")
    assert parts["vocoder.convolution.CausalConv1d"].status == "PASS"
    assert "looks back only" in parts["vocoder.convolution.CausalConv1d"].checked
    assert parts["vocoder.stft.stft"].status == "SKIP"
    assert "no spectra" in parts["vocoder.stft.stft"].checked
    if faulty:
        assert verdict.first_over_budget == "vocoder.snake.y"
        assert parts["vocoder.generator.Snake"].status == parts["vocoder.generator.ResBlock"].status == "FAIL"
        assert [line.split()[-1] for line in lines(found)[1:-1]] == [
            "vocoder.generator.Snake",
            "vocoder.generator.ResBlock",
        ]
    skipped = sum(row.status == "SKIP" for row in found.rows)
    assert verdict.counts["SKIP"] == skipped > 0
    assert "vocoder.snake.y" in page.render_html(found, WORDING)
    assert f"{skipped} SKIP" in page.render_markdown(found, WORDING)


def test_a_fault_in_a_wrapped_port_is_named_at_its_smallest_part():
    right = port.flow.layers.apply_rotary_pos_emb

    class Turned(OwnPort):
        name = "turned"

        def run(self, *arguments):
            def wrong(t, rope):
                cos, sin = rope
                return right(t, (cos, -sin))

            with mock.patch.object(port.flow.layers, "apply_rotary_pos_emb", wrong):
                return super().run(*arguments)

    found = audit(Turned(), "turned", "flow.[ar]*")
    assert found.verdict.first_over_budget == "flow.rotary.y"
    statuses = {part.component.rpartition(".")[2]: part.status for part in found.components}
    assert statuses["apply_rotary_pos_emb"] == statuses["Attention"] == "FAIL"
    assert statuses["AdaLayerNormZero"] == statuses["RotaryEmbedding"] == "PASS"


def test_a_port_that_offers_nothing_never_passes():
    found = audit(PartsAdapter("empty", Parts()), "empty", "flow.masks*")
    assert found.verdict.status == "ERROR"
    assert found.verdict.counts["SKIP"] == len(found.rows) > 0
    assert {part.status for part in found.components} == {"SKIP"}


def test_a_port_that_raises_or_returns_something_else_is_an_error():
    parts = Parts()

    @parts.offers("vocoder.generator.Snake")
    def snake(job):
        raise RuntimeError("no such kernel")

    @parts.offers("flow.layers.GRN")
    def grn(job):
        return {"output": job.inputs["x"]}

    @parts.offers("flow.masks.subsequent_chunk_mask")
    def mask(job):
        return {"mask": np.full((job.call["size"],) * 2, np.nan)}

    adapter = PartsAdapter("broken", parts)
    by_name = {case.name: case for case in all_cases()}
    (row,) = judge(by_name["vocoder.snake"], adapter)
    assert row.reading.status == "ERROR" and "no such kernel" in row.reading.message
    assert {row.reading.status for row in judge(by_name["flow.grn"], adapter)} == {"ERROR"}
    assert {row.reading.status for row in judge(by_name["flow.masks.chunk.7.8"], adapter)} == {"ERROR"}
    found = audit(adapter, "broken", "vocoder.snake")
    assert found.verdict.status == "ERROR"


@pytest.mark.parametrize(("name", "noise"), [("flow.decoder", "noise"), ("vocoder.inference", "sine_waves")])
def test_a_part_that_needs_its_noise_is_not_offered_without(name, noise):
    parts, case = Parts(), next(case for case in all_cases() if case.name == f"{name}.fixed_noise")

    @parts.offers(case.part.path)
    def part(job):
        raise RuntimeError(f"was given {job.given(noise)}")

    (row,) = judge(case, PartsAdapter("needs its noise", parts))
    assert row.reading.status == "SKIP"
    assert f"the adapter runs inference with {noise} given, not by itself" in row.reading.message


def test_one_path_is_offered_once():
    parts = Parts()
    parts.offers("flow.layers.GRN")(lambda job: {})
    with pytest.raises(AdapterError, match="twice"):
        parts.offers("flow.layers.GRN")(lambda job: {})
    with pytest.raises(AdapterError, match="twice"):
        parts.offers("flow.layers.Attention", "flow.layers.Attention")


# The template


def test_the_template_is_an_adapter_that_runs(tmp_path, capsys):
    assert "template" in adapter_names()
    adapter = load_adapter("template")
    assert isinstance(adapter, Adapter) and adapter.versions()
    assert main(["template", "--report", str(tmp_path), "--only", "vocoder.*"]) == 0
    assert "2 parts conform, 0 diverge" in capsys.readouterr().out
    found = model.load(tmp_path / "report.json")
    assert found.provenance.adapter == "template"
    assert found.verdict.counts["SKIP"] > found.verdict.counts["PASS"] > 15
    with pytest.raises(NotOffered, match="does not say"):
        adapter.noise("rand_noise", (1, 80, 4))


def test_a_wrong_argument_is_one_line(tmp_path, capsys):
    for words in (
        ["nobody"],
        ["../base"],
        ["template", "--only", "nose.*"],
        ["template", "--dtype", "float16", "--report", str(tmp_path)],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("audit: ") and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_cannot_be_loaded_says_why(monkeypatch):
    with pytest.raises(AdapterError, match="no adapter is named nobody; there are"):
        load_adapter("nobody")
    with pytest.raises(AdapterError, match="has no function make"):
        load_adapter("parts")
    monkeypatch.setitem(sys.modules, "mlx_audio", None)
    for loaded in [name for name in sys.modules if name.startswith("parity_tests.adapters.mlx_audio_plus")]:
        monkeypatch.delitem(sys.modules, loaded)
    with pytest.raises(AdapterError, match=r"audit mlx_audio_plus installs it"):
        load_adapter("mlx_audio_plus")


# Cases that only an audit runs


@pytest.mark.parametrize("case", extra_cases(), ids=lambda case: case.name)
def test_our_own_port_passes_the_cases_of_an_audit(case):
    assert not failures(judge(case, OwnPort()))


def test_the_noise_of_a_port_is_compared_with_the_fixed_buffers():
    class Noisy(OwnPort):
        def __init__(self, factor):
            super().__init__()
            self.factor = np.float32(factor)

        def noise(self, name, shape):
            truth = noise.rand_noise(shape[2]) if name == "rand_noise" else noise.sine_waves(shape[1])[None]
            return truth * self.factor

    assert [row.reading.status for row in noise_rows(Noisy(1))] == ["PASS", "PASS"]
    assert [row.reading.status for row in noise_rows(Noisy(1.00001))] == ["FAIL", "FAIL"]

    class Silent(OwnPort):
        noise = Adapter.noise

    assert [row.reading.status for row in noise_rows(Silent())] == ["SKIP", "SKIP"]
    assert [row.reading.status for row in noise_rows(OwnPort())] == ["PASS", "PASS"]


def test_a_port_in_half_precision_is_measured_but_not_judged():
    found = audit(PartsAdapter("toy", toy_parts(faulty=True)), "toy", "vocoder.snake", "float16")
    assert found.rows[0].status == "REDUCED"
    assert found.verdict.status != "PASS"
