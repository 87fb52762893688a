"""Small benchmarks of the port for pytest-benchmark: `pytest benchmarks`, or with `--benchmark-compare` two states.

Tiny sizes, in this process, with its own BLAS: they compare two states of the port on one machine.
"""

import pytest

from benchmarks.cases import BAKED, all_cases
from benchmarks.inputs import make_inputs
from benchmarks.side_port import Side
from convert.mapping import PORT_ROOT
from reference.synthesize import state_dict, tiny_config

CASES = [case for case in all_cases("tiny") if case.kind not in ("stream", "manifest")]
ROWS = [
    (case, variant)
    for case in CASES
    for variant in case.variants
    if variant.side == "port" and BAKED not in variant.further
]


@pytest.fixture(scope="module")
def side():
    made, config = Side(1), tiny_config()
    made.varied()
    for part in ("llm", "flow", "hift"):
        made.load(part, config, {key: value.numpy() for key, value in state_dict(part, config, 0).items()})
    assert set(made.roots) == {PORT_ROOT[part] for part in ("llm", "flow", "hift")}
    return made


@pytest.mark.parametrize(("case", "variant"), ROWS, ids=[f"{case.name}:{variant.name}" for case, variant in ROWS])
def test_bench_port(benchmark, side, case, variant):
    inputs = make_inputs(case.kind, case.size, tiny_config())

    def prepared():
        return (side.prepare(case.kind, inputs, case.size, variant.options),), {}

    found = benchmark.pedantic(lambda run: run(), setup=prepared, rounds=3, warmup_rounds=1)
    assert all(side.to_numpy(value).size for name, value in found.items() if name != "marks")
