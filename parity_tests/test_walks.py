"""Whole stages with the checkpoint's weights: every named part, chained and isolated, and tokens to samples."""

import dataclasses
import tracemalloc
from itertools import count

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.faults.patch import patched
from mlx_parity.sides import walk as walking
from mlx_parity.sides.walk import first_divergence, walk
from parity_tests import trace
from parity_tests.cases import all_cases
from parity_tests.faults import PACKAGES, catalogue
from parity_tests.walks import walks
from port.config import CosyVoice3Config
from port.llm.sampling import SeededDraws as PortDraws
from reference.llm.sampling import SeededDraws as ReferenceDraws

NAMES = tuple(walks(CosyVoice3Config()))


# The part that a walk is evidence for, if it is not the stage in its name.
PARTS = {
    "walk.speech_tokenizer": "frontend.speech_tokenizer.S3TokenizerV3",
    "walk.speaker": "frontend.speaker.CAMPPlus",
    "walk.whole": "model",
}
WALKS = [pytest.param(n, marks=pytest.mark.part(PARTS.get(n) or n.split(".")[1])) for n in NAMES]


@pytest.mark.parametrize("name", WALKS)
def test_walk(parity, name):
    parity.add(walk(parity.models, walks(parity.models.config)[name]))


@pytest.mark.part("llm.speech_lm.CosyVoice3LM")
@pytest.mark.float32
@pytest.mark.parametrize("seed", range(3))
def test_seeded_speech_tokens_are_equal(parity, seed):
    """With the checkpoint's language model and the usual sampling."""
    models = parity.models
    plan = walks(models.config, seed)["walk.llm"].inputs
    texts = [plan[k] for k in ("text", "prompt_text", "prompt_speech_token")]
    expected = list(models.single.llm.inference(*(torch.from_numpy(t) for t in texts), ReferenceDraws(seed)))
    found = list(models.port.llm.inference(*(mx.array(t) for t in texts), PortDraws(seed)))
    assert expected, "the reference generated nothing"
    assert found == expected


@pytest.mark.meta
def test_a_walk_finds_the_part_that_is_wrong(parity, monkeypatch):
    """A fault deep inside: its own part is named first, as isolated."""
    from port.flow import layers

    plan = walks(parity.models.config)["walk.flow.full"]

    def swapped(self, emb):
        shift, scale = original(self, emb)
        return scale, shift

    original = layers.AdaLayerNormZero_Final.modulation
    monkeypatch.setattr(layers.AdaLayerNormZero_Final, "modulation", swapped)
    first = first_divergence(walk(parity.models, plan))
    assert first is not None
    assert first.module == "flow.layers.AdaLayerNormZero_Final"
    assert first.kind == "isolated"


@pytest.mark.meta
def test_the_part_that_fails_first_is_named_although_another_ran_before(parity, monkeypatch):
    """What counts is the time of the wrong call, not of a part's first call."""
    from port.flow import layers

    def late(part, wrong):
        original, calls = part.__call__, count()

        def call(self, *args, **kwargs):
            y = original(self, *args, **kwargs)
            return y + 0.1 if next(calls) == wrong else y

        monkeypatch.setattr(part, "__call__", call)

    late(layers.FeedForward, 9)
    late(layers.TimestepEmbedding, 5)
    rows = walk(parity.models, walks(parity.models.config)["walk.flow.full"], isolated=False)
    broken = [row.module for row in rows if row.reading.status == "FAIL"]
    parts = [m for m in dict.fromkeys(broken) if m in ("flow.layers.FeedForward", "flow.layers.TimestepEmbedding")]
    assert parts == ["flow.layers.FeedForward", "flow.layers.TimestepEmbedding"]


@pytest.mark.meta
def test_a_walk_keeps_most_tensors_on_disk(parity, monkeypatch):
    spools = []

    class Watched(walking.Spool):
        def __exit__(self, *error):
            spools.append(self.size)
            super().__exit__(*error)

    monkeypatch.setattr(walking, "Spool", Watched)
    plan = walks(parity.models.config)["walk.flow.full"]
    tracemalloc.start()
    try:
        walk(parity.models, plan, isolated=False)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < spools[0] / 4


@pytest.mark.meta
def test_a_part_that_one_side_skips_is_an_error(parity, monkeypatch):
    from port.vocoder import generator

    monkeypatch.setattr(generator.ResBlock, "__call__", lambda self, x, state=None: x)
    rows = walk(parity.models, walks(parity.models.config)["walk.vocoder.end"])
    assert any(r.reading.status == "ERROR" and "reference only" in r.reading.message for r in rows)


@pytest.mark.meta
def test_a_port_that_raises_is_an_error(parity):
    plan = walks(parity.models.config)["walk.vocoder.end"]
    short = dataclasses.replace(plan, to_port={"speech_feat": lambda x: np.zeros((1, 4, 3), np.float32)})
    (row,) = walk(parity.models, short)
    assert row.reading.status == "ERROR"


@pytest.mark.meta
def test_trace_says_where_a_fault_shows(monkeypatch, capsys):
    """On the command line: the worst elements with their values, and a map of the error in budgets."""
    assert trace.main(["flow.adaln_final"]) == 0
    assert "none over budget" in capsys.readouterr().out
    fault = next(fault for fault in catalogue() if fault.name == "adaln_final_shift_before_scale")
    with patched(fault, PACKAGES):
        assert trace.main(["flow.adaln_final"]) == 1
    lines = capsys.readouterr().out.split("first over budget:")[1].splitlines()
    (case,) = (case for case in all_cases() if case.name == "flow.adaln_final")
    rows, columns = (min(n, most) for n, most in zip(case.draw()["x"].shape[-2:], (8, 32), strict=True))
    grid = [line.strip() for line in lines if line.strip().startswith("|")]
    assert len(grid) == rows and {len(line) for line in grid} == {columns + 2}
    assert any(digit in "".join(grid) for digit in "123456789"), "nothing ten budgets wrong"
    text = "\n".join(lines)
    for part in ("flow.adaln_final.y: ", "isolated: ", "worst elements: index, port"):
        assert part in text, part


@pytest.mark.meta
def test_trace_takes_numbers_of_the_original(capsys):
    assert trace.main(["golden.adaln_final"]) == 0
    fault = next(fault for fault in catalogue() if fault.name == "adaln_final_shift_before_scale")
    with patched(fault, PACKAGES):
        assert trace.main(["golden.adaln_final"]) == 1
    assert "golden.adaln_final.y" in capsys.readouterr().out.split("first over budget:")[1]


@pytest.mark.meta
def test_trace_refuses_what_it_does_not_know(capsys):
    assert trace.main(["no.such.case"]) == 2
    assert "'list' prints all names" in capsys.readouterr().err
    assert trace.main(["walk.flow.full", "--checkpoint", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("trace: --checkpoint: nowhere is no official checkpoint")
    assert trace.main(["list"]) == 0
    assert {"flow.adaln_final", "golden.snake", "walk.whole"} <= set(capsys.readouterr().out.split())
