"""The vocoder: each form of convolution, and properties that no single case can show."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parity.case import Case, normal, uniform
from mlx_parity.compare import compare
from mlx_parity.judge import failures, judge
from mlx_parity.sides.truth import reference_state, run_reference
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import case, marked, voiced_and_unvoiced
from parity_tests.cases.vocoder import CASES, GENERATOR, HIFT, SINE
from parity_tests.parts import PARTS
from port.vocoder.source import SineGen2 as PortSines
from reference.vocoder.source import SineGen2 as ReferenceSines

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
CONVOLUTIONS = tuple(c for c in CASES if "convolution" in c.part.path or c.name.endswith((".end", ".more", ".k11")))


@pytest.mark.parametrize("form", ["products", "padded"])
@pytest.mark.parametrize("case", marked(CONVOLUTIONS))
def test_every_form_of_convolution(parity, case, form):
    """The device chooses between shifted products (CPU) and padded channels (GPU); both are tested on every device."""
    assert not (broken := failures(judge(case, OwnPort(forms=(form,))))), broken


def passes(parity, case: Case) -> None:
    assert not (broken := failures(judge(case, parity.adapter))), broken


@pytest.mark.part("vocoder.convolution.CausalConv1d")
@QUICK
@given(
    taps=st.integers(1, 12),
    dilation=st.integers(1, 5),
    frames=st.integers(1, 40),
    side=st.sampled_from(("left", "right")),
    cached=st.booleans(),
)
def test_causal_convolution_of_any_shape(parity, taps, dilation, frames, side, cached):
    if taps % 2 == 0 and dilation % 2 == 0:
        dilation += 1  # the original cannot run an even kernel with an even dilation
    context = (taps - 1) * dilation
    inputs: dict[str, Any] = {"cache": normal(2, 6, context)} if cached and context else {}
    sizes = dict(in_channels=6, out_channels=10, kernel_size=taps, dilation=dilation, causal_type=side)
    name = f"vocoder.conv.drawn.{taps}.{dilation}.{frames}"
    passes(parity, case(name, "vocoder.convolution.CausalConv1d", sizes, x=normal(2, 6, frames), **inputs))


@pytest.mark.part("vocoder.convolution.CausalConv1dDownSample")
@QUICK
@given(stride=st.integers(2, 8), fold=st.integers(1, 3), frames=st.integers(16, 60))
def test_downsampling_of_any_shape(parity, stride, fold, frames):
    sizes = dict(in_channels=6, out_channels=10, kernel_size=stride * fold, stride=stride)
    name = f"vocoder.conv.down.drawn.{stride}.{fold}.{frames}"
    passes(parity, case(name, "vocoder.convolution.CausalConv1dDownSample", sizes, x=normal(2, 6, frames)))


@pytest.mark.part("vocoder.convolution.CausalConv1dUpsample")
@QUICK
@given(stride=st.integers(1, 8), taps=st.integers(1, 16), frames=st.integers(1, 20))
def test_upsampling_of_any_shape(parity, stride, taps, frames):
    sizes = dict(in_channels=6, out_channels=10, kernel_size=taps, stride=stride)
    name = f"vocoder.conv.up.drawn.{stride}.{taps}.{frames}"
    passes(parity, case(name, "vocoder.convolution.CausalConv1dUpsample", sizes, x=normal(2, 6, frames)))


@pytest.mark.part("vocoder.source.SineGen2")
@settings(max_examples=15, deadline=None, derandomize=True)
@given(frames=st.sampled_from((2, 3, 25, 101)))
def test_sines_of_any_length(parity, frames):
    f0, waves = voiced_and_unvoiced(1, frames), uniform(1, frames * 480, 9)
    passes(parity, case(f"vocoder.sine.drawn.{frames}", "vocoder.source.SineGen2", SINE, f0=f0, sine_waves=waves))


@pytest.mark.part("vocoder.stft.stft")
@QUICK
@given(samples=st.integers(9, 400))
def test_stft_of_any_length(parity, samples):
    call = dict(n_fft=16, hop_len=4)
    passes(parity, case(f"vocoder.stft.drawn.{samples}", "vocoder.stft.stft", None, call, x=normal(1, samples)))


@pytest.mark.part("vocoder.stft.istft")
def test_istft_undoes_stft(parity):
    stft, istft = (PARTS[f"vocoder.stft.{name}"].resolve("port")[0] for name in ("stft", "istft"))
    x = mx.array(np.random.default_rng(0).standard_normal((2, 1440)).astype(np.float32))
    real, imag = stft(x, 16, 4)
    back = istft(mx.sqrt(real * real + imag * imag), mx.arctan2(imag, real), 16, 4)
    np.testing.assert_allclose(np.array(back), np.array(x), rtol=0, atol=1e-5)


@pytest.mark.part("vocoder.f0.CausalConvRNNF0Predictor")
@pytest.mark.parametrize("seed", range(3))
def test_the_pitch_is_rounded_once(parity, seed):
    """The original folds and runs the predictor in float64, so only the rounding of the result to float32 is left."""
    sizes = dict(num_class=1, in_channels=80, cond_channels=48)
    drawn = case(f"vocoder.f0.bits.{seed}", "vocoder.f0.CausalConvRNNF0Predictor", sizes, x=normal(1, 80, 40))
    arguments = drawn.part, drawn.config, reference_state(drawn), drawn.draw(), drawn.call
    truth = run_reference(*arguments, torch.float64)["f0"]
    np.testing.assert_array_max_ulp(parity.adapter.run(*arguments)["f0"], truth.astype(np.float32), maxulp=1)


def generator(parity) -> Any:
    part = PARTS[f"{GENERATOR}.inference"]
    return parity.adapter.build(part, HIFT, reference_state(case("vocoder.built", part.path, HIFT)))


@pytest.mark.part("vocoder.generator.CausalHiFTGenerator.inference")
@pytest.mark.parametrize("frames", [9, 22, 23, 29])
def test_a_chunk_equals_the_start_of_the_whole(parity, frames):
    """Streaming needs it: later frames do not change the samples of a chunk."""
    vocoder = generator(parity)
    rng = np.random.default_rng(1)
    mel = mx.array(rng.standard_normal((1, 30, 80)).astype(np.float32))
    waves = mx.array(rng.uniform(0, 1, (1, 30 * 480, 9)).astype(np.float32))
    whole, _ = vocoder.inference(mel, True, waves)
    part, _ = vocoder.inference(mel[:, :frames], False, waves)
    assert part.shape[1] == 480 * (frames - 8)
    np.testing.assert_allclose(np.array(part), np.array(whole[:, : part.shape[1]]), rtol=0, atol=1e-6)


@pytest.mark.part("vocoder.generator.CausalHiFTGenerator.inference")
@pytest.mark.parametrize("frames", [1, 7])
def test_too_few_frames_are_one_clear_error(parity, frames):
    with pytest.raises(ValueError, match=f"{frames} frames"):
        generator(parity).inference(mx.zeros((1, frames, 80)), False)


@pytest.mark.part("vocoder.source.SineGen2")
@pytest.mark.parametrize("seconds", [2, 30])
def test_phases_round_like_the_original(seconds):
    """A float32 accumulator would be off by 5e-3 after 2 s and by more than 1 after 30 s (SineGen2 on a CPU)."""
    frames = 50 * seconds
    f0 = voiced_and_unvoiced(1, frames)(np.random.default_rng(seconds))
    waves = np.zeros((1, frames * 480, 9), np.float32)
    reference, _ = ReferenceSines(**SINE)(torch.from_numpy(f0), torch.from_numpy(waves))
    double, _ = ReferenceSines(**SINE)(torch.from_numpy(f0).double(), torch.from_numpy(waves).double())
    port, _ = PortSines(**SINE)(mx.array(f0[:, ::480, 0]), mx.array(waves))
    reading = compare(np.array(port), reference.numpy(), double.numpy())
    assert reading.status == "PASS", reading.message
    assert np.abs(np.array(port) - reference.numpy()).max() < 2e-7
