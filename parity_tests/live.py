"""Live random weights: every tensor matters, activations stay of order one, and every branch of the model is active.

A parity test on dead weights proves nothing: a GRN with gamma = beta = 0 is the identity, an f0 below 10 Hz never
reaches the sine. `liveness.py` checks that every tensor drawn here matters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def live_state(template: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw a float32 value for each tensor of a reference state dict; `template` gives only shapes and constants."""
    state = {key: live_tensor(key, value, rng) for key, value in template.items()}
    for key in state:
        if key.endswith("lm_head.weight"):
            state[key] = state[key.replace("lm_head", "model.embed_tokens")]  # tied, as in llm.pt
    return state


def live_tensor(key: str, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One tensor by the rule of its name; the constant `inv_freq` is kept."""
    name, shape = key.rpartition(".")[2], value.shape
    if name == "inv_freq":
        return value.astype(np.float32)
    draw = rng.standard_normal(shape)
    if name == "alpha":
        draw = rng.uniform(0.5, 2.0, shape)
    elif (key.startswith("conv_post.") and value.ndim < 3) or key == "conv_post.parametrizations.weight.original0":
        # A logarithm of magnitudes: without damping, one loud bin of one frame would carry all of the error.
        draw = 0.2 * draw - 1.5 if name == "bias" else rng.uniform(0.4, 0.8, shape)
    elif key.endswith("original0") and ".convs2." in f".{key}":  # milder residual branches: sines of sines are chaotic
        draw = rng.uniform(0.2, 0.4, shape)
    elif name in ("original0", "weight_g"):
        draw = rng.uniform(0.7, 1.3, shape)
    elif name == "running_var":
        draw = rng.uniform(0.5, 1.5, shape)
    elif key.endswith(("norm.weight", "ln.weight")):
        draw = 1 + 0.2 * draw
    elif key.endswith("classifier.weight"):  # f0 in Hz from unit activations: voiced and unvoiced frames both occur
        draw *= 150 / np.sqrt(shape[1])
    elif key.endswith("classifier.bias"):
        draw = np.full(shape, 60.0)
    elif key.endswith("linear1.bias"):  # few units before a ReLU: by chance all might be zero, or none
        draw = rng.permutation(np.linspace(-1.0, 4.0, value.size)).reshape(shape)
    elif name == "bias" and ".convs" in f".{key}":  # with few channels, one near zero would not matter
        draw = np.sign(draw) * rng.uniform(0.5, 1.0, shape)
    elif name == "beta":  # small, so that an epsilon matters for a quiet input
        draw *= 0.02
    elif name in ("bias", "running_mean"):
        draw *= 0.3
    elif "embed" in key and draw.ndim == 2 and "proj" not in key and "affine" not in key and "time" not in key:
        pass  # embedding rows of order one
    elif draw.ndim > 1:
        draw /= np.sqrt(np.prod(shape[1:]))
    if name in ("alpha", "original0", "weight_g") and not key.startswith("conv_post."):
        draw.reshape(-1)[1::3] *= -1  # training does not keep them positive
    return draw.astype(np.float32)
