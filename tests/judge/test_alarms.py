"""Reference and port on simulated machines: another order of sums changes rounding, never the verdict."""

import json
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_parity.alarms import Alarms, chance
from mlx_parity.compare import FLOOR, ROUNDINGS, compare
from mlx_parity.faults.patch import clear_caches
from mlx_parity.sides import orders_mlx
from mlx_parity.sides.orders_pytorch import BLOCKS, Order, in_other_orders
from mlx_parity.sides.truth import one_rounding, reference_state, run_reference, truth_of
from parity_tests import alarms
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases
from parity_tests.faults import PACKAGES
from port.fast import convolution

pytestmark = pytest.mark.meta

CASES = {case.name: case for case in all_cases()}
# A case for each operation: products, both convolutions, attention with a masked row, norms, sines, statistics.
SOME = (
    "flow.attention.blind",
    "flow.conv_pos_embed",
    "vocoder.decode.end",
    "speaker.tdnn",
    "llm.qwen2",
    "speaker.embedding.57",
)


def error(found, truth):
    return max(
        float(np.sqrt(np.mean((found[k] - v) ** 2) / np.mean(v**2))) for k, v in truth.items() if v.dtype.kind == "f"
    )


@pytest.mark.parametrize("name", SOME)
def test_another_order_is_as_exact_and_another_number(name):
    case = CASES[name]
    truth = truth_of(case)
    arguments = (case.part, case.config, truth.state, truth.inputs, case.call)
    usual = max(error(truth.single, truth.double), FLOOR)
    runs = truth.further
    for seed in range(len(BLOCKS)):
        with orders_mlx.Order(seed):
            runs = [*runs, OwnPort().run(*arguments)]
    for run in runs:
        assert 0 < error(run, truth.double) < 8 * usual
    flat = [np.concatenate([np.ravel(v) for v in run.values()]) for run in (truth.single, *runs)]
    assert len({array.tobytes() for array in flat}) == len(flat), "two machines gave the same numbers"


@pytest.mark.parametrize("name", SOME)
def test_float64_is_the_same_on_every_machine(name):
    case = CASES[name]
    arguments = (case.part, case.config, reference_state(case), case.draw(), case.call, torch.float64)
    truth = run_reference(*arguments)
    for run in in_other_orders(lambda: run_reference(*arguments)):
        assert all(np.array_equal(run[k], v) for k, v in truth.items())


def test_a_machine_gives_the_same_numbers_again_and_leaves_nothing_behind():
    case = CASES["flow.attention.full"]
    arguments = (case.part, case.config, reference_state(case), case.draw(), case.call)
    before, matmul = OwnPort().run(*arguments)["y"], mx.array.__matmul__
    for machine, run in (
        (Order, lambda: run_reference(*arguments, torch.float32)["y"]),
        (orders_mlx.Order, lambda: OwnPort().run(*arguments)["y"]),
    ):
        found = []
        for seed in (3, 3, 7):
            with machine(seed):
                found.append(run())
        assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert mx.array.__matmul__ is matmul and np.array_equal(OwnPort().run(*arguments)["y"], before)


def test_what_the_port_finds_out_of_a_machine_ends_with_it():
    with orders_mlx.Order(3, partial(clear_caches, PACKAGES)):
        convolution.adds_whole_products(mx.default_device().type)
    assert not convolution.adds_whole_products.cache_info().currsize


def test_a_long_sum_term_by_term_errs_more():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in ((20, 256), (256, 30)))
    truth = (a.double() @ b.double()).numpy()
    errors = []
    for seed in range(len(BLOCKS)):
        with Order(seed):
            errors.append(error({"y": (a @ b).numpy()}, {"y": truth}))
    assert errors[0] == max(errors) and errors[0] > 1.5 * errors[-1]


def test_the_largest_of_several_runs_is_the_references_error():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(50)
    near, far = (truth + size * rng.standard_normal(50) for size in (1e-6, 5e-6))
    port = truth + 1.2e-5 * rng.standard_normal(50)
    assert compare(port, near, truth).status == "FAIL"
    assert compare(port, near, truth, further=[far]).status == compare(port, far, truth).status == "PASS"


def test_a_reference_many_roundings_off_is_an_error():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(5000)
    rounded = one_rounding(truth, rng).astype(np.float64)
    one = np.sqrt(np.mean((rounded - truth) ** 2))
    for times, status in ((0.7 * ROUNDINGS, "PASS"), (1.4 * ROUNDINGS, "ERROR")):
        reference = truth + times * one * rng.standard_normal(5000)
        reading = compare(truth + 1e-9, reference, truth, rounded=rounded)
        assert reading.status == status
    assert "does not compute in float32" in reading.message


@pytest.mark.parametrize("name", ["flow.adaln_final", "walk.speaker"])
def test_a_measurement(name, tmp_path, capsys):
    path = tmp_path / "alarms.json"
    command = ["--machines", "8", "--seeds", "1", "--jobs", "1", "--only", name, "--json", str(path)]
    assert alarms.main(command) == 0
    printed = capsys.readouterr().out
    assert "before  median" in printed and "after   median" in printed and "comparisons gave a false alarm" in printed
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert rows and all(len(row["before"]) == len(row["after"]) == 8 for row in rows)
    assert any(len(set(row["before"])) > 1 for row in rows), "all machines gave the same ratios"


def test_a_port_that_is_less_exact_is_an_alarm(monkeypatch):
    """The measurement counts alarms for a port that is off by 1e-4."""
    run = OwnPort.run

    def coarse(self, *arguments):
        return {k: v * np.float32(1 + 1e-4) for k, v in run(self, *arguments).items()}

    monkeypatch.setattr(OwnPort, "run", coarse)
    found = list(alarms._of_case("flow.adaln_final", 0, 8))
    assert found and all(after.status == "FAIL" for _, _, after in found)
    ratios = [5.0] * 4 + [3.0] * 4
    assert Alarms({"row": ratios}).alarms == 4 and 0.3 < chance(ratios) < 0.7


def test_wrong_arguments_are_one_line(capsys):
    for command in (["--machines", "5"], ["--machines", "4"], ["--seeds", "0"], ["--only", "no.such"]):
        assert alarms.main(command) == 2
        assert capsys.readouterr().err.startswith("alarms: ")
