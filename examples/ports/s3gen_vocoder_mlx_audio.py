"""The vocoder of Chatterbox's s3gen in mlx_audio against its PyTorch original: pitch, source, sound."""

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import numpy as np
import torch
from mlx_audio.tts.models.chatterbox.s3gen import f0_predictor, hifigan, s3gen

from mlx_parity import Finding, Pair, Subject, live_weights, mlx_module, torch_module

FOLDER = Path(find_spec("chatterbox").origin).parents[1]
for name in ("chatterbox", "chatterbox.models", "chatterbox.models.s3gen"):  # without what they import to read files
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(FOLDER / name.replace(".", "/"))]
HOP, FRAMES = 480, 6  # samples a frame; frames
SIZES = dict(base_channels=16, upsample_rates=[8, 5, 3], upsample_kernel_sizes=[16, 11, 7])
SIZES |= dict(source_resblock_kernel_sizes=[7, 7, 11], source_resblock_dilation_sizes=[[1, 3, 5]] * 3)
SINE = dict(samp_rate=24000, noise_std=0.0, voiced_threshold=10)  # one harmonic, voiced: nothing is drawn at random


def names(name):
    """Every second module of `condnet` is an ELU, which the port has as a function."""
    return re.sub(r"condnet\.(\d+)", lambda m: f"condnet.{int(m[1]) / 2:g}", name)


def pair(name, rng, kind, port, settings, call, *x, **how):
    """The same weights in both, as the port reads them."""
    original = import_module(f"chatterbox.models.s3gen.{port.__name__.rpartition('.')[2]}")
    reference = getattr(original, kind)(**settings)
    state = live_weights({key: value.numpy() for key, value in reference.state_dict().items()}, rng)
    reference.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    holder = mlx_module(call, part=getattr(port, kind)(**settings))
    weights = s3gen.S3Token2Wav.sanitize(holder, {f"part.{key}": mx.array(value) for key, value in state.items()})
    holder.load_weights([*weights.items()], strict=False)
    how = dict(names=names, channels_last=["*conv*", "*condnet*", "*ups.*", "*downs*"]) | how
    return Pair(name, torch_module(call, part=reference), holder, x, **how)


SLOPE = Finding(
    "The last leaky ReLU has another slope",
    hifigan.HiFTGenerator.decode,
    line="""x = nn.leaky_relu(x, negative_slope=self.lrelu_slope)
        # conv_post: (B, C, T) -> transpose -> conv -> transpose back""",
    fix="x = nn.leaky_relu(x)",
    notice="The original leaves the default there, 0.01 and not 0.1: no sample is right, the timbre is another.",
)
PHASE = Finding(
    "The phase of the source is summed in float32",
    hifigan.SineGen.__call__,
    line="theta_mat = 2 * math.pi * (mx.cumsum(F_mat, axis=-1) % 1)",
    fix="with mx.stream(mx.cpu): "
    "theta_mat = (2 * math.pi * (mx.cumsum(F_mat.astype(mx.float64), axis=-1) % 1)).astype(mx.float32)",
    notice="PyTorch sums it in float64 on CPUs. The pitch drifts by 0.4 of a period in ten seconds: hardly audible.",
)


def subject(seed):
    rng = np.random.default_rng(seed)
    mel, wave = rng.standard_normal((2, 80, FRAMES)), rng.uniform(-1, 1, (2, 1, FRAMES * HOP))
    f0 = rng.uniform(80, 300, (2, 1, 40)).repeat(HOP, axis=2)
    parts = [
        pair("pitch", rng, "ConvRNNF0Predictor", f0_predictor, dict(cond_channels=16), lambda s, x: s.part(x), mel),
        pair("source", rng, "SineGen", hifigan, SINE, lambda s, x: s.part(x)[0], f0, names=lambda _: ""),
        pair("sound", rng, "HiFTGenerator", hifigan, SIZES, lambda s, *x: s.part.decode(*x), mel, wave),
    ]
    packages = ["mlx-audio", "chatterbox-tts"]
    return Subject("mlx_audio s3gen vocoder", "chatterbox-tts HiFTGenerator", parts, [SLOPE, PHASE], packages)
