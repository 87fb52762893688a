"""The suite can fail: every weight and input matters, every branch is reached, and no wrong comparison passes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlx_parity.adapter import Adapter
from mlx_parity.case import normal
from mlx_parity.judge import judge
from mlx_parity.record import Recorded
from mlx_parity.report.codec import plain
from mlx_parity.sides import liveness
from mlx_parity.sides.truth import Reference, reference_state, run_reference, to_numpy, to_torch
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases, case
from parity_tests.parts import recorded
from parity_tests.trace import walk
from parity_tests.walks import walks

pytestmark = pytest.mark.part("liveness")
GOLDEN = Path(__file__).parent / "data" / "golden"
CASES = {c.name: c for c in all_cases()}
# Tensors that cannot affect the output of a walk.
UNREAD = ("lm_head.weight", "inv_freq")


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_a_case_matters(parity, name):
    rows = liveness.liveness(CASES[name])
    parity.keep("liveness", map(plain, rows))
    dead = [f"{row.tensor} moved {row.moved_budgets:.3g} budgets" for row in rows if row.status == "VACUOUS"]
    assert not dead, dead


@pytest.mark.parametrize("name", ["walk.llm", "walk.flow.full", "walk.vocoder.end", "walk.speaker"])
def test_a_sample_of_the_models_tensors_matters(parity, name):
    plan, rng = walks(parity.models.config)[name], np.random.default_rng(1)
    part = getattr(parity.models.double, plan.stage)
    inputs = {d: {k: to_torch(v, d) for k, v in plan.inputs.items()} for d in (torch.float32, torch.float64)}

    def run(model, dtype):
        with torch.inference_mode():
            return {k: to_numpy(v) for k, v in plan.run(model, inputs[dtype]).items()}

    single, truth = run(parity.models.single, torch.float32), run(parity.models.double, torch.float64)
    tensors = {k: v for k, v in part.state_dict().items() if not k.endswith(UNREAD)}
    rows = []
    for key in sorted(rng.permutation(sorted(tensors))[:12]):
        with liveness.changed(tensors[key], rng):
            distance = liveness.moved(truth, [single], run(parity.models.double, torch.float64))
        rows.append(liveness.LivenessRow(name, str(key), distance, "PASS" if distance >= 5 else "VACUOUS"))
    parity.keep("liveness", map(plain, rows))
    dead = [row for row in rows if row.status == "VACUOUS"]
    assert not dead, dead


# ---- branches


def calls_of(name):
    """Every call inside the float32 reference of a case."""
    chosen = CASES[name]
    built = Reference().build(*arguments(name)[:3])
    with recorded("reference", built) as recorder:
        Reference().call(chosen.part, built, chosen.draw(), chosen.call)
    return recorder


@pytest.mark.parametrize("name", ["vocoder.inference.end", "vocoder.inference.more", "vocoder.inference.odd"])
def test_one_input_has_voiced_and_unvoiced_frames(name):
    (call,) = calls_of(name).of("vocoder.source.SineGen2")
    assert set(np.unique(call.results["uv"])) == {0.0, 1.0}


def test_a_case_has_pitches_at_and_around_the_threshold():
    f0 = CASES["vocoder.sine.threshold"].draw()["f0"]
    assert {10.0} < {float(x) for x in np.unique(f0)} and (f0 > 10).any() and (f0 < 10).any()


def test_magnitude_clip_and_audio_limit_are_reached():
    recorder = calls_of("vocoder.decode.loud")
    (call,) = recorder.of("vocoder.stft.istft")
    magnitude = call.arguments["magnitude"]
    assert magnitude.max() > 100.1 and np.median(magnitude) < 100
    wav = np.abs(recorder.of("vocoder.generator.CausalHiFTGenerator.decode")[0].results["wav"])
    assert wav.max() == np.float32(0.99) and 0 < np.mean(wav == np.float32(0.99)) < 0.9


def test_a_judged_waveform_is_hardly_clipped():
    for name in ("vocoder.decode.end", "vocoder.decode.more", "vocoder.inference.end", "vocoder.inference.more"):
        wav = calls_of(name).of("vocoder.stft.istft")[0].results["x"]
        assert np.mean(np.abs(wav) >= 0.99) < 0.05, name


def test_guards_of_the_log_mel_are_reached():
    part, config, state, inputs, call = arguments("frontend.mel.quiet")
    (mel,) = run_reference(part, config, state, inputs, call, torch.float64).values()
    floor = np.log(1e-5)
    assert np.isclose(mel, floor).any() and (mel > floor + 1).any()
    near_guard = (mel > floor) & (mel < floor + 2)
    assert near_guard.any()


def arguments(name):
    chosen = CASES[name]
    return chosen.part, chosen.config, reference_state(chosen), chosen.draw(), chosen.call


@pytest.mark.parametrize(
    "path",
    [
        "flow.layers.Attention",
        "flow.layers.DiTBlock",
        "flow.layers.CausalConvPositionEmbedding",
        "flow.dit.DiT",
        "flow.masks.add_optional_chunk_mask",
        "frontend.speech_tokenizer.FSMNMultiHeadAttention",
    ],
)
def test_some_mask_of_the_part_hides_frames(path):
    drawn = [c.draw() for c in CASES.values() if c.part.path == path]
    masks = [values.get("mask", values.get("masks")) for values in drawn]
    assert any(mask is not None and not np.asarray(mask).astype(bool).all() for mask in masks)


@pytest.mark.parametrize(
    ("argument", "values"),
    [("finalize", {True, False}), ("streaming", {True, False}), ("guidance", {"separate", None})],
)
def test_every_part_with_a_mode_has_cases_of_each(argument, values):
    paths = {c.part.path for c in CASES.values() if argument in c.call}
    assert paths
    for path in paths:
        assert {c.call.get(argument) for c in CASES.values() if c.part.path == path} >= values, path


def test_cases_have_sizes_at_and_around_a_chunk_edge():
    sizes = [c.call for c in CASES.values() if c.part.path == "flow.masks.subsequent_chunk_mask"]
    rests = {(call["size"] - call["chunk_size"]) for call in sizes if call["size"] <= 2 * call["chunk_size"] + 1}
    assert {0, -1} <= rests and any(call["size"] % call["chunk_size"] == 1 for call in sizes)
    frames = {c.draw()["x"].shape[-1] % 8 for c in CASES.values() if c.part.path == "flow.dit.DiT"}
    assert 0 in frames and len(frames) > 1


def test_recorded_sampling_has_draws_with_and_without_the_second_stage():
    triggered = Recorded.read(GOLDEN / "sampling_ras.safetensors").out["triggered"]
    assert 0 < triggered.sum() < triggered.size


# ---- comparisons without meaning are errors


class _Answer(Adapter):
    """A port whose answer is `change` of the right answer."""

    name = "answer"

    def __init__(self, change):
        self.change = change

    def run(self, part, config, state, inputs, call):
        return self.change(OwnPort().run(part, config, state, inputs, call))


ADALN = CASES["flow.adaln_zero"]


@pytest.mark.meta
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda found: {k: v for k, v in found.items() if k != "gate_mlp"},
            "gate_mlp is missing on the side of the port",
        ),
        (lambda found: {**found, "gate": found["y"]}, "gate is missing on the side of the reference"),
        (lambda found: {}, "missing on the side of the port"),
        (lambda found: {k.replace("y", "Y"): v for k, v in found.items()}, "missing on the side of the port"),
    ],
    ids=["missing", "extra", "nothing", "renamed"],
)
def test_a_wrong_comparison_is_an_error(change, message):
    rows = judge(ADALN, _Answer(change))
    errors = [row for row in rows if row.reading.status == "ERROR"]
    assert errors and message in " ".join(row.reading.message for row in errors)


@pytest.mark.meta
def test_exchanged_names_are_an_error():
    def exchanged(found):
        return {**found, "shift_mlp": found["scale_mlp"], "scale_mlp": found["shift_mlp"]}

    rows = {row.name.rpartition(".")[2]: row.reading for row in judge(ADALN, _Answer(exchanged))}
    assert rows["shift_mlp"].status == rows["scale_mlp"].status == "ERROR"
    assert "shift_mlp is the reference's scale_mlp" in rows["shift_mlp"].message
    assert rows["y"].status == "PASS"


@pytest.mark.meta
def test_a_module_that_ignores_its_weights_is_vacuous():
    """A GRN with zero gamma and beta is the identity on both sides, which proves nothing."""
    base = case("flow.built.grn", "flow.layers.GRN", dict(dim=8), x=normal(1, 5, 8))
    zero = {k: np.zeros_like(v) for k, v in reference_state(base).items()}
    dead = case("flow.built.grn", "flow.layers.GRN", dict(dim=8), x=normal(1, 5, 8), dead={"beta": "because"})
    rows = liveness.liveness(replace(dead, weights=zero))
    found = {row.tensor: row.status for row in rows}
    assert found["gamma"] == "VACUOUS" and found["beta"] == "DEAD" and found["x"] == "PASS"


@pytest.mark.meta
def test_an_output_that_only_one_side_of_a_walk_has_is_an_error(parity):
    plan = walks(parity.models.config)["walk.speaker"]

    def run(model, given):
        found = plan.run(model, given)
        return {"embedding": found["embedding"], "extra": found["embedding"]} if model is parity.models.port else found

    rows = walk(parity.models, replace(plan, run=run), isolated=False)
    assert [r.name for r in rows if r.reading.status == "ERROR"] == ["walk.speaker.extra"]


@pytest.mark.meta
def test_the_names_of_the_cases_are_unique():
    assert len(CASES) == len(all_cases())
