"""Template of an adapter. Copy it to `parity_tests/adapters/NAME.py` and fill it in; docs/adapters.md explains it.

As it stands, it adapts a numpy port that offers three small parts.

    python -m parity_tests.audit NAME --only 'flow.rotary*'      while you write it
    python -m parity_tests.audit NAME                            the whole report
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_parity.adapter import AdapterError
from parity_tests.adapters.parts import Job, Parts, PartsAdapter

# 1. Import your port here. If it is not installed beside this suite, pin it in NAME.requirements.txt (one package a
#    line, also what it imports and the suite lacks); the audit then installs it in an environment of its own.

PARTS = Parts()


# 2. Write one function for each part that your port has. It gets a Job:
#      job.config    sizes, named as in the reference's constructor
#      job.state     the part's weights: official names and layouts (PyTorch), relative to the part
#      job.official()  the same under their full names in the official file, if your converter wants those
#      job.inputs    arrays by argument name, in the reference's layout: channels first, (b, C, n)
#      job.call      further arguments: streaming, finalize, n_timesteps ...
#    and returns the outputs by name (`python -m parity_tests.record --list` and parts.py name the
#    parts, their arguments and their outputs), in the reference's layout again. Change layouts here, nothing else:
#    whatever you repair in the adapter is hidden from the report.


@PARTS.offers("vocoder.convolution.CausalConv1d")
def causal_conv(job: Job) -> Mapping[str, Any]:
    job.option("causal_type", "left", "right")  # an option that your port lacks becomes a SKIP with a reason
    weight, bias = job.state["weight"], job.state["bias"]  # (O, I, K), (O,)
    taps, dilation = weight.shape[2], job.config["dilation"]
    x = np.swapaxes(job.inputs["x"], 1, 2)  # channels last from here on
    edge = (taps - 1) * dilation
    cache = job.inputs.get("cache")
    pad = np.zeros((x.shape[0], edge, x.shape[2]), x.dtype) if cache is None else np.swapaxes(cache, 1, 2)
    padded = np.concatenate([pad, x] if job.config["causal_type"] == "left" else [x, pad], axis=1)
    n = x.shape[1]
    y = sum(padded[:, k * dilation : k * dilation + n] @ weight[:, :, k].T for k in range(taps)) + bias
    return {"y": np.swapaxes(y, 1, 2)}


@PARTS.offers("vocoder.generator.Snake")
def snake(job: Job) -> Mapping[str, Any]:
    x, alpha = job.inputs["x"], job.state["alpha"][:, None]
    return {"y": x + np.sin(alpha * x) ** 2 / (alpha + np.float32(1e-9))}


# 3. Noise is an input. Where your port draws its own, give it the array that the case brings (`noise`, `sine_waves`,
#    `draws`): patch its generator during the call, as adapters/mlx_audio_plus_parts/vocoder.py does. The noise that
#    it draws itself is compared once with the original's fixed buffers, by `noise` below.


@PARTS.offers("flow.layers.apply_rotary_pos_emb")
def rotary(job: Job) -> Mapping[str, Any]:
    t, angles = job.inputs["t"], job.inputs["rope"]
    turned, rest = t[..., : angles.shape[-1]], t[..., angles.shape[-1] :]
    pairs = turned.reshape(*turned.shape[:-1], -1, 2)
    crossed = np.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(turned.shape)
    return {"y": np.concatenate([turned * np.cos(angles) + crossed * np.sin(angles), rest], axis=-1)}


# 4. Say why the rest is missing; a key may be the prefix of several paths. Parts neither offered nor named
#    here are skipped all the same, with a general reason. A skipped part never counts as passed.

ABSENT = {
    "llm.": "the template has no language model",
    "frontend.": "the template has no front end",
}


class Template(PartsAdapter):
    """The report shows the name given here."""

    def __init__(self) -> None:
        super().__init__("template", PARTS, ABSENT)

    # def noise(self, name, shape): return what the port starts from when nobody passes `rand_noise` or `sine_waves`

    def versions(self) -> dict[str, str]:
        return {"template": "1"}


# 5. The audit calls this.


def make(dtype: str = "float32") -> Template:
    """The adapter for weights of `dtype`.

    Raises:
        AdapterError: the port cannot run in that dtype.
    """
    if dtype != "float32":
        raise AdapterError(f"the template computes in float32, not {dtype}")
    return Template()
