"""The port on a simulated Metal device: no float64 outside the CPU stream, and every choice made for a GPU.

The pitch is float64 on every device. No GPU of MLX has float64: each operation on such an array raises there.
"""

import functools
import threading
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parity.faults.patch import clear_caches
from mlx_parity.sides.truth import reference_state
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import all_cases, marked
from parity_tests.faults import PACKAGES
from parity_tests.speech_support import LONGER, SYSTEM
from parity_tests.test_cosyvoice3 import REQUESTS
from port.request import Stream

REFUSED = "float64 is not supported on the GPU"
# No operations of a device: these read existing arrays or wait for them.
NO_OPERATIONS = ("eval", "async_eval", "compile", "stream", "default_device", "new_stream", "load", "save_safetensors")
OPERATORS = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "matmul", "neg", "gt", "lt", "getitem")
METHODS = ("astype", "reshape", "swapaxes", "transpose", "squeeze", "sum", "max", "min", "mean", "abs", "any", "all")


class Pretended:
    """A default device that refuses float64."""

    def __init__(self):
        self._local = threading.local()
        self.met = 0  # operations on float64, all on the CPU stream

    @property
    def on_cpu(self):
        return getattr(self._local, "depth", 0) > 0

    def default_device(self):
        return mx.Device(mx.cpu if self.on_cpu else mx.gpu)

    def stream(self, original):
        @contextmanager
        def chosen(device):
            self._local.depth = getattr(self._local, "depth", 0) + (device == mx.Device(mx.cpu))
            try:
                with original(device):
                    yield
            finally:
                self._local.depth -= device == mx.Device(mx.cpu)

        return chosen

    def guarded(self, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            if any(isinstance(x, mx.array) and x.dtype == mx.float64 for x in (*args, *kwargs.values(), result)):
                stream = kwargs.get("stream")
                if not self.on_cpu and (stream is None or stream != mx.cpu):
                    raise ValueError(REFUSED)
                self.met += 1
            return result

        return call


@pytest.fixture
def metal(monkeypatch):
    pretended = Pretended()
    for place in (mx, mx.fast):
        for name, function in list(vars(place).items()):
            if type(function).__name__ == "nb_func" and name not in NO_OPERATIONS:
                monkeypatch.setattr(place, name, pretended.guarded(function))
    for name in (*(f"__{name}__" for name in OPERATORS), *METHODS):
        monkeypatch.setattr(mx.array, name, pretended.guarded(getattr(mx.array, name)))
    monkeypatch.setattr(mx, "stream", pretended.stream(mx.stream))
    monkeypatch.setattr(mx, "default_device", pretended.default_device)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    clear_caches(PACKAGES)
    yield pretended
    clear_caches(PACKAGES)  # which hold what was measured on this device


CASES = [case for case in all_cases() if case.part.stage in ("llm", "flow", "vocoder")]


@pytest.mark.part("vocoder.f0.CausalConvRNNF0Predictor")
def test_the_simulated_device_refuses_float64(metal):
    x = mx.array(np.ones(3), dtype=mx.float64)
    for operation in (lambda: x + 1, lambda: x[:1], lambda: mx.exp(x), lambda: mx.ones(3).astype(mx.float64)):
        with pytest.raises(ValueError, match=REFUSED):
            operation()
        with mx.stream(mx.cpu):
            mx.eval(operation())
    assert mx.default_device().type == mx.DeviceType.gpu


@pytest.mark.parametrize("case", marked(CASES))
def test_each_part_runs(metal, case):
    found = OwnPort().run(case.part, case.config, reference_state(case), case.draw(), case.call)
    assert all(np.isfinite(value).all() or value.dtype.kind != "f" for value in found.values())
    assert metal.met > 0 or not case.part.path.startswith("vocoder.f0")


@pytest.mark.part("cosyvoice3")
@pytest.mark.parametrize("mode", [*REQUESTS, "stream"])
def test_every_mode_runs(metal, voices, recordings, mode):
    voices.port.add_zero_shot_spk(SYSTEM, recordings[0], "saved")
    options: dict[str, Any] = {"seed": 0}
    if mode == "bistream":
        options["strict_min_length"] = True  # no end inside a round
    if mode == "stream":
        options = {"words": LONGER, "stream": Stream(reset_hop=True), "seed": 0, "strict_min_length": True}
    results = REQUESTS["zero_shot" if mode == "stream" else mode](voices.port, *recordings, **options)
    chunks = [np.array(result["tts_speech"]) for result in results]
    assert all(np.isfinite(chunk).all() for chunk in chunks) and (len(chunks) > 1) is (mode == "stream")
    assert metal.met > 0
